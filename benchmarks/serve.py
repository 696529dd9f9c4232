"""The server with many clients, with one, and with transformers behind the same HTTP: tokens/s, and who waits for whom.

    python benchmarks/serve.py --clients 16 --requests 64

A model of random weights is served by a process of its own; the clients are threads of this one. Three parts:

- one client after another against all clients at once: the same requests of mixed lengths, half of them streamed;
- the same requests, all clients at once, with transformers' `generate` behind the same server, one request at a time;
- ten short requests beside one of 500 tokens: the time of the slowest, as a share of the long one's.

Nothing else may run on the machine meanwhile. docs/serving.md says what it showed.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHAPE = ["model.width=384", "model.layers=6", "model.context=1024", "tokenizer.kind=bpe", "tokenizer.size=4096",
         "model.attention={kind: grouped, heads: 6}", "model.feed_forward={kind: swiglu}"]  # fmt: skip
NAME = "run"
WORDS = ["once", "upon", "a", "time", "there", "was", "small", "girl", "who", "had", "red", "ball", "garden"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", help="fp32, bf16, int8: how ours keeps its matrices")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--behind", choices=("transformers",), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.behind:
        return serve_transformers(given.run)
    with tempfile.TemporaryDirectory() as folder:
        report = measured(untrained(Path(folder) / NAME), given)
    print(json.dumps(report, indent=2))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measured(run: Path, given: argparse.Namespace) -> dict[str, Any]:
    asked = requests(given.requests)
    weights = ["--weights", given.weights] if given.weights else []
    ours = [sys.executable, "-m", "homespun", "serve", str(run), "--port", "0", *weights]
    theirs = [sys.executable, __file__, "--run", str(run), "--behind", "transformers"]
    rounds: dict[str, list[float]] = {"one client": [], "all clients": [], "transformers, all clients": []}
    shares = []
    with server(ours) as port, server(theirs) as other:
        for each in (port, other):
            rate(each, asked[:4], 2)  # warms up
        for _ in range(given.rounds):
            rounds["one client"].append(rate(port, asked, 1))
            rounds["all clients"].append(rate(port, asked, given.clients))
            rounds["transformers, all clients"].append(rate(other, asked[: len(asked) // 4], given.clients))
            shares.append(beside_a_long_one(port))
    middle = {name: round(statistics.median(values), 1) for name, values in rounds.items()}
    return {
        "clients": given.clients,
        "requests": len(asked),
        "tokens per second": middle,
        "rounds": {name: [round(value, 1) for value in values] for name, values in rounds.items()},
        "all clients / one client": round(middle["all clients"] / middle["one client"], 2),
        "all clients / transformers": round(middle["all clients"] / middle["transformers, all clients"], 2),
        "p95 of ten short ones / the long one": round(statistics.median(shares), 3),
    }


def requests(count: int) -> list[dict[str, Any]]:
    """Prompts of 5 to 200 words and answers of 16 to 160 tokens, the same in each call."""
    chance = random.Random(1)
    return [
        {
            "prompt": " ".join(chance.choices(WORDS, k=chance.choice([5, 20, 60, 200]))),
            "max_tokens": chance.choice([16, 40, 80, 160]),
            "temperature": 0,
            "seed": number,
            "stream": number % 2 == 0,
        }
        for number in range(count)
    ]


def rate(port: int, asked: Sequence[dict[str, Any]], clients: int) -> float:
    """Tokens per second of all clients together."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        written = sum(pool.map(lambda body: ask(port, body), asked))
    return written / (time.perf_counter() - start)


def ask(port: int, body: dict[str, Any]) -> int:
    """Sends a request and reads the whole answer: how many tokens it has."""
    if body["stream"]:
        body = body | {"stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request(
        "POST", "/v1/completions", json.dumps(body | {"model": NAME}), {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(text)
    if not body["stream"]:
        return json.loads(text)["usage"]["completion_tokens"]
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return next(event["usage"]["completion_tokens"] for event in reversed(events) if event.get("usage"))


def beside_a_long_one(port: int) -> float:
    """The 95th percentile of ten short requests that begin after one of 500 tokens, as a share of its time."""
    took: dict[str, float] = {}

    def timed(name: str, tokens: int) -> None:
        start = time.perf_counter()
        ask(port, {"prompt": "once", "max_tokens": tokens, "temperature": 0, "stream": False})
        took[name] = time.perf_counter() - start

    threads = [threading.Thread(target=timed, args=("long", 500))]
    threads += [threading.Thread(target=timed, args=(f"short {number}", 20)) for number in range(10)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    short = sorted(value for name, value in took.items() if name != "long")
    return short[-1] / took["long"]  # of ten, the 95th percentile is the slowest


@contextmanager
def server(command: list[str]) -> Iterator[int]:
    """A server in a process of its own, and its port."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise RuntimeError(f"{command} did not start")
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(30)


def untrained(folder: Path) -> Path:
    import homespun as hs

    hs.train("stories:3000", hs.recipe("house-small", *SHAPE, "train.steps=1", "train.batch_tokens=2048"), folder)
    return folder


def serve_transformers(run: Path) -> None:
    """The same server, in which transformers' `generate` writes, for one request at a time."""
    from homespun.run import export
    from homespun.serve.limits import Limits
    from homespun.serve.served import open_runs
    from homespun.serve.server import serve

    with tempfile.TemporaryDirectory() as folder:
        export(run, Path(folder) / "hf")
        runs = open_runs([run], "last", None, Limits())
        for served in runs.all.values():
            served._scheduler = OneAtATime(served.scheduler.generator, Path(folder) / "hf")
        serve(runs, "127.0.0.1", 0, Limits(), ready=lambda address: print(address, flush=True))


class OneAtATime:
    """What the server needs of a scheduler, with transformers behind it."""

    def __init__(self, generator: Any, folder: Path):
        from transformers import AutoModelForCausalLM

        from homespun.serve.scheduler import Figures

        self.generator, self.figures, self.rows, self.queue = generator, Figures(), 1, 1000
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.lock = asyncio.Lock()

    def start(self) -> None: ...

    def close(self, grace: float = 0) -> None: ...

    def open(self, prompts: Any, sampling: Any, count: int = 1, alternatives: int = 0) -> OneTicket:
        rows = [self.generator.row(prompt, sampling, index) for index, prompt in enumerate(prompts)]
        return OneTicket(self, rows)


class OneTicket:
    """The texts of a request, written one after the other when it is this request's turn."""

    def __init__(self, scheduler: OneAtATime, rows: list[Any]):
        self.scheduler, self.rows = scheduler, rows
        self.news: list[Any] = []

    async def __aenter__(self) -> OneTicket:
        await self.scheduler.lock.acquire()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.scheduler.lock.release()

    async def __aiter__(self) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        for row in self.rows:
            arrived: asyncio.Queue[int] = asyncio.Queue()
            writing = asyncio.create_task(asyncio.to_thread(self._generate, row, loop, arrived))
            while not row.done:
                yield row.take(await arrived.get(), 0.0)
            await writing

    def _generate(self, row: Any, loop: asyncio.AbstractEventLoop, arrived: asyncio.Queue[int]) -> None:
        import torch

        class Streamer:  # is given the prompt first, then each token
            prompt = True

            def put(self, ids: Any) -> None:
                if not self.prompt:
                    loop.call_soon_threadsafe(arrived.put_nowait, int(ids.flatten()[-1]))
                self.prompt = False

            def end(self) -> None: ...

        ids = torch.tensor([row.ids])
        with torch.inference_mode():
            self.scheduler.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=row.left,
                eos_token_id=self.scheduler.generator.tokenizer.end, pad_token_id=0, streamer=Streamer(),
            )  # fmt: skip


if __name__ == "__main__":
    main()
