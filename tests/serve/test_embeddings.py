"""POST /v1/embeddings: the vectors of the run, for OpenAI's client, beside texts that are being written."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

import homespun as hs
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling
from homespun.serve.scheduler import Busy, Scheduler
from tests.generate.test_engine import BYTES, decoder
from tests.serve.conftest import EXPERTS, SMALL, Client
from tests.serve.process import Process, receive, request

PATH = "/v1/embeddings"
TEXTS = ["Once upon a time", "x", "Ein Bär, 熊 and 🐻", "a long story " * 30, "Once upon a time"]
ASKING = {"model": "small", "input": "Once"}


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an embedding head."""
    folder = tmp_path_factory.mktemp("headed") / "headed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMESPUN_CACHE", str(folder.parent / "cache"))
        head = ("objective.kind=joint", "model.embedding.size=12", "train.batch_tokens=256")
        hs.train("stories:40", hs.recipe("house-tiny", *SMALL, *EXPERTS, *head), out=folder)
    return folder


@pytest.fixture(scope="module")
def server(runs: list[Path], headed: Path) -> Iterator[Process]:
    process = Process(runs[0], headed)
    yield process
    assert "Traceback" not in process.end()


@pytest.fixture(scope="module")
def openai_client(server: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


@pytest.mark.parametrize(("model", "size"), [("small", 32), ("headed", 12)])
def test_vectors_are_those_of_the_run(
    openai_client: openai.OpenAI, runs: list[Path], headed: Path, model: str, size: int
) -> None:
    expected = hs.load(headed if model == "headed" else runs[0]).embed(TEXTS)
    answer = openai_client.embeddings.create(model=model, input=TEXTS)  # this client asks for base64 by itself
    assert [each.index for each in answer.data] == list(range(len(TEXTS)))
    found = np.array([each.embedding for each in answer.data], dtype=np.float32)
    assert found.shape == (len(TEXTS), size) and np.abs(found - expected).max() < 1e-5
    plain = openai_client.embeddings.create(model=model, input=TEXTS, encoding_format="float", dimensions=size)
    assert np.array_equal(np.array([each.embedding for each in plain.data], dtype=np.float32), found)
    tokens = sum(len(text.encode()) for text in TEXTS)
    assert answer.object == "list" and answer.model == model and answer.data[0].object == "embedding"
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_texts_may_be_ids(openai_client: openai.OpenAI) -> None:
    def vectors(given: Any) -> list[list[float]]:
        return [each.embedding for each in openai_client.embeddings.create(model="small", input=given).data]

    one, two = vectors("Once"), vectors(["Once", "ab"])
    assert vectors([79, 110, 99, 101]) == one and len(one) == 1
    assert vectors([[79, 110, 99, 101], [97, 98]]) == pytest.approx(np.array(two), abs=1e-6)


def test_without_a_format_numbers_come(server: Process) -> None:
    def vector(**more: Any) -> Any:
        with server.connect() as connection:
            connection.sendall(request("POST", PATH, ASKING | more, Connection="close"))
            return json.loads(receive(connection).partition(b"\r\n\r\n")[2])["data"][0]["embedding"]

    assert all(type(number) is float for number in vector()) and len(vector()) == 32
    packed = np.frombuffer(base64.b64decode(vector(encoding_format="base64")), "<f4")
    assert np.array_equal(packed, np.array(vector(), dtype=np.float32))


def test_texts_are_written_between_the_steps() -> None:
    scheduler = Scheduler(Generator(decoder(context=48), BYTES), rows=2, queue=2)
    scheduler.start()
    seen: list[int] = []

    def steps() -> Iterator[int]:
        for step in range(20):
            seen.append(scheduler.figures.written_tokens)
            yield step

    async def run() -> list[int]:
        sampling = Sampling(max_tokens=200, seed=1, logit_bias={256: -100})
        async with scheduler.open(["x"], sampling) as ticket:
            await anext(aiter(ticket))
            return await scheduler.each(steps())

    try:
        assert asyncio.run(run()) == list(range(20))
        assert all(later > earlier for earlier, later in zip(seen, seen[1:], strict=False))
    finally:
        scheduler.close(0)


def test_who_leaves_stops_the_steps_and_too_many_are_told_so() -> None:
    scheduler = Scheduler(Generator(decoder(context=48), BYTES), rows=1, queue=1)
    scheduler.start()
    first, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def steps() -> Iterator[int]:
        for step in range(1000):
            done.append(step)
            first.set()
            go_on.wait()
            yield step

    async def run() -> None:
        task = asyncio.create_task(scheduler.each(steps()))
        await asyncio.to_thread(first.wait)
        second = asyncio.create_task(scheduler.call(lambda _: "answered"))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="2 calls are waiting"):
            await scheduler.call(lambda _: None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        assert await second == "answered"
        assert await scheduler.call(lambda _: len(done)) == 1

    try:
        asyncio.run(run())
    finally:
        go_on.set()
        scheduler.close(0)


def test_a_client_that_leaves_is_forgotten(server: Process) -> None:
    long = {"model": "small", "input": ["x" * 2000] * 30}
    before = server.metric("homespun_embedded_tokens_total")
    for _ in range(3):
        with server.connect() as connection:
            connection.sendall(request("POST", PATH, long))
    server.wait_for("homespun_connections", lambda open_ones: open_ones == 1)
    with server.connect() as connection:
        connection.sendall(request("POST", PATH, ASKING, Connection="close"))
        assert receive(connection).startswith(b"HTTP/1.1 200")
    assert server.metric("homespun_embedded_tokens_total") == before + 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"), ({"input": []}, "input"), ({"input": None}, "input"), ({"input": 7}, "input"),
        ({"input": {}}, "input"), ({"input": ["a", ""]}, "input"), ({"input": [[]]}, "input"),
        ({"input": ["a", 1]}, "input"), ({"input": [1, "a"]}, "input"), ({"input": [True]}, "input"),
        ({"input": [1.5]}, "input"), ({"input": [[1, [2]]]}, "input"), ({"input": [-1]}, "input"),
        ({"input": [10**30]}, "input"), ({"input": [[260]]}, "input"), ({"input": "\ud800"}, "input"),
        ({"input": ["a"] * 6}, "input"), ({"input": "x" * 101}, "input"), ({"input": [[1] * 60] * 2}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"), ({"encoding_format": 1}, "encoding_format"),
        ({"dimensions": 8}, "dimensions"), ({"dimensions": 0}, "dimensions"), ({"dimensions": True}, "dimensions"),
        ({"dimensions": 10**30}, "dimensions"), ({"model": 3}, "model"), ({"n": 2}, "n"),
    ],
)  # fmt: skip
def test_what_has_no_vector_is_refused(client: Client, runs: list[Path], fields: Any, param: str) -> None:
    answer = client(runs[:1], {"inputs": 5, "input_tokens": 100}).post(
        PATH, content=json.dumps(ASKING | fields), headers={"Content-Type": "application/json"}
    )
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"].split(".")[0] == param, error
    assert error["type"] == "invalid_request_error" and error["message"]


def test_hostile_bodies(client: Client, runs: list[Path]) -> None:
    asking = client(runs[:1])
    kind = {"Content-Type": "application/json"}
    for body in (b'{"model": "small", "input": [NaN]}', b'{"model": "small", "input": [1e999]}', b"[]", b"{"):
        assert asking.post(PATH, content=body, headers=kind).status_code == 400
    assert asking.post(PATH, json={"input": "x"}).json()["error"]["param"] == "model"
    assert asking.post(PATH, json=ASKING | {"model": "gpt"}).status_code == 404
    assert asking.get(PATH).status_code == 405
    assert asking.post(PATH, json=ASKING | {"user": "me"}).status_code == 200
    most = asking.post(PATH, json=ASKING | {"input": ["x"] * 2048})
    assert most.status_code == 200 and most.json()["data"][-1]["index"] == 2047


def test_numbers_that_are_none_are_told(client: Client, runs: list[Path]) -> None:
    asking = client(runs[:1])
    served = asking.app_state["house"].runs.models["small"]
    with torch.no_grad():
        served.run.model.model.norm.weight.fill_(float("nan"))
    answer = asking.post(PATH, json=ASKING)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "model_failed"
