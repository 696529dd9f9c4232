"""A very small trained run that keeps learning, and texts for it."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path

import homespun as hs
from homespun.learn.autonomous import Learned, Learner, Limits
from homespun.learn.settings import LearnConfig
from homespun.train.log import PlainConsole, read_metrics
from tests.train import house

SETTINGS = LearnConfig(cycle_tokens=1500, evaluate_tokens=1024, reservoir_tokens=20_000, poll=0.02, wait=0.0)


def trained(place: Path) -> Path:
    """The folder of a run that read a few stories."""
    hs.train("stories:60", house.RECIPE, place, console=PlainConsole(quiet=True))
    return place


def copy(run: Path, place: Path) -> Path:
    """A run of one's own."""
    shutil.copytree(run, place, ignore=shutil.ignore_patterns(".lock"))
    return place


def sums(count: int, seed: int = 0) -> list[str]:
    """Texts of another kind than stories, each different from the others."""
    draw = random.Random(seed)
    lines = [
        f"{a} plus {b} is {a + b}."
        for a, b in ((draw.randrange(10**6), draw.randrange(10**6)) for _ in range(9 * count))
    ]
    return ["\n".join(lines[9 * i : 9 * i + 9]) for i in range(count)]


def write_rows(path: Path, texts: list[str]) -> None:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def open_learner(run: Path, settings: LearnConfig = SETTINGS, say=lambda sentence: None) -> Learner:
    """A learner of a run, from its newest checkpoint."""
    loaded = hs.load(run)
    return Learner(run, loaded.recipe, loaded.tokenizer, loaded.model, settings, say=say)


def learn(run: Path, *sources: object, settings: LearnConfig = SETTINGS, **limits) -> Learned:
    """Learns from the sources until nothing is left, or a limit is reached."""
    learner = open_learner(run, settings)
    try:
        return asyncio.run(learner.run([str(source) for source in sources], Limits(**limits)))
    finally:
        learner.close()


def consistent(run: Path, texts: list[str]) -> dict[str, int]:
    """Checks that journal, checkpoints and metrics tell one story, in which each text occurs once; how many texts there
    are of each state."""
    from homespun.learn.dedup import clean, content_key
    from homespun.learn.journal import JOURNAL, Journal
    from homespun.train.checkpoint import Checkpoints

    journal = Journal(run / JOURNAL)
    items = journal.rows("SELECT key, state, cycle, tokens FROM items")
    assert sorted(row["key"] for row in items) == sorted({content_key(clean(text)) for text in texts})
    cycles = {row["id"]: row for row in journal.rows("SELECT * FROM cycles ORDER BY id")}
    kept = [row for row in cycles.values() if row["state"] == "kept"]
    assert all(row["state"] in ("kept", "refused", "stopped", "undone") for row in cycles.values())
    assert [row["base_step"] for row in kept[1:]] == [row["step"] for row in kept[:-1]]
    learned = [row for row in items if row["state"] == "learned"]
    assert {row["cycle"] for row in learned} == {row["id"] for row in kept}
    for row in kept:
        assert row["new_tokens"] == sum(item["tokens"] for item in learned if item["cycle"] == row["id"])
    checkpoints = Checkpoints(run / "checkpoints")
    _, state = checkpoints.read(checkpoints.find("last", lambda note: None))
    rows = [row["cycle"] for row in read_metrics(run / "metrics.jsonl") if "cycle" in row and "loss" in row]
    assert rows == [row["id"] for row in kept]
    if kept:
        assert state["progress"]["step"] == kept[-1]["step"] and state["learner"]["cycle"] == kept[-1]["id"]
    spans = journal.rows("SELECT item FROM spans WHERE item IS NOT NULL AND side = 'replay'")
    assert len({row["item"] for row in spans}) == len(spans)
    journal.close()
    states = [row["state"] for row in items]
    return {state: states.count(state) for state in states}
