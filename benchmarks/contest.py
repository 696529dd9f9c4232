"""A contest between programs on one machine: each is a process of its own, and only one of them works at a time.

A contestant builds its model, warms up, and waits; then it is asked for a round of work by a line on its standard
input, and answers with a line of JSON. The rounds are interleaved (A B C A B C ...), so that a change of the machine's
speed touches all alike. What comes out are lines of JSON, and a table in DATE-MACHINE.md.

Only the standard library is used here: the peers' interpreter runs this file too.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
QUIET = 0.5  # the highest load average at which figures of two threads can be trusted
Row = dict[str, Any]
"""One line of a table: what stands under each heading, the contestant's name first."""


# -- the side of the contestant ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a contestant can do: `run(amount)` works and returns how many tokens that were.

    warm_up: the amount of work that is done once before anything is timed. about: what it says of itself.
    """

    run: Callable[[int], int]
    warm_up: int
    about: Row


def serve(build: Callable[[Row], Work]) -> None:
    """The life of a contestant's process: its settings are its one argument, as JSON.

    Where it cannot be built (a package is missing), that is answered, with the reason, instead of an error.
    """
    answers = os.fdopen(os.dup(1), "w")  # what the libraries print goes to standard error
    os.dup2(2, 1)

    def answer(line: Row) -> None:
        print(json.dumps(line), file=answers, flush=True)

    begin = time.perf_counter()
    try:
        work = build(json.loads(sys.argv[1]))
        built = time.perf_counter()
        work.run(work.warm_up)
    except Exception as error:
        answer({"absent": f"{type(error).__name__}: {str(error).strip()[:300]}"})
        return
    answer({"ready": time.perf_counter() - built, "built": built - begin, **work.about})
    _forget_peak()
    for line in sys.stdin:
        amount = int(line.removeprefix("run "))
        begin = time.perf_counter()
        tokens = work.run(amount)
        answer({"seconds": time.perf_counter() - begin, "tokens": tokens, "peak_memory": _peak()})


def _forget_peak() -> None:
    """Peak memory counts from here (Linux): building and compiling are not part of a step."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    with contextlib.suppress(OSError, AttributeError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -- the side of the contest ------------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """One program: `script` of this folder, run by the interpreter `python` with `settings`, asked for `amount` of work
    a round."""

    name: str
    script: str
    settings: Row
    amount: int
    python: str = sys.executable
    ready: Row = field(default_factory=dict)
    rounds: list[Row] = field(default_factory=list)

    def start(self, environment: dict[str, str]) -> bool:
        """Builds and warms up; False, with a line that says why, where that cannot be done."""
        command = [self.python, str(FOLDER / self.script), json.dumps(self.settings)]
        self.said = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  # lives as long as the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True, env=environment
        )
        self.ready = self._answer()
        if "absent" in self.ready:
            say(f"left out: {self.name}: {self.ready['absent']}")
            self.stop()
        return "absent" not in self.ready

    def turn(self) -> None:
        """One round of work."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: there is no answer then
            self.process.stdin.write(f"run {self.amount}\n")
            self.process.stdin.flush()
        self.rounds.append(self._answer())

    def stop(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Row:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.said.seek(0)
        last = self.said.read().strip().splitlines()[-1:] or ["it ended without a word"]
        return {"absent": last[0]}

    def row(self, reference: Contestant) -> Row:
        """Its line of the table, beside the speed of the `reference`, which is ours."""
        speeds = self._speeds()
        return {
            "contestant": self.name,
            "tokens/s": round(statistics.median(speeds)),
            "least": round(min(speeds)),
            "most": round(max(speeds)),
            "ours / it": round(statistics.median(reference._speeds()) / statistics.median(speeds), 2),
            "warm-up s": round(self.ready["ready"], 1),
            "peak MiB": round(max(each["peak_memory"] for each in self.rounds) / 2**20),
            "remarks": self.ready["remarks"],
        }

    def _speeds(self) -> list[float]:
        return [each["tokens"] / each["seconds"] for each in self.rounds]


def contest(title: str, contestants: Sequence[Contestant], given: argparse.Namespace, **held: Any) -> None:
    """Interleaves the rounds of those that can be started and publishes their table; the first one is what the others
    are compared with. `held`: what is the same for all."""
    about = machine()
    chosen = [one for one in contestants[1:] if any(word in one.name for word in given.only)]
    present = _play([contestants[0], *chosen], given.rounds)
    versions = {name: "/".join(sorted({str(one.ready[name]) for one in present})) for name in ("threads", "torch")}
    rows = [one.row(contestants[0]) for one in present]
    publish(given.results, title, rows, {**about, **versions, "rounds": given.rounds, **held})


def _play(contestants: Sequence[Contestant], rounds: int) -> list[Contestant]:
    """Those that were there to the end, the first one among them."""
    present: list[Contestant] = []
    with contextlib.ExitStack() as caches:
        try:
            for one in contestants:
                if one.start(caches.enter_context(fresh_caches())):
                    say(f"ready: {one.name}, after {one.ready['ready']:.1f} s")
                    present.append(one)
            for number in range(rounds):
                for one in list(present):
                    one.turn()
                    if "absent" in one.rounds[-1]:
                        say(f"left out: {one.name}: {one.rounds.pop()['absent']}")
                        present.remove(one)
                say(f"round {number + 1} of {rounds} is done")
        finally:
            for one in present:
                one.stop()
    if contestants[0] not in present:
        raise SystemExit(f"{contestants[0].name} did not get through: there is nothing to compare with.")
    return present


@contextlib.contextmanager
def fresh_caches() -> Iterator[dict[str, str]]:
    """The environment with empty compile and corpus caches, so that every warm-up is a cold one."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "HOMESPUN_CACHE": f"{folder}/homespun"}
        yield os.environ | caches


# -- what comes out ---------------------------------------------------------------------------------------------------


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="the folder of the tables")
    return parser


def peer_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options of those that have peers."""
    parser.add_argument("--nanogpt", metavar="PATH", help="a clone of nanoGPT; without it nanoGPT is left out")
    parser.add_argument(
        "--peers-python",
        metavar="PATH",
        default=sys.executable,
        help="the interpreter of an environment with benchmarks/requirements.txt (default: this one)",
    )
    return parser


def contest_options(description: str | None) -> argparse.ArgumentParser:
    """The options of a contest."""
    parser = peer_options(options(description))
    parser.add_argument("--only", nargs="+", default=[""], help="contestants with one of these words in their names")
    return parser


def peer(given: argparse.Namespace, name: str, settings: Row, amount: int) -> Contestant:
    """A contestant of peers.py, in its own environment; `plain` needs nothing but torch."""
    python = sys.executable if settings["model"] == "plain" else given.peers_python
    return Contestant(name, "peers.py", settings | {"nanogpt": given.nanogpt}, amount, python)


def say(sentence: str) -> None:
    """For the person who waits; the results alone go to standard output."""
    print(sentence, file=sys.stderr, flush=True)


def machine() -> Row:
    """What the figures depend on: call it before the work begins. Says so where the machine is not quiet."""
    load = os.getloadavg()[0]
    if load > QUIET and (busy := _busy()) > QUIET / 2:  # the average alone remembers the benchmark before this one
        said = f"warning: {busy:.1f} cores are busy (load {load:.1f})"
        say(f"{said}; with company on the machine no figure can be trusted")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _processor(),
        "cores": cores,
        "load": round(load, 2),
    }


def _busy() -> float:
    """How many cores worked during one second from now (Linux; elsewhere the load average)."""

    def idle() -> float:
        fields = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
        return (int(fields[3]) + int(fields[4])) / os.sysconf("SC_CLK_TCK")

    try:
        before, begin = idle(), time.perf_counter()
        time.sleep(1)
        return max(0.0, (os.cpu_count() or 1) - (idle() - before) / (time.perf_counter() - begin))
    except OSError:
        return os.getloadavg()[0]


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def publish(folder: Path, title: str, rows: Sequence[Row], about: Row) -> Path:
    """Prints each row as a line of JSON and writes the table under `title` into this machine's file of the day.

    `about`: what `machine` said, and whatever else holds for all rows.
    """
    for row in rows:
        print(json.dumps({"benchmark": title, **row, **about}), flush=True)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{about['cpu']} {about['cores']} cores".lower()).strip("-")
    path = folder / f"{about['date']}-{slug}.md"
    held = ", ".join(f"{name} {value}" for name, value in about.items() if name not in ("cpu", "cores", "date"))
    write_section(path, f"# {about['date']}: {about['cpu']}, {about['cores']} cores", title, f"{table(rows)}\n\n{held}")
    say(f"written: {path}")
    return path


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown; the headings are the keys of the first one."""
    headings = list(rows[0])
    lines = [headings, ["---"] * len(headings), *([_cell(row[name]) for name in headings] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)


def write_section(path: Path, heading: str, title: str, body: str) -> None:
    """Puts `body` under `## title` in the file, in the place of an earlier one; a new file begins with `heading`."""
    text = path.read_text(encoding="utf-8") if path.is_file() else f"{heading}\n"
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    new = f"{title}\n\n{body.strip()}\n"
    place = next((at for at, section in enumerate(sections) if section.split("\n", 1)[0] == title), len(sections))
    sections[place : place + 1] = [new]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n## ".join(part.rstrip() + "\n" for part in (head, *sections)), encoding="utf-8")
