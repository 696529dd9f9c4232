"""The learner: what is new is learned once, what is old stays, and a kill costs nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import homespun as hs
from homespun.errors import CheckpointError, DataError
from homespun.learn.autonomous import JOURNAL, Limits
from homespun.learn.journal import Journal
from homespun.learn.spool import folder_of, put
from homespun.learn.status import status
from tests.learn.learners import SETTINGS, consistent, copy, learn, open_learner, sums, write_rows
from tests.train.forks import ended, fork, killed_at, needs_fork

ALWAYS = SETTINGS.model_copy(update={"gate": False, "replay": 0.2})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return hs.load(run).model.state_dict()


def test_new_text_is_learned_and_the_old_is_not_forgotten(run: Path, tmp_path: Path) -> None:
    texts = sums(60)
    write_rows(tmp_path / "sums.jsonl", texts)
    done = learn(run, tmp_path / "sums.jsonl", settings=SETTINGS.model_copy(update={"cycle_tokens": 5000}))
    assert done.reason == "done" and done.kept and not done.waiting
    states = consistent(run, texts)
    assert states["learned"] > 10 and states["held"] >= 1
    told = {each["domain"]: each for each in status(run)["domains"]}
    assert told["sums"]["now"] < 0.95 * told["sums"]["first"]
    assert told["corpus"]["now"] < 1.02 * told["corpus"]["first"]
    assert hs.load(run).step == done.step
    again = learn(run, tmp_path / "sums.jsonl")
    assert (again.kept, again.step) == (0, done.step)


def test_a_cycle_that_does_harm_is_taken_back(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(20))
    before = weights(run)
    wild = SETTINGS.model_copy(update={"learning_rate": 1e5, "tries": 2})
    done = learn(run, tmp_path / "sums.jsonl", settings=wild)
    assert done.kept == 0 and done.refused >= 2 and not done.waiting
    after = weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    cycles = status(run)["cycles"]
    assert all("rose" in each["reason"] or "fall" in each["reason"] or "finite" in each["reason"] for each in cycles)
    rates = [each["learning_rate"] for each in cycles]
    assert rates[1] == pytest.approx(0.4 * rates[0]) and cycles[1]["replay_tokens"] > cycles[0]["replay_tokens"]
    assert status(run)["texts"]["refused"] > 0


def test_without_replay_the_old_is_forgotten_and_the_gate_says_so(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(30))
    hard = {"learning_rate": 1.0, "passes": 5, "cycle_tokens": 20_000, "tolerance": 0.01, "tries": 1}
    alone = learn(run, tmp_path / "sums.jsonl", settings=SETTINGS.model_copy(update=hard | {"replay": 0.0}))
    assert (alone.kept, alone.refused) == (0, 1)
    (cycle,) = status(run)["cycles"]
    assert cycle["reason"].startswith("The loss on corpus rose") and cycle["replay_tokens"] == 0


@needs_fork
def test_ten_kills_at_random_moments_lose_and_repeat_nothing(run: Path, tmp_path: Path) -> None:
    texts, rows = sums(20), sums(30, seed=1)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    write_rows(tmp_path / "rows.jsonl", rows)
    left = sums(10, seed=2)
    for text in left:
        put(run, text)
    draw = random.Random(os.getpid())
    work = lambda: learn(run, folder, tmp_path / "rows.jsonl", settings=ALWAYS)  # noqa: E731
    kills = 0
    for _ in range(10):
        child = fork(work)
        time.sleep(draw.uniform(0.05, 0.8))
        os.kill(child, signal.SIGKILL)
        kills += ended(child) == -signal.SIGKILL
    assert kills
    assert ended(fork(work)) == 0
    states = consistent(run, [*texts, *rows, *left])
    assert set(states) <= {"learned", "held"} and states["learned"] > 40
    assert not list(folder_of(run).glob("*"))


@pytest.mark.slow
@needs_fork
def test_a_kill_before_any_change_of_the_disk_loses_and_repeats_nothing(run: Path, tmp_path: Path) -> None:
    texts = sums(8)
    write_rows(tmp_path / "sums.jsonl", texts)
    moment, died = 0, 0
    while True:
        place = copy(run, tmp_path / f"run{moment}")
        if not killed_at(moment, lambda place=place: learn(place, tmp_path / "sums.jsonl", settings=ALWAYS)):  # type: ignore[misc]
            break
        died += 1
        learn(place, tmp_path / "sums.jsonl", settings=ALWAYS)
        states = consistent(place, texts)
        assert set(states) <= {"learned", "held"}, moment
        shutil.rmtree(place)
        moment += 7
    assert died > 5


def test_a_cycle_whose_checkpoint_is_lost_is_learned_again(run: Path, tmp_path: Path) -> None:
    texts = sums(40)
    write_rows(tmp_path / "sums.jsonl", texts)
    done = learn(run, tmp_path / "sums.jsonl", settings=ALWAYS)
    assert done.kept > 1
    newest = run / "checkpoints" / f"step-{done.step:08d}"
    (newest / "model.safetensors").write_bytes(b"damaged")
    again = learn(run, tmp_path / "sums.jsonl", settings=ALWAYS)
    assert again.kept == 1 and again.step == done.step
    consistent(run, texts)
    assert status(run)["decisions"]["undone"] == 1


def test_the_same_texts_give_the_same_bits(base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(20))
    one, other = (copy(base, tmp_path / name) for name in ("one", "other"))
    for place in (one, other):
        learn(place, tmp_path / "sums.jsonl", settings=ALWAYS.model_copy(update={"cycle_tokens": 10**6}))
    a, b = weights(one), weights(other)
    assert all(torch.equal(a[name], b[name]) for name in a)


@needs_fork
def test_one_process_learns_at_a_time(run: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def hold() -> None:
        open_learner(run)
        ready.touch()
        time.sleep(60)

    child = fork(hold)
    try:
        end = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(CheckpointError, match="Another process"):
            open_learner(run)
    finally:
        os.kill(child, signal.SIGKILL)
        ended(child)


def test_what_comes_while_it_watches_is_learned(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    texts = sums(30)
    learner = open_learner(run, ALWAYS.model_copy(update={"cycle_tokens": 10**6}))

    async def live() -> None:
        task = asyncio.create_task(learner.run([str(folder)], Limits(watch=True, cycles=2)))
        for part in (texts[:15], texts[15:]):
            with open(folder / "log.jsonl", "a") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in part)
            while learner.journal.value("SELECT count(*) FROM items") < len(part):
                assert not task.done() or not task.result()
                await asyncio.sleep(0.01)
            cycles = learner.study.kept
            while learner.study.kept == cycles and not task.done():
                await asyncio.sleep(0.01)
        assert (await task).reason == "cycles"

    asyncio.run(asyncio.wait_for(live(), 120))
    learner.close()
    assert consistent(run, texts)["learned"] > 20


def test_a_full_queue_makes_its_sources_wait(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(150))
    learner = open_learner(run, ALWAYS.model_copy(update={"queue": 20, "cycle_tokens": 10**6}))
    seen: list[int] = []

    def cycle(stop: object) -> None:
        time.sleep(0.1)  # time in which more could come
        seen.append(learner.journal.queued()[0])
        learner.journal.run("UPDATE items SET state = 'known' WHERE state = 'waiting'")

    learner.study.cycle = cycle  # type: ignore[assignment,method-assign]
    asyncio.run(learner.run([str(tmp_path / "sums.jsonl")]))
    learner.close()
    assert seen == [64, 64, 22]  # one part after the other


def test_a_rate_and_the_minutes_are_kept(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(500))
    slow = ALWAYS.model_copy(update={"characters_per_minute": 1000, "cycle_tokens": 10**6})
    done = learn(run, tmp_path / "sums.jsonl", settings=slow, minutes=0.01)
    assert done.reason == "minutes" and done.waiting == 64  # one part


def test_a_full_disk_budget_ends_it(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(10))
    done = learn(run, tmp_path / "sums.jsonl", settings=ALWAYS.model_copy(update={"disk": 1000}))
    assert done.reason == "disk" and done.kept == 0


def test_what_the_model_knows_well_is_passed_over(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(10))
    done = learn(run, tmp_path / "sums.jsonl", settings=ALWAYS.model_copy(update={"known": 1.0, "shortest": 1}))
    journal = Journal(run / JOURNAL)
    for row in journal.rows("SELECT state, novelty FROM items"):
        assert (row["state"] == "known") == (row["novelty"] < 0)
    journal.close()
    assert done.waiting == 0


def test_a_text_alone_waits_for_another(run: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(sums(1)[0])
    done = learn(run, tmp_path / "one.txt")
    assert (done.reason, done.kept, done.waiting) == ("done", 0, 1)


def test_a_source_that_fails_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        learn(run, tmp_path / "absent.txt")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\0\0\0\0\0\0\0\0\0")
    learn(run, tmp_path / "picture.txt")
    assert "no text" in status(run)["sources"][0]["problem"]
