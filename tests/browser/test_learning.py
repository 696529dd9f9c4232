"""The learner's page: what a journal tells, while a learner writes to it."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from homespun.learn.status import status
from tests.browser.watched import Watched, expect

pytestmark = pytest.mark.browser
Visit = Callable[..., Watched]

MARKUP = "<img src=x onerror='document.title=1'><script>document.title = 2</script>"


class Journal:
    """The journal of the run, into which a learner would write. What is written is taken back at the end."""

    def __init__(self, folder: Path):
        self.place = folder / "learn" / "journal.sqlite"
        self._kept = self.place.read_bytes()

    def write(self, statement: str, *values: Any) -> None:
        with closing(sqlite3.connect(self.place)) as base, base:
            base.execute(statement, values)

    def put_back(self) -> None:
        for each in self.place.parent.glob("journal.sqlite*"):
            each.unlink()
        self.place.write_bytes(self._kept)


@pytest.fixture
def journal(runs: dict[str, Path]) -> Iterator[Journal]:
    found = Journal(runs["learner"])
    yield found
    found.put_back()


def opened(visit: Visit, run: str = "learner", **settings: Any) -> Watched:
    at = visit("/learn", **settings)
    at.find("#run").select_option(run)
    return at


def figure(at: Watched, name: str) -> Any:
    return at.find(f".figures div:has(dt:text-is('{name}')) dd")


def count(at: Watched, meaning: str) -> Any:
    return at.find(f"#texts div:has(dt:text-is('{meaning}')) dd")


def test_it_tells_what_the_status_tells(visit: Visit, runs: dict[str, Path]) -> None:
    story = status(runs["learner"], 100)
    at = opened(visit)
    expect(count(at, "learned")).to_have_text(str(story["texts"]["learned"]))
    expect(count(at, "held out")).to_have_text(str(story["texts"]["held"]))
    expect(count(at, "repeated word for word")).to_have_text("3")
    expect(count(at, "unclean or too short")).to_have_text("1")
    expect(figure(at, "Cycles kept")).to_have_text(f"{story['decisions']['kept']}0 refused")
    expect(at.find("#sources tbody tr")).to_have_count(len(story["sources"]))
    rows = at.find("#domains tbody tr").all_inner_texts()
    assert len(rows) == len(story["domains"]) >= 3
    for row, domain in zip(rows, story["domains"], strict=True):
        assert domain["domain"] in row and f"{domain['now']:.3f}" in row
    cards = at.find(".cycle")
    expect(cards).to_have_count(len(story["cycles"]))
    for number, cycle in enumerate(reversed(story["cycles"])):
        expect(cards.nth(number)).to_contain_text(f"Cycle {cycle['id']} kept")
        expect(cards.nth(number)).to_contain_text(cycle["reason"])
    expect(at.find("#state")).to_have_text("No learner is at work. The page goes on looking.")


def test_the_arrow_keys_read_how_each_domain_stood(visit: Visit, runs: dict[str, Path]) -> None:
    cycles = status(runs["learner"], 100)["cycles"]
    at = opened(visit)
    plot = at.find("#curves .plot")
    expect(plot).to_be_visible()  # it is hidden while another run is chosen, or the same anew
    expect(plot).to_have_attribute("aria-valuenow", str(cycles[-1]["id"]))
    plot.focus()
    at.page.keyboard.press("Home")
    first = cycles[0]["figures"]["before"]["corpus"]["bits_per_byte"]
    expect(plot).to_have_attribute("aria-valuetext", re.compile(rf"^cycle 0: .*corpus {first:.2f}"))
    at.page.keyboard.press("ArrowRight")
    expect(plot).to_have_attribute("aria-valuenow", "1")


def test_what_is_read_stays_when_more_comes(visit: Visit, journal: Journal, runs: dict[str, Path]) -> None:
    last = status(runs["learner"], 100)["cycles"][-1]
    at = opened(visit)
    plot = at.find("#curves .plot")
    expect(plot).to_be_visible()  # it is hidden while another run is chosen, or the same anew
    expect(plot).to_have_attribute("aria-valuenow", str(last["id"]))
    plot.press("Home")
    expect(plot).to_have_attribute("aria-valuenow", "0")
    columns = "(id, state, opened, closed, base_step, new_tokens, learning_rate, figures)"
    journal.write(f"INSERT INTO cycles {columns} VALUES (?, 'kept', 1, 2, 9, 50, 0.1, ?)",
                  last["id"] + 1, json.dumps(last["figures"]))  # fmt: skip
    expect(plot).to_have_attribute("aria-valuemax", str(last["id"] + 1))
    expect(plot).to_have_attribute("aria-valuenow", "0")
    plot.press("End")
    expect(plot).to_have_attribute("aria-valuenow", str(last["id"] + 1))


def test_it_grows_while_a_learner_works(visit: Visit, journal: Journal, runs: dict[str, Path]) -> None:
    at = opened(visit)
    cycles = status(runs["learner"], 100)["cycles"]
    expect(at.find(".cycle")).to_have_count(len(cycles))
    number = cycles[-1]["id"] + 1
    opening = "INSERT INTO cycles (id, state, opened, base_step, new_tokens, learning_rate)"
    journal.write(f"{opening} VALUES (?, 'open', ?, 9, 50, 0.1)", number, time.time())
    journal.write("INSERT INTO events (time, kind, text) VALUES (?, 'start', 'Begun anew.')", time.time())
    expect(at.find("#state")).to_have_text(f"Cycle {number} is at work")
    expect(at.find(".cycle").first).to_contain_text("at work")
    figures = json.dumps(cycles[-1]["figures"])
    journal.write("UPDATE cycles SET state = 'refused', figures = ?, reason = 'It rose.', seconds = 2 WHERE id = ?",
                  figures, number)  # fmt: skip
    expect(at.find(".cycle.refused")).to_contain_text("It rose.")
    expect(figure(at, "Cycles kept")).to_contain_text("1 refused")
    expect(at.find("#events li").first).to_contain_text("Begun anew.")
    expect(at.find("#curves .plot")).to_have_attribute("aria-valuemax", str(number - 1))


def test_what_others_wrote_is_no_markup(visit: Visit, journal: Journal) -> None:
    journal.write("UPDATE sources SET name = ?, domain = ?, problem = ? WHERE id = 1", *[MARKUP] * 3)
    journal.write("UPDATE cycles SET reason = ?, state = ? WHERE id = 1", MARKUP, MARKUP)
    journal.write("INSERT INTO events (time, kind, text) VALUES (1, ?, ?)", MARKUP, MARKUP)
    journal.write("UPDATE spans SET domain = ? WHERE domain = 'notes'", MARKUP)
    at = opened(visit)
    for place in ("#sources", "#domains", "#cycles", "#events"):
        expect(at.find(place)).to_contain_text(MARKUP)
    assert at.find("main img, main script").count() == 0
    assert at.page.title() == "Learning · Homespun"


def test_a_run_without_a_journal_names_the_command(visit: Visit) -> None:
    at = opened(visit, "small")
    expect(at.find("#none")).to_contain_text("homespun learn small SOURCE... --watch")
    expect(at.find("#story")).to_be_hidden()
    at.find("#run").select_option("learner")
    expect(at.find("#story")).to_be_visible()
    expect(at.find("#none")).to_be_hidden()
    at.page.reload()
    expect(at.find("#run")).to_have_value("learner")


def test_a_damaged_journal_is_told_and_looked_at_again(visit: Visit, journal: Journal) -> None:
    at = visit("/learn")
    at.refusals.add(409)
    journal.place.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    at.find("#run").select_option("learner")
    expect(at.find("#problem")).to_contain_text("cannot be read")
    journal.put_back()
    expect(at.find("#problem")).to_have_text("")
    expect(at.find(".cycle").first).to_be_visible()


def test_the_pages_lead_to_each_other(visit: Visit) -> None:
    at = visit("/")
    for name in ("Learning", "Live training", "Learning", "Playground"):
        at.page.get_by_role("link", name=name, exact=True).click()
        expect(at.find("nav [aria-current=page]")).to_have_text(name)


def test_the_colours_of_the_curve_change(visit: Visit) -> None:
    at = opened(visit, color_scheme="light")
    plot = at.find("#curves .plot")
    expect(plot.locator("canvas")).to_be_visible()
    at.redrawn(plot, lambda: at.page.emulate_media(color_scheme="dark"))


def test_the_keyboard_reaches_every_table(visit: Visit, runs: dict[str, Path]) -> None:
    at = opened(visit)
    expect(at.find(".cycle").first).to_be_visible()
    for place in ("#curves .plot", "#domains", "#sources"):
        for _ in range(12):
            if at.find(place).evaluate("part => part === document.activeElement"):
                break
            at.page.keyboard.press("Tab")
        else:
            raise AssertionError(f"no way to {place}")
