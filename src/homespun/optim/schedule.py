"""The learning rate as a pure function of the step: nothing to save, nothing to restart wrongly.

`factor(step, total)` multiplies the optimizer's base rates at step 0, 1, ... of `total`; past `total` it stays where it
ended. Warm-up rises linearly from 1 / warmup, takes at most half of the run, and never reaches into a decay.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from homespun.config import Config, Fraction, human_number


def _whole_or_fraction(value: Any) -> Any:
    value = human_number(value)
    if isinstance(value, float) and value >= 1:
        raise ValueError("it should be a whole number of steps, or a fraction of the run below 1")
    return value


Warmup = Annotated[int | float, BeforeValidator(_whole_or_fraction), Field(ge=0)]
"""Steps (a whole number), or a fraction of the run (below 1). Steps suit budgets in minutes, whose total comes late."""


class WarmupStableDecay(Config):
    """Rise over `warmup`, stay at 1, fall linearly to `floor` over the last `decay` of the run (MiniCPM, 2024).

    A run can be prolonged from a checkpoint before the decay as if it had been planned so.
    """

    kind: Literal["warmup-stable-decay"] = "warmup-stable-decay"
    warmup: Warmup = 50
    decay: Fraction = 0.3
    floor: Fraction = 0.0

    def factor(self, step: int, total: int) -> float:
        """Between `floor` and 1."""
        falling = self.decay * total  # steps
        rise = _rise(self.warmup, step, total, total - falling)
        left = max(0, total - step)
        if left >= falling:
            return rise
        return min(rise, self.floor + (1 - self.floor) * left / falling)


class Cosine(Config):
    """Rise over `warmup`, then fall to `floor` along half a cosine (SGDR, 2016)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Warmup = 100
    floor: Fraction = 0.1

    def factor(self, step: int, total: int) -> float:
        """Between `floor` and 1 once warm."""
        warm = _steps(self.warmup, total, total)
        done = min(1.0, max(0.0, (step - warm) / max(1.0, total - warm)))
        height = self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
        return min(_rise(self.warmup, step, total, total), height)


class Constant(Config):
    """Rise over `warmup`, then stay at 1."""

    kind: Literal["constant"] = "constant"
    warmup: Warmup = 0

    def factor(self, step: int, total: int) -> float:
        """Between 0 and 1."""
        return _rise(self.warmup, step, total, total)


Schedule = Annotated[WarmupStableDecay | Cosine | Constant, Field(discriminator="kind")]
"""The union of the kinds; another kind is one more class and one more word here."""


def _steps(warmup: int | float, total: int, limit: float) -> float:
    """How many steps the warm-up takes."""
    asked = warmup * total if isinstance(warmup, float) else warmup
    return min(asked, total / 2, limit)


def _rise(warmup: int | float, step: int, total: int, limit: float) -> float:
    warm = _steps(warmup, total, limit)
    return min(1.0, (step + 1) / warm) if warm > 1 else 1.0
