"""`homespun learn`: learning, its story, its queue, its mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.learn.learners import sums, write_rows

QUICK = ("learn.cycle_tokens=4000", "learn.evaluate_tokens=1024", "learn.gate=false")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    place = tmp_path / "run"
    shutil.copytree(trained, place, ignore=shutil.ignore_patterns(".lock"))
    return place


def test_a_run_learns_and_tells_its_story(homespun: Command, run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(30))
    assert homespun("learn", run, "--status").code == 2
    done = homespun("learn", run, f"numbers={tmp_path / 'sums.jsonl'}", *QUICK)
    assert done.code == 0 and "is kept: The loss on numbers fell" in done.out
    told = homespun("learn", run, "--status").out
    assert "numbers" in told and "corpus" in told and "held out" in told
    story = json.loads(homespun("learn", run, "--status", "--json").out)
    assert story["texts"]["learned"] + story["texts"]["held"] == 30
    assert story["decisions"]["kept"] == len(story["cycles"]) >= 1
    before, after = (story["cycles"][0]["figures"][when]["numbers"]["loss"] for when in ("before", "after"))
    assert after < before
    ended = json.loads(homespun("learn", run, f"numbers={tmp_path / 'sums.jsonl'}", "--json", *QUICK).out)
    assert ended["kept"] == 0 and ended["reason"] == "done"


def test_other_processes_fill_its_queue(homespun: Command, run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(20))
    assert "20 texts wait" in homespun("learn", run, tmp_path / "sums.jsonl", "--put").out
    done = homespun("learn", run, "--watch", "--cycles", "1", "learn.wait=0", "--json", *QUICK)
    assert json.loads(done.out)["kept"] == 1


def test_mistakes_are_told(homespun: Command, run: Path, tmp_path: Path) -> None:
    assert "No source was named" in homespun("learn", run).err
    assert "There is no run" in homespun("learn", tmp_path / "absent", "x.txt").err
    assert "cycle_tokens" in homespun("learn", run, "x.txt", "learn.cycle_token=3").err
    assert "does not exist" in homespun("learn", run, tmp_path / "absent.txt").err
