"""The live page: a finished run, and one whose files grow while the page is open."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from homespun.train.log import read_metrics
from tests.browser.watched import Watched, expect

pytestmark = pytest.mark.browser
Visit = Callable[..., Watched]


class Growing:
    """The files of a run in training; the rows are those of a real one."""

    def __init__(self, folder: Path, real: Path):
        self.folder = folder
        self.rows = read_metrics(real / "metrics.jsonl")
        self.samples = read_metrics(real / "samples.jsonl")
        self.clear()

    def clear(self) -> None:
        """Nothing has been measured yet."""
        for name in ("metrics", "samples"):
            (self.folder / f"{name}.jsonl").write_bytes(b"")

    def add(self, name: str, rows: list[dict[str, Any]]) -> None:
        """More rows."""
        with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def age(self, seconds: float) -> None:
        """As if nothing had come for so long."""
        then = time.time() - seconds
        os.utime(self.folder / "metrics.jsonl", (then, then))


@pytest.fixture
def growing(runs: dict[str, Path]) -> Iterator[Growing]:
    grown = Growing(runs["growing"], runs["experts"])
    yield grown
    grown.clear()


def figure(at: Watched, name: str) -> Any:
    return at.find(f".figures div:has(dt:text-is('{name}')) dd")


def state(at: Watched, sentence: str) -> None:
    expect(at.find("#state")).to_have_text(re.compile(f"^{sentence}"))


def pass_until(at: Watched, sentence: str) -> None:
    """Lets the page's clock run fast until it says this."""
    for _ in range(100):
        if re.match(sentence, at.find("#state").inner_text()):
            return
        at.page.clock.run_for(1_000)
        at.page.wait_for_timeout(30)  # for the server's answers, which know no such clock
    state(at, sentence)


def test_a_finished_run(visit: Visit, runs: dict[str, Path]) -> None:
    at = visit("/live")
    at.find("#run").select_option("experts")
    rows = read_metrics(runs["experts"] / "metrics.jsonl")
    last = [row for row in rows if "loss" in row][-1]
    measured = [row for row in rows if "validation_loss" in row][-1]
    expect(figure(at, "Step")).to_contain_text(str(last["step"]))
    expect(figure(at, "Loss")).to_contain_text(f"{last['loss']:.3f}")
    expect(figure(at, "Loss")).to_contain_text(f"validation {measured['validation_loss']:.3f}")
    expect(figure(at, "Bits per byte")).to_contain_text(f"{measured['validation_bits_per_byte']:.3f}")
    titles = at.find("#curves figure:visible h3").all_inner_texts()
    assert titles == ["Loss", "Bits per byte", "Tokens per second", "Learning rate", "Gradient norm",
                      "Excess of the busiest expert"]  # fmt: skip
    expect(at.find("#curves canvas:visible")).to_have_count(6)
    shares = [f"expert {expert} " for expert in range(4)]
    expect(at.find("#expert-charts .plot")).to_have_attribute("aria-label", re.compile(".*".join(shares)))
    newest = read_metrics(runs["experts"] / "samples.jsonl")[-1]
    expect(at.find(".sample .step").first).to_have_text(f"step {newest['step']}")
    at.find("#run").select_option("small")
    expect(at.find("#experts")).to_be_hidden()
    expect(at.find("#curves figure:visible")).to_have_count(5)


def test_a_run_that_grows_while_the_page_is_open(visit: Visit, growing: Growing) -> None:
    at = visit("/live")
    at.find("#run").select_option("growing")
    state(at, "Training has begun|Nothing is measured")
    expect(at.find("#samples")).to_have_text("No samples yet.")
    for part in (growing.rows[:5], growing.rows[5:12], growing.rows[12:]):
        growing.add("metrics", part)
        expect(figure(at, "Step")).to_contain_text(str(part[-1]["step"]))
    state(at, "In training$")
    expect(at.find("#curves figure:visible")).to_have_count(6)
    growing.add("samples", growing.samples)
    expect(at.find(".sample .step").first).to_have_text(f"step {growing.samples[-1]['step']}")
    growing.add("samples", [{"step": 99, "prompt": "Once", "text": " <i>upon</i>"}])
    expect(at.find("blockquote").first).to_have_text("Once <i>upon</i>")
    expect(at.find("blockquote mark").first).to_have_text("Once")
    growing.add("metrics", [{"step": 99, "advice": "Rest a little."}])
    expect(at.find("#advice li")).to_contain_text(["parameters", "Rest a little."])


def test_a_run_that_goes_back_to_a_checkpoint(visit: Visit, growing: Growing) -> None:
    growing.add("metrics", growing.rows)
    growing.add("samples", growing.samples)
    at = visit("/live")
    at.find("#run").select_option("growing")
    expect(figure(at, "Step")).to_contain_text(str(growing.rows[-1]["step"]))
    growing.clear()
    growing.add("metrics", growing.rows[:4])
    expect(figure(at, "Step")).to_contain_text(f"{growing.rows[3]['step']}")
    expect(figure(at, "Step")).not_to_contain_text(str(growing.rows[-1]["step"]))
    expect(at.find(".sample")).to_have_count(0)
    steps = at.find("#curves .plot").first
    expect(steps).to_have_attribute("aria-valuemax", str(growing.rows[3]["step"]))


def test_steps_that_are_done_again_stand_there_once(visit: Visit, growing: Growing) -> None:
    growing.add("metrics", growing.rows)
    at = visit("/live")
    at.find("#run").select_option("growing")
    expect(figure(at, "Step")).to_contain_text(str(growing.rows[-1]["step"]))
    again = [row for row in growing.rows if "loss" in row][9:15]
    growing.add("metrics", again)
    expect(at.find("#curves .plot").first).to_have_attribute("aria-valuemax", str(again[-1]["step"]))
    expect(figure(at, "Step")).to_contain_text(str(again[-1]["step"]))


def test_it_says_when_nothing_comes(visit: Visit, growing: Growing) -> None:
    growing.add("metrics", growing.rows[:5])
    at = visit("about:blank")
    at.page.clock.install()
    at.page.goto("/live")
    at.find("#run").select_option("growing")
    state(at, "In training$")
    pass_until(at, "In training, but nothing has come for a while$")
    expect(at.find("#age")).to_have_text(re.compile(r"^\(\d+ s\)$"))
    growing.age(120)
    pass_until(at, "Not in training")
    growing.add("metrics", growing.rows[5:])
    pass_until(at, "In training$")


def test_it_tries_again_when_the_server_is_gone(visit: Visit) -> None:
    at = visit("/live")
    at.find("#run").select_option("small")
    expect(figure(at, "Step")).to_be_visible()
    at.page.route("**/v1/**", lambda route: route.abort())
    expect(at.find("#problem")).to_have_text("The server cannot be reached. Trying again.")
    at.page.unroute("**/v1/**")
    expect(at.find("#problem")).to_have_text("")
    assert all("ERR_FAILED" in complaint for complaint in at.complaints)
    at.complaints.clear()


def test_steps_may_be_spaced_by_their_logarithm(visit: Visit) -> None:
    at = visit("/live")
    at.find("#run").select_option("small")
    plot = at.find("#curves .plot").first
    expect(plot.locator("canvas")).to_be_visible()
    at.redrawn(plot, at.find("label[for=axis-log]").click)
    at.page.reload()
    expect(at.find("#axis-log")).to_be_checked()


def test_the_arrow_keys_read_a_curve(visit: Visit, runs: dict[str, Path]) -> None:
    at = visit("/live")
    at.find("#run").select_option("small")
    rows = [row for row in read_metrics(runs["small"] / "metrics.jsonl") if "loss" in row]
    plot = at.find("#curves .plot").first
    expect(plot).to_have_attribute("aria-valuenow", str(rows[-1]["step"]))
    plot.focus()
    at.page.keyboard.press("Home")
    expect(plot).to_have_attribute("aria-valuetext", re.compile(rf"^step 1: training {rows[0]['loss']:.3f}"))
    at.page.keyboard.press("ArrowRight")
    expect(plot).to_have_attribute("aria-valuenow", "2")
    expect(plot.locator(".u-legend .u-value").first).to_have_text("2")
