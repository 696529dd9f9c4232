"""The learner: what is new is learned once, what is old stays, and a kill costs nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import homespun as hs
from homespun.errors import CheckpointError, DataError
from homespun.learn import cycles
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
    wild = SETTINGS.model_copy(update={"learning_rate": 1e5, "tries": 2, "cycle_tokens": 10**6})  # harm in any share
    done = learn(run, tmp_path / "sums.jsonl", settings=wild)
    assert (done.kept, done.refused, done.waiting, done.step) == (0, 2, 0, hs.load(run).step)
    after = weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = status(run)["cycles"]
    for cycle in (first, second):
        assert "rose" in cycle["reason"] or "fall" in cycle["reason"] or "finite" in cycle["reason"]
    assert second["learning_rate"] == pytest.approx(0.4 * first["learning_rate"])
    assert second["replay_tokens"] / second["new_tokens"] > first["replay_tokens"] / first["new_tokens"]
    assert set(status(run)["texts"]) == {"refused", "held"}


def test_of_a_cycle_that_goes_too_far_a_part_is_kept(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(30))
    bold = {"learning_rate": 1.0, "passes": 5, "cycle_tokens": 20_000, "tries": 1, "replay": 0.0}
    start = weights(run)
    far = learn(copy(run, tmp_path / "far"), tmp_path / "sums.jsonl", settings=ALWAYS.model_copy(update=bold))
    whole = weights(tmp_path / "far")
    (cycle,) = status(tmp_path / "far")["cycles"]
    rise = cycle["figures"]["after"]["corpus"]["loss"] / cycle["figures"]["before"]["corpus"]["loss"] - 1
    assert far.kept == 1 and cycle["figures"]["share"] == 1 and cycle["replay_tokens"] == 0
    assert rise > 0 and cycle["reason"].startswith("The loss on corpus rose")  # what the gate is to prevent
    near = learn(run, tmp_path / "sums.jsonl", settings=SETTINGS.model_copy(update=bold | {"tolerance": rise}))
    (cycle,) = status(run)["cycles"]
    share, part = cycle["figures"]["share"], weights(run)
    assert near.kept == 1 and share in (0.5, 0.25, 0.125)
    assert cycle["figures"]["after"]["corpus"]["loss"] < (1 + rise / 2) * cycle["figures"]["before"]["corpus"]["loss"]
    for name in start:
        torch.testing.assert_close(part[name], start[name] + share * (whole[name] - start[name]), atol=1e-5, rtol=1e-4)


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


def test_a_journal_that_is_gone_does_not_widen_the_gate(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    told = {"journal": "gone", "cycle": 3, "drift": {"corpus": 0.1}}
    assert "is gone" in cycles.settle(journal, 5, told, 10, 5)[0]
    assert cycles.drift(journal) == {"corpus": 0.1}
    journal.run("INSERT INTO meta VALUES ('old', '0')")
    assert cycles.settle(journal, 5, told, 10, 5) == []
    journal.close()


def test_the_journal_of_another_run_is_refused(base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(8))
    one, other = (copy(base, tmp_path / name) for name in ("one", "other"))
    for place in (one, other):
        learn(place, tmp_path / "sums.jsonl", settings=ALWAYS)
    shutil.copyfile(one / JOURNAL, other / JOURNAL)
    with pytest.raises(DataError, match="is not the journal"):
        open_learner(other)


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


def test_one_learner_of_a_process_learns_at_a_time(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(20))
    one, other = open_learner(run, ALWAYS), open_learner(run, ALWAYS)

    async def both() -> None:
        task = asyncio.create_task(one.run([], Limits(watch=True)))
        await asyncio.sleep(0)
        with pytest.raises(CheckpointError, match="at work"):
            await other.run([])
        with pytest.raises(CheckpointError, match="at work"):
            open_learner(run)
        one._stop = "enough"
        await task

    asyncio.run(both())
    asyncio.run(one.run([str(tmp_path / "sums.jsonl")], Limits(cycles=2)))
    one.close()
    done = asyncio.run(other.run([str(tmp_path / "sums.jsonl")]))  # it goes on from what the first one saved
    other.close()
    assert done.kept and not done.waiting
    consistent(run, sums(20))


@needs_fork
def test_a_closed_learner_leaves_the_run_to_other_processes(run: Path) -> None:
    open_learner(run).close()
    assert ended(fork(lambda: open_learner(run).close())) == 0


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


def test_texts_that_wait_alone_do_not_fill_the_queue(run: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_rows(tmp_path / f"{name}.jsonl", sums(1 + number, seed=number))
    small = ALWAYS.model_copy(update={"queue": 1})
    done = learn(run, tmp_path / "a.jsonl", tmp_path / "b.jsonl", settings=small, minutes=0.3)
    assert (done.reason, done.kept, done.waiting) == ("done", 1, 1)


def test_a_rate_and_the_minutes_are_kept(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(500))
    slow = ALWAYS.model_copy(update={"characters_per_minute": 1000, "cycle_tokens": 10**6})
    done = learn(run, tmp_path / "sums.jsonl", settings=slow, minutes=0.01)
    assert done.reason == "minutes" and done.waiting == 64  # one part


def test_so_many_tokens_are_learned_and_no_more(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", sums(40))
    done = learn(run, tmp_path / "sums.jsonl", settings=ALWAYS, tokens=2000)
    cycles = [row["new_tokens"] for row in status(run)["cycles"]]
    assert done.reason == "tokens" and done.waiting and sum(cycles[:-1]) < 2000 <= sum(cycles)


def test_a_source_that_was_away_is_told_and_comes_back(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    learner = open_learner(run)

    async def live() -> None:
        task = asyncio.create_task(learner.run([str(folder)], Limits(watch=True)))

        async def until(told: str, events: int) -> None:
            query = "SELECT coalesce(problem, 'well') FROM sources WHERE name = ?"
            while told not in str(learner.journal.value(query, str(folder))):
                assert not task.done()
                await asyncio.sleep(0.01)
            assert learner.journal.value("SELECT count(*) FROM events WHERE kind IN ('failing', 'mended')") == events

        await until("well", 0)
        folder.rename(tmp_path / "away")
        await until("does not exist", 1)
        await asyncio.sleep(0.2)  # further looks tell it no more
        (tmp_path / "away").rename(folder)
        await until("well", 2)
        os.kill(os.getpid(), signal.SIGTERM)
        done = await task
        assert (done.reason, done.signal) == ("signal", signal.SIGTERM)

    asyncio.run(asyncio.wait_for(live(), 120))
    learner.close()


def test_a_full_disk_is_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.run(f"PRAGMA max_page_count = {journal.value('PRAGMA page_count') + 2}")
    with pytest.raises(DataError, match="full"), journal.transaction():
        for _ in range(100):
            journal.note("kind", "text" * 1000)
    assert journal.value("SELECT count(*) FROM events") == 0
    journal.close()


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


def test_what_is_measured_with_is_not_learned_when_it_comes_again(run: Path, tmp_path: Path) -> None:
    every = ALWAYS.model_copy(update={"evaluate_tokens": 10**6, "known": 0.01, "held": 0.3})
    notes, texts = tmp_path / "notes.txt", sums(40)
    notes.write_text("\n\n".join(texts))
    learn(run, notes, settings=every)
    notes.write_text("\n\n".join([*sums(3, seed=9), *texts]))  # all that follows is cut at other places
    learn(run, notes, "stories:60", settings=every)  # and the text it was trained on comes as new
    journal, tokenizer = Journal(run / JOURNAL), hs.load(run).tokenizer

    def lines(side: str, domain: str) -> set[str]:
        query = f"SELECT ids FROM spans WHERE side = ? AND domain {domain}"
        spans = (np.frombuffer(row["ids"], dtype="<u4") for row in journal.rows(query, side))
        return {line for ids in spans for line in re.split(r"\n|\. ", tokenizer.decode(ids.tolist())) if len(line) > 20}

    learned = lines("replay", "!= 'corpus'")
    for held in (lines("held", "= 'notes'"), lines("held", "= 'corpus'")):
        assert len(held) > 10 and len(held & learned) < 0.2 * len(held)
    journal.close()


def test_a_text_alone_waits_for_another(run: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(sums(1)[0])
    done = learn(run, tmp_path / "one.txt")
    assert (done.reason, done.kept, done.waiting) == ("done", 0, 1)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@needs_fork
def test_the_story_of_a_run_is_told_to_who_may_only_read(run: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(sums(1)[0])
    learn(run, tmp_path / "one.txt")
    for place in [run, *run.parents]:
        if Path(tempfile.gettempdir()) in place.parents:
            place.chmod(place.stat().st_mode | 0o555)

    def read() -> None:
        os.setuid(65534)
        assert status(run)["texts"] == {"waiting": 1}

    assert ended(fork(read)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_name_that_is_no_text_is_learned_from(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"notes\xff")
    folder.mkdir()
    for number, text in enumerate(sums(6)):
        (folder / os.fsdecode(b"%d\xfe.txt" % number)).write_text(text)
    assert learn(run, folder).kept == 1 and learn(run, folder).kept == 0
    assert status(run)["sources"][0]["texts"] == 6


def test_a_source_that_fails_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        learn(run, tmp_path / "absent.txt")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\0\0\0\0\0\0\0\0\0")
    learn(run, tmp_path / "picture.txt")
    assert "no text" in status(run)["sources"][0]["problem"]
