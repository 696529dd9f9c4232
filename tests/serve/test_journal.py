"""What a learner's journal tells to the page: whole, missing, damaged, and while it is written."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from homespun.learn.journal import Journal
from homespun.serve.learning import CLOSING
from tests.serve.conftest import Client

PATH = "/v1/runs/young/learning"
CYCLE = "INSERT INTO cycles (state, opened, base_step, new_tokens, learning_rate, figures) VALUES (?, 1, 0, 9, 0.1, ?)"


@pytest.fixture
def young(runs: list[Path], tmp_path: Path) -> Path:
    """A run without a checkpoint."""
    folder = tmp_path / "young"
    folder.mkdir()
    (folder / "recipe.yaml").write_bytes((runs[0] / "recipe.yaml").read_bytes())
    return folder


@pytest.fixture
def journal(young: Path) -> Iterator[Journal]:
    made = Journal(young / "learn" / "journal.sqlite")
    yield made
    made.close()


def test_a_run_without_a_journal_says_what_to_do(client: Client, young: Path) -> None:
    asking = client([young])
    answer = asking.get(PATH)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "no_journal"
    assert "homespun learn RUN SOURCE" in answer.json()["error"]["message"]
    assert asking.get("/v1/runs/none/learning").json()["error"]["code"] == "not_found"
    assert asking.get("/v1/runs").json()["runs"][0]["learning"] is False


def test_the_story_is_told_while_it_is_written(client: Client, young: Path, journal: Journal) -> None:
    asking = client([young])
    first = asking.get(PATH).json()
    assert (first["cycles"], first["texts"], first["ended"]) == ([], {}, False) and first["quiet"] < 60
    assert "run" not in first and str(young) not in json.dumps(first)
    with journal.transaction():
        journal.source("notes", "diary")
        journal.run(CYCLE, "open", None)
        assert asking.get(PATH).json()["cycles"] == [], "what is not finished yet is not seen"
    told = asking.get(PATH).json()
    assert told["sources"][0]["domain"] == "diary" and told["cycles"][0]["state"] == "open"
    assert set(told["texts"]) <= set(told["states"])
    journal.note("end", "Ended.")
    assert asking.get(PATH).json()["ended"] is True
    journal.run("UPDATE events SET time = ?", time.time() - 2 * CLOSING)
    assert asking.get(PATH).json()["ended"] is False, "it was written to since: another learner is at work"


def test_only_the_newest_cycles_are_told_and_no_number_that_json_lacks(
    client: Client, young: Path, journal: Journal
) -> None:
    figures = '{"before": {}, "after": {"corpus": {"bits_per_byte": NaN, "loss": Infinity}}}'
    with journal.transaction():
        for _ in range(250):
            journal.run(CYCLE, "kept", figures)
    answer = client([young]).get(PATH)
    assert [cycle["id"] for cycle in answer.json()["cycles"]] == list(range(51, 251))
    assert answer.json()["cycles"][0]["figures"]["after"] == {"corpus": {"bits_per_byte": None, "loss": None}}


@pytest.mark.parametrize(
    "damage",
    ["DROP TABLE cycles", "DROP TABLE events",
     "INSERT INTO cycles VALUES (1, 'kept', 1, 1, 1, 1, 1, 1, 1, 1, 1, 'x', '')",
     "INSERT INTO cycles VALUES (1, 'kept', 1, 1, 1, 1, 1, 1, 1, 1, 1, '[]', '')",
     "INSERT INTO cycles VALUES (1, 'kept', 1, 1, 1, 1, 1, 1, 1, 1, 1, '{\"before\": 3}', '')",
     "INSERT INTO cycles VALUES (1, 'kept', 1, 1, 1, 1, 1, 1, 1, 1, 1, NULL, x'ff')",
     "INSERT INTO cycles VALUES (1, CAST(x'ff' AS TEXT), 1, 1, 1, 1, 1, 1, 1, 1, 1, NULL, '')",
     "INSERT INTO events VALUES (1, 'noon', 'end', '')"],
)  # fmt: skip
def test_a_journal_of_another_make_is_told(client: Client, young: Path, journal: Journal, damage: str) -> None:
    journal.run("INSERT INTO spans (domain, side, priority, tokens, ids) VALUES ('corpus', 'held', 1, 1, '')")
    journal.run(damage)
    refused(client([young]).get(PATH))


@pytest.mark.parametrize("data", [b"", b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_journal_is_told(client: Client, young: Path, data: bytes) -> None:
    (young / "learn").mkdir()
    (young / "learn" / "journal.sqlite").write_bytes(data)
    refused(client([young]).get(PATH))
    assert (young / "learn" / "journal.sqlite").read_bytes() == data


def test_a_cut_journal_is_told_and_left_as_it_is(client: Client, young: Path, journal: Journal) -> None:
    with journal.transaction():
        for _ in range(300):
            journal.run(CYCLE, "kept", json.dumps({"before": {}, "after": {}}))
    journal.close()
    with journal.path.open("r+b") as file:
        file.truncate(journal.path.stat().st_size // 2)
    cut = journal.path.read_bytes()
    refused(client([young]).get(PATH))
    assert journal.path.read_bytes() == cut


def test_looking_writes_nothing(client: Client, young: Path, journal: Journal) -> None:
    journal.close()
    before = journal.path.read_bytes()
    then = time.time() - 500
    os.utime(journal.path, (then, then))
    asking = client([young])
    for _ in range(3):
        assert asking.get(PATH).json()["quiet"] > 400
    assert journal.path.read_bytes() == before
    with closing(sqlite3.connect(journal.path)) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def refused(answer: Any) -> None:
    error = answer.json()["error"]
    assert answer.status_code == 409 and error["code"] == "journal_damaged", error
    assert "/" not in error["message"]
