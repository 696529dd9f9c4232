"""The learner: a program that takes in text as it comes, and learns it in small cycles that a gate lets through.

One task watches each source, as long as the queue has room; one more makes cycles of what waits. Reading and training
run in threads of their own, so that neither waits for the other. Where it is killed does not matter (`cycles`).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homespun.data.text import cut
from homespun.data.tokenizer import Tokenizer
from homespun.errors import CheckpointError, DataError
from homespun.learn import dedup, replay
from homespun.learn.journal import JOURNAL, Journal, Prepared
from homespun.learn.parts import PIECE, Part, Source
from homespun.learn.pupil import Pupil
from homespun.learn.settings import LearnConfig
from homespun.learn.sources import encode_cursor, open_sources, problem_of
from homespun.learn.study import Study
from homespun.model.decoder import Decoder
from homespun.train.disk import release
from homespun.train.guard import SignalGuard
from homespun.train.recipe import Recipe

ROOM = 3  # checkpoints for which the disk must have room
ENDING = "leaving the cycle at work; its texts wait. Once more quits at once."
_AT_WORK: set[Path] = set()  # the runs that learners of this process are learning in


@dataclass(frozen=True)
class Limits:
    """When a learner ends: after so many cycles, minutes, or `tokens` of new text in kept cycles; without `watch` also
    when nothing is left."""

    watch: bool = False
    cycles: int | None = None
    minutes: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Learned:
    """How it ended. `reason`: `done`, `cycles`, `minutes`, `tokens`, `disk`, or `signal`: that of number `signal`."""

    reason: str
    kept: int
    refused: int
    waiting: int
    step: int
    signal: int | None = None


class Learner:
    """Keeps the run in `folder` learning. Raises `CheckpointError` while another process trains it, or another learner
    of this one is at work."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        tokenizer: Tokenizer,
        model: Decoder,
        settings: LearnConfig | None = None,
        old: Sequence[str] = (),
        say: Callable[[str], None] = lambda sentence: None,
    ):
        self.folder, self.settings, self.tokenizer, self._say = folder, settings or LearnConfig(), tokenizer, say
        self._check_free()
        self.pupil = Pupil(folder, recipe, tokenizer, model, say)
        self.journal = Journal(folder / JOURNAL, self.settings.alike)
        self.study = Study(self.pupil, self.journal, self.settings, self._tell)
        self._tell("start", replay.remember(self.journal, folder, recipe, tokenizer, self.settings, old))
        self._stop: str | None = None
        self._open = 0  # sources that may still give something
        self._failing: set[tuple[int, str]] = set()  # sources by number, and what they were told to fail with
        self._seen: set[int] = set()  # sources that were read since the start

    def _tell(self, kind: str, sentence: str) -> None:
        if sentence:
            self.journal.note(kind, sentence)
            self._say(sentence)

    # -- the program --------------------------------------------------------------------------------------------------

    async def run(self, specs: Sequence[str], limits: Limits | None = None) -> Learned:
        """Learns from the sources until a limit is reached, nothing is left, or a signal asks to stop."""
        limits = limits or Limits()
        sources = open_sources(specs, self.folder, limits.watch)
        self._check_free()
        _AT_WORK.add(self.folder.resolve())
        try:
            if self.pupil.renew():
                self.study.settle()
            return await self._run(sources, limits)
        finally:
            _AT_WORK.discard(self.folder.resolve())

    async def _run(self, sources: Sequence[Source], limits: Limits) -> Learned:
        self._stop, self._open, begin = None, len(sources), time.monotonic()
        with SignalGuard(ending=ENDING) as signals:
            watchers = [asyncio.create_task(self._watch(source, limits.watch)) for source in sources]
            try:
                while self._stop is None:
                    if failed := next((task for task in watchers if task.done() and task.exception()), None):
                        failed.result()
                    self._stop = self._over(limits, begin, signals)
                    if self._stop is None and self._ready(limits.watch):
                        await asyncio.to_thread(self.study.cycle, lambda: signals.signal is not None)
                    elif self._stop is None and not self._open and not self._ready(limits.watch):
                        self._stop = "done"
                    else:
                        await asyncio.sleep(min(0.05, self.settings.poll))
            finally:
                self._stop = self._stop or "failed"
                await asyncio.gather(*watchers, return_exceptions=True)
        return self._outcome(signals.signal)

    def close(self) -> None:
        """Closes the journal, and lets other processes train the run."""
        self.journal.close()
        release(self.pupil.checkpoints.folder)

    def _check_free(self) -> None:
        if self.folder.resolve() in _AT_WORK:
            raise CheckpointError(f"A learner of this program is at work in {self.folder}", "Wait for its end.")

    def _outcome(self, signal: int | None) -> Learned:
        waiting, _, _ = self.journal.queued()
        counts = f"Cycles kept: {self.study.kept}, refused: {self.study.refused}; texts that wait: {waiting}."
        self._tell("end", f"Ended ({self._stop}). {counts}")
        return Learned(
            self._stop or "done", self.study.kept, self.study.refused, waiting, self.pupil.progress.step, signal
        )

    def _over(self, limits: Limits, begin: float, signals: SignalGuard) -> str | None:
        if signals.signal is not None:
            return "signal"
        if limits.cycles is not None and self.study.kept + self.study.refused >= limits.cycles:
            return "cycles"
        if limits.minutes is not None and time.monotonic() - begin >= 60 * limits.minutes:
            return "minutes"
        if limits.tokens is not None and self.study.tokens >= limits.tokens:
            return "tokens"
        return "disk" if self._full() else None

    def _full(self) -> bool:
        size = sum(parameter.nbytes for parameter in self.pupil.model.parameters()) * 3
        free = shutil.disk_usage(self.folder).free
        if self.journal.bytes() < self.settings.disk and free > ROOM * size:
            return False
        told = f"The journal has {self.journal.bytes():,} bytes (learn.disk: {self.settings.disk:,})"
        self._tell("disk", f"{told}, and the disk {free:,} free ones: nothing more is taken.")
        return True

    def _ready(self, watch: bool) -> bool:
        """Whether there is a cycle to make: enough waits, or what waits will not become more soon."""
        texts, tokens, since = self.journal.queued()
        stuck = self._stuck()
        if texts <= stuck:
            return False
        if tokens >= self.settings.cycle_tokens or texts - stuck >= self.settings.queue:
            return True
        patient = since is not None and 0 <= time.time() - since < self.settings.wait
        return not patient if watch else self._open == 0

    def _crowded(self) -> bool:
        texts = self.journal.queued()[0]
        return texts >= self.settings.queue and texts - self._stuck() >= self.settings.queue

    def _stuck(self) -> int:
        """Texts that wait alone in a domain of which nothing is held out yet."""
        alone = "SELECT domain FROM items WHERE state = 'waiting' GROUP BY domain HAVING count(*) = 1"
        known = set(replay.domains(self.journal, "held"))
        return sum(row[0] not in known for row in self.journal.rows(alone))

    # -- taking in ----------------------------------------------------------------------------------------------------

    async def _watch(self, source: Source, watch: bool) -> None:
        number = self.journal.source(source.name, source.domain)
        try:
            while self._stop is None:
                try:
                    if await self._look(source, number):
                        self._mended(number, source.name)
                except (DataError, OSError) as error:
                    if not watch:
                        raise
                    self._fails(number, problem_of(error))
                if not watch or not source.lasting:
                    return
                await self._sleep(max(self.settings.poll, getattr(source, "every", 0.0)))
        finally:
            self._open -= 1

    async def _look(self, source: Source, number: int) -> bool:
        """Takes all that is new in a source now, as the queue has room for it and its rate allows; whether all of it
        could be read."""

        def cursors(place: str) -> Any:
            found = self.journal.cursor(number, place)
            return None if found is None else json.loads(found)

        parts, whole = source.changes(cursors), True
        rate = self.settings.characters_per_minute
        while self._stop is None:
            while self._stop is None and self._crowded():
                await asyncio.sleep(0.02)
            if self._stop is not None or (part := await asyncio.to_thread(_next, parts)) is None:
                return whole
            if part.texts or part.cursor is not None:
                await asyncio.to_thread(self._take, number, part)
                if part.problem:
                    self._say(part.problem)
            elif part.problem:
                whole = False
                self._fails(number, part.problem)
            if rate is not None:
                await self._sleep(60 * sum(map(len, part.texts)) / rate)
        return False

    def _take(self, number: int, part: Part) -> None:
        texts = [piece for text in part.texts for piece in cut([dedup.clean(text)], PIECE)]
        good = [text for text in texts if len(text) >= self.settings.shortest and not dedup.unreadable(text)]
        counts = map(len, self.tokenizer.encode_batch(good))
        found = [Prepared.of(text, count + 1) for text, count in zip(good, counts, strict=True)]
        cursor = encode_cursor(part.cursor)
        self.journal.take(number, part.place, found, cursor, part.problem, len(texts) - len(good))
        if part.done is not None:
            part.done()

    def _fails(self, number: int, problem: str) -> None:
        """Tells once what of a source cannot be read now, and is tried again at each look."""
        if (number, problem) not in self._failing:
            self._failing.add((number, problem))
            self.journal.run("UPDATE sources SET problem = ? WHERE id = ?", problem, number)
            self._tell("failing", problem)

    def _mended(self, number: int, name: str) -> None:
        failing = {problem for source, problem in self._failing if source == number}
        if failing or number not in self._seen:
            told = "SELECT text FROM events WHERE kind = 'failing'"  # perhaps before this start
            self.journal.run(f"UPDATE sources SET problem = NULL WHERE id = ? AND problem IN ({told})", number)
            self._failing -= {(number, problem) for problem in failing}
            self._seen.add(number)
        if failing:
            self._tell("mended", f"{name} can be read again.")

    async def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._stop is None and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.1))


def _next(parts: Iterator[Part]) -> Part | None:
    return next(parts, None)
