"""The thread that writes for everybody."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from homespun.errors import CheckpointError
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling
from homespun.serve.scheduler import Busy, Failed, Scheduler, Ticket
from tests.generate.test_engine import BYTES, decoder

Make = Callable[..., Scheduler]


@pytest.fixture
def schedule() -> Iterator[Make]:
    made: list[Scheduler] = []

    def make(**settings: Any) -> Scheduler:
        made.append(Scheduler(Generator(decoder(context=48).double(), BYTES), **settings))
        made[-1].start()
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close(grace=0)
    assert not [thread for thread in threading.enumerate() if thread.name == "homespun-writer"]


async def written(ticket: Ticket) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in ticket.rows]
    async with ticket:
        async for token in ticket:
            texts[token.row].append(token.id)
    return texts


def test_many_requests_at_once_each_get_the_text_they_would_get_alone(schedule: Make) -> None:
    scheduler = schedule(rows=5)
    samplings = [Sampling(seed=n, max_tokens=5 + 3 * n) for n in range(12)]

    async def all_at_once() -> list[list[list[int]]]:
        return await asyncio.gather(*[written(scheduler.open([f"text {n}"], s, 2)) for n, s in enumerate(samplings)])

    texts = asyncio.run(all_at_once())
    for n, (sampling, both) in enumerate(zip(samplings, texts, strict=True)):
        prompts = [f"text {n}"] * 2
        expected: list[list[int]] = [[], []]
        for token in scheduler.generator.tokens(prompts, sampling):
            expected[token.row].append(token.id)
        assert both == expected
    figures = scheduler.figures
    assert (figures.finished, figures.cancelled, figures.running, figures.waiting) == (24, 0, 0, 0)
    assert figures.written_tokens == sum(len(text) for both in texts for text in both)


def test_no_more_texts_are_written_at_a_time_than_memory_holds(schedule: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = schedule(rows=7)
    assert scheduler.rows == 7
    each = 2 * 2 * 48 * 32 * 8  # keys and values of two layers, 48 tokens, width 32, in float64
    monkeypatch.setattr("homespun.serve.scheduler.available_memory", lambda _: 3 * 4 * each)
    assert Scheduler(scheduler.generator, rows=7).rows == 3
    monkeypatch.setattr("homespun.serve.scheduler.available_memory", lambda _: 0)
    assert Scheduler(scheduler.generator, rows=7).rows == 1


def test_whoever_leaves_is_written_for_no_more(schedule: Make) -> None:
    scheduler = schedule()

    async def leave_early() -> int:
        ticket = scheduler.open(["a long story"], Sampling(max_tokens=10**6, seed=1))
        async with ticket:
            async for _ in ticket:
                if ticket.rows[0].written >= 3:
                    break
        at_leaving = ticket.rows[0].written
        await _until(lambda: scheduler.figures.running == 0)
        assert ticket.rows[0].written <= at_leaving + 2
        return scheduler.figures.cancelled

    assert asyncio.run(leave_early()) == 1


def test_more_than_the_queue_holds_is_refused_and_costs_nobody_anything(schedule: Make) -> None:
    scheduler = schedule(rows=1, queue=2)

    async def flood() -> tuple[list[Any], list[list[int]]]:
        async with scheduler.open(["first"], Sampling(max_tokens=10**6, seed=1)) as first:
            await anext(aiter(first))
            others = [written(scheduler.open(["x"], Sampling(max_tokens=3, seed=2))) for _ in range(5)]
            waiting = asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0.05)
        results = await waiting
        return results, await written(scheduler.open(["y"], Sampling(max_tokens=3, seed=3)))

    results, after = asyncio.run(flood())
    assert [type(result) for result in results] == [list, list, Busy, Busy, Busy]
    assert after


def test_a_failure_is_told_to_those_it_concerns_and_the_next_request_works(
    schedule: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = schedule()
    good = scheduler.generator.model.model.norm.weight.clone()

    def spoil(generator: Generator) -> None:
        with torch.no_grad():
            generator.model.model.norm.weight.fill_(float("nan"))

    def mend(generator: Generator) -> None:
        with torch.no_grad():
            generator.model.model.norm.weight.copy_(good)

    async def run() -> None:
        before = await written(scheduler.open(["secret words"], Sampling(max_tokens=5, seed=1)))
        await scheduler.call(spoil)
        with pytest.raises(CheckpointError, match="not a number"):
            await written(scheduler.open(["secret words"], Sampling(max_tokens=5, seed=1)))
        await scheduler.call(mend)
        monkeypatch.setattr("homespun.generate.batch.pick", lambda *_, **__: 1 / 0)
        with pytest.raises(Failed, match="failed"):
            await written(scheduler.open(["secret words"], Sampling(max_tokens=5, seed=1)))
        monkeypatch.undo()
        assert await written(scheduler.open(["secret words"], Sampling(max_tokens=5, seed=1))) == before

    asyncio.run(run())
    assert "ZeroDivisionError" in caplog.text and "secret" not in caplog.text


def test_a_call_runs_between_two_tokens_and_its_error_is_the_callers(schedule: Make) -> None:
    scheduler = schedule()

    async def run() -> list[str]:
        writing = asyncio.create_task(written(scheduler.open(["x"], Sampling(max_tokens=50, seed=1))))
        names = [await scheduler.call(lambda _: threading.current_thread().name)]
        with pytest.raises(ZeroDivisionError):
            await scheduler.call(lambda _: 1 / 0)
        assert await writing
        return names

    assert asyncio.run(run()) == ["homespun-writer"]


def test_closing_lets_what_runs_finish_and_gives_up_what_is_late(schedule: Make) -> None:
    scheduler = schedule()

    async def run(grace: float, tokens: int) -> list[list[int]]:
        task = asyncio.create_task(written(scheduler.open(["x"], Sampling(max_tokens=tokens, seed=1))))
        await _until(lambda: scheduler.figures.running == 1 or task.done())
        await asyncio.to_thread(scheduler.close, grace)
        with pytest.raises(Busy, match="ending"):
            await written(scheduler.open(["y"], Sampling()))
        with pytest.raises(Busy, match="ending"):
            await scheduler.call(lambda _: None)
        return await task

    assert asyncio.run(run(60, 40))
    scheduler = schedule()
    with pytest.raises(Busy, match="ending"):
        asyncio.run(run(0.05, 10**6))


async def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)
