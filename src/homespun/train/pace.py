"""How fast a run goes."""

from __future__ import annotations

import math
import time

MEASURE = 4  # steps before the speed is trusted: the first ones warm up


class Pace:
    """The time of the steps with all that came with them, the very first left out; and the speed since last asked."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """The clock starts here."""
        self.steps, self.timed = 0, 0.0
        self._last = self._asked = time.perf_counter()
        self._tokens: int | None = None

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.steps += 1
        if self.steps > 1:
            self.timed += seconds
        return seconds

    @property
    def per_step(self) -> float | None:
        """Seconds for one step, once enough were seen."""
        return self.timed / (self.steps - 1) if self.steps >= MEASURE else None

    def speed(self, tokens: int) -> float:
        """Tokens per second since this was last asked (NaN at first); `tokens` is the count so far."""
        now = time.perf_counter()
        rate = (tokens - self._tokens) / (now - self._asked) if self._tokens is not None else math.nan
        self._asked, self._tokens = now, tokens
        return rate
