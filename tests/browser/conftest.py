"""A real server with very small runs, and Debian's Chromium to look at its pages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import homespun as hs
from tests.browser.watched import Watched
from tests.learn import learners
from tests.serve.process import Process

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SMALL = ("model.width=32", "model.layers=2", "model.attention.heads=2", "model.context=64", "train.batch_tokens=256",
         "train.steps=50", "train.evaluate_tokens=1024", "train.precision=fp32", "train.compile=off",
         "tokenizer.kind=bytes")  # fmt: skip
EXPERTS = ("model.feed_forward.kind=experts", "model.feed_forward.experts=4", "model.feed_forward.hidden=16",
           "model.feed_forward.dense_layers=[0]")  # fmt: skip


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`small`, its twin `other`, the mixture `experts`, `growing`, which is only being trained, and `learner`, which
    has learned from two sources since."""
    place = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMESPUN_CACHE", str(place / "cache"))
        for name, more in {"small": (), "other": ("train.seed=7",), "experts": EXPERTS}.items():
            hs.train("stories:40", hs.recipe("house-tiny", *SMALL, *more), out=place / name)
    shutil.copytree(place / "experts", place / "growing", ignore=shutil.ignore_patterns("checkpoints", "*.jsonl"))
    learners.copy(place / "small", place / "learner")
    learners.write_rows(place / "sums.jsonl", [*learners.sums(12), *learners.sums(3), "short"])
    learners.write_rows(
        place / "notes.jsonl", [f"On day {day} it rained {day * day} drops in the town." for day in range(20)]
    )
    sources = [f"{domain}={place / domain}.jsonl" for domain in ("sums", "notes")]
    learn = [sys.executable, "-m", "homespun", "learn", str(place / "learner"), *sources, "--quiet"]
    subprocess.run([*learn, "learn.cycle_tokens=1000", "learn.gate=false", "learn.evaluate_tokens=1024"], check=True)
    return {name: place / name for name in ("small", "other", "experts", "growing", "learner")}


@pytest.fixture(scope="session")
def server(runs: dict[str, Path]) -> Iterator[Process]:
    """`homespun serve` with all runs, in a process of its own."""
    process = Process(*runs.values())
    yield process
    assert "Traceback" not in process.end()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install .[browser]")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium on the path: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser, server: Process) -> Iterator[Callable[..., Watched]]:
    """Opens a page of the server: `visit("/live", color_scheme="dark")`; what it did is judged at the end."""
    opened: list[Watched] = []

    def open_page(path: str = "/", script: str | None = None, **settings: Any) -> Watched:
        context = chromium.new_context(base_url=server.address, **settings)
        context.set_default_timeout(20_000)
        watched = Watched(context.new_page(), server)
        opened.append(watched)
        if script is not None:
            watched.page.add_init_script(script)
        watched.page.goto(path)
        return watched

    yield open_page
    for watched in opened:
        watched.page.context.close()
    for watched in opened:
        assert watched.foreign == []
        assert watched.complaints == []
