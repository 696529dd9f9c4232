"""How fast a run goes."""

from __future__ import annotations

import math
import time
from collections import deque

MEASURE = 4  # steps before the speed is trusted: the first ones warm up
REMEMBERED = 4096  # steps, at most


class Pace:
    """The time of the steps with all that came with them, of the newer half of those since `start`; and the speed since
    last asked."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """The clock starts here."""
        self._asked = time.perf_counter()
        self._ends = deque([self._asked], maxlen=REMEMBERED + 1)
        self._tokens: int | None = None

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds = now - self._ends[-1]
        self._ends.append(now)
        return seconds

    @property
    def per_step(self) -> float | None:
        """Seconds for one step, once enough were seen."""
        steps = len(self._ends) - 1
        if steps < MEASURE:
            return None
        newer = steps - max(1, steps // 2)  # the very first step never counts
        return (self._ends[-1] - self._ends[-1 - newer]) / newer

    def speed(self, tokens: int) -> float:
        """Tokens per second since this was last asked (NaN at first); `tokens` is the count so far."""
        now = time.perf_counter()
        rate = (tokens - self._tokens) / (now - self._asked) if self._tokens is not None else math.nan
        self._asked, self._tokens = now, tokens
        return rate
