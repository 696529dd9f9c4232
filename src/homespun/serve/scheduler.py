"""Continuous batching: one thread writes with one model for everybody who asks.

Texts of all requests share one batch. They join it when there is room, and leave it when they are finished or when
nobody waits for them any more: the thread looks for both between two tokens, and it alone touches the texts.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

from homespun.errors import HomespunError
from homespun.generate.batch import Batch
from homespun.generate.engine import Generator, Prompt, seeded
from homespun.generate.records import Token
from homespun.generate.row import Row
from homespun.generate.sampling import Sampling
from homespun.serve.faults import log_fault
from homespun.train.machine import available_memory

PART = 128  # prompt tokens that are read between two tokens of the texts that are being written

MEMORY = 2  # of the free memory, one part in so many is for caches

T = TypeVar("T")
Job = tuple[Callable[[Generator], Any], Future[Any]]


class Busy(HomespunError):
    """Too many texts wait already, or the server is ending."""


class Failed(HomespunError):
    """Writing failed for a reason that is not the request's."""


@dataclass
class Figures:
    """What a scheduler does and has done, in texts and tokens.

    `running`: texts that are read or written. `waiting`: texts that wait for a row. `cancelled`: texts that were given
    up before their end. `embedded_tokens`: of texts that became vectors.
    """

    running: int = 0
    waiting: int = 0
    finished: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    embedded_tokens: int = 0
    written_tokens: int = 0


class Scheduler:
    """Writes for everybody with one model, in a thread of its own.

    `rows`: the most texts that are written at a time, fewer where memory does not hold so many of the longest.
    `queue`: the most that wait beside them.
    """

    def __init__(self, generator: Generator, rows: int = 32, queue: int = 256):
        self.generator, self.rows, self.queue = generator, min(rows, _rows_in_memory(generator)), queue
        self.figures = Figures()
        self._changed = threading.Condition()  # guards all below
        self._waiting: deque[tuple[Row, Ticket]] = deque()
        self._running: dict[Row, Ticket] = {}
        self._left: list[Row] = []  # texts that nobody waits for any more
        self._jobs: deque[Job] = deque()
        self._callers = 0  # whose jobs are not all done
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="homespun-writer", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self, grace: float = 5.0) -> None:
        """Takes nothing more, gives up what is not finished within `grace` seconds, and waits for the thread's end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._waiting or self._running), grace)
            late = {*self._running.values(), *(ticket for _, ticket in self._waiting)}
            self._tell({ticket: [_ending()] for ticket in late})
            self._left += [row for ticket in late for row in ticket.rows]
        if self._thread.is_alive():
            self._thread.join()

    def open(self, prompts: Sequence[Prompt], sampling: Sampling, count: int = 1, alternatives: int = 0) -> Ticket:
        """Asks for `count` texts for each prompt, those of the first prompt first.

        They are queued when the ticket is entered. Raises `HomespunError`s for what cannot be written.
        """
        sampling = seeded(sampling)
        asked = [prompt for prompt in prompts for _ in range(count)]
        rows = [self.generator.row(prompt, sampling, index, alternatives) for index, prompt in enumerate(asked)]
        return Ticket(self, rows)

    async def call(self, function: Callable[[Generator], T]) -> T:
        """Runs a function in the writing thread, between two tokens.

        Raises what it raises, and `Busy` at the end, or where too many calls wait already.
        """
        with self._calling():
            return await self._run(function)

    async def each(self, steps: Iterator[T]) -> list[T]:
        """What an iterator gives that works in the writing thread: a step of it between two tokens, in turn with the
        calls of others. Raises as `call` does."""
        found: list[T] = []
        with self._calling():
            while more := await self._run(lambda _: [*islice(steps, 1)]):
                found += more
        return found

    @contextmanager
    def _calling(self) -> Iterator[None]:
        with self._changed:
            if self._callers > self.queue:
                raise Busy(f"{self._callers} calls are waiting, which is all there is room for", "Ask again soon.")
            self._callers += 1
        try:
            yield
        finally:
            with self._changed:
                self._callers -= 1

    async def _run(self, function: Callable[[Generator], T]) -> T:
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise _ending()
            self._jobs.append((function, future))
            self._changed.notify_all()
        return await asyncio.wrap_future(future)

    def enter(self, ticket: Ticket) -> None:
        """Queues the texts of a ticket. Raises `Busy` where there is no room for them."""
        with self._changed:
            if self._closing:
                raise _ending()
            free = self.rows - len(self._running)
            if len(self._waiting) + len(ticket.rows) > free + self.queue:
                raise Busy(f"{len(self._waiting)} texts are waiting, which is all there is room for", "Ask again soon.")
            self._waiting.extend((row, ticket) for row in ticket.rows)
            self.figures.prompt_tokens += sum(row.prompt for row in ticket.rows)
            self.figures.waiting = len(self._waiting)
            self._changed.notify_all()

    def leave(self, ticket: Ticket) -> None:
        """Writes no more of the texts of a ticket."""
        with self._changed:
            self._left += ticket.rows
            self._changed.notify_all()

    def _work(self) -> None:
        batch = self.generator.new_batch(PART)
        while self._prepare(batch):
            self._answer()
            try:
                written = batch.step()
            except Exception as error:
                self._fail(error)
                batch = self.generator.new_batch(PART)
                continue
            self._hand_out(written)
            if not batch.busy:
                batch = self.generator.new_batch(PART)  # nothing is kept for nobody

    def _prepare(self, batch: Batch) -> bool:
        """Waits until there is something to do, and lets texts leave and join; false when the end has come."""
        with self._changed:
            while not (self._waiting or self._running or self._jobs):
                if self._closing:
                    return False
                self._left = []
                self._changed.wait()
            self._let_leave(batch)
            while self._waiting and len(self._running) < self.rows:
                row, ticket = self._waiting.popleft()
                self._running[row] = ticket
                batch.add(row)
            self._count()
            return True

    def _answer(self) -> None:
        """Does one job: the texts that are written wait for no more of them."""
        with self._changed:
            if not self._jobs:
                return
            function, future = self._jobs.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(self.generator))
        except Exception as error:  # its caller, in another thread, meets it
            future.set_exception(error)

    def _let_leave(self, batch: Batch) -> None:
        gone, self._left = {row for row in self._left if not row.done}, []
        if gone:
            self._waiting = deque(pair for pair in self._waiting if pair[0] not in gone)
            self._running = {row: ticket for row, ticket in self._running.items() if row not in gone}
            self.figures.cancelled += len(gone)
            for row in gone:
                batch.drop(row)

    def _hand_out(self, written: list[tuple[Row, Token]]) -> None:
        news: dict[Ticket, list[Token | HomespunError]] = {}
        with self._changed:
            for row, token in written:
                if row in self._running:
                    news.setdefault(self._running[row], []).append(token)
                if token.finish is not None:
                    self._running.pop(row, None)
                    self.figures.finished += 1
            self.figures.written_tokens += len(written)
            self._count()
            self._tell(news)

    def _fail(self, error: Exception) -> None:
        """Tells everybody whose text was in the batch."""
        if not isinstance(error, HomespunError):
            log_fault(error)
            error = Failed("The model failed while it wrote", "The server's log says more.")
        with self._changed:
            self._tell({ticket: [error] for ticket in self._running.values()})
            self.figures.cancelled += len(self._running)
            self._running = {}
            self._count()

    def _count(self) -> None:
        self.figures.running, self.figures.waiting = len(self._running), len(self._waiting)
        self._changed.notify_all()

    def _tell(self, news: dict[Ticket, list[Token | HomespunError]]) -> None:
        """Hands each ticket its news, with one call for each event loop."""
        for loop in {ticket.loop for ticket in news}:
            mine = [(ticket, items) for ticket, items in news.items() if ticket.loop is loop]
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(_push, mine)


class Ticket:
    """Texts that were asked for: `async with` it, then iterate over their tokens, of any text, as they are written.

    Leaving gives up what is not finished. `rows`: the texts; a token's `row` is the place of its text there. Raises the
    `HomespunError` for which writing ended early.
    """

    def __init__(self, scheduler: Scheduler, rows: list[Row]):
        self.rows = rows
        self.loop: asyncio.AbstractEventLoop | None = None
        self.news: deque[Token | HomespunError] = deque()
        self.arrived = asyncio.Event()
        self._scheduler = scheduler

    async def __aenter__(self) -> Ticket:
        self.loop = asyncio.get_running_loop()
        self._scheduler.enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._scheduler.leave(self)

    async def __aiter__(self) -> AsyncIterator[Token]:
        unfinished = len(self.rows)
        while unfinished:
            while not self.news:
                self.arrived.clear()
                await self.arrived.wait()
            item = self.news.popleft()
            if isinstance(item, HomespunError):
                raise item
            unfinished -= item.finish is not None
            yield item


def _rows_in_memory(generator: Generator) -> int:
    """How many texts as long as the model's context there is memory for, twice: a cache that moves is held twice."""
    writer = generator.writer
    each = sum(layer.nbytes() for layer in writer.new_cache(1, writer.config.context))
    return max(1, available_memory(generator.bias.device) // (2 * MEMORY * each))


def _push(news: list[tuple[Ticket, list[Token | HomespunError]]]) -> None:
    for ticket, items in news:
        ticket.news.extend(items)
        ticket.arrived.set()


def _ending() -> Busy:
    return Busy("The server is ending", "Ask again when it is back.")
