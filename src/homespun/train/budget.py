"""How many steps a run will take.

Steps, tokens and epochs are known at once; minutes are planned from the speed seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from homespun.errors import ConfigError
from homespun.train.recipe import TrainConfig

FREEZE = 0.5  # share of the time after which a plan that will do stays: a schedule in its decay should not move
DRIFT = 0.15  # share of the time by which a frozen plan may miss it before it is made anew
LAST = 0.9  # share of the time after which nothing moves any more
OVERTIME = 1.15  # a frozen plan on a machine that got slower may overrun its minutes by this much


@dataclass
class Budget:
    """The plan of a run: `total` steps, or none while a time budget is still being measured.

    With a budget in minutes, `total` follows the measured speed until half of the time is gone; then it moves only
    where the machine became so much faster or slower that it would miss the time. It is saved with each checkpoint, so
    that the learning rate is a pure function of (step, total).
    """

    fixed: int | None
    seconds: float | None
    total: int | None

    @staticmethod
    def of(train: TrainConfig, steps_per_epoch: float, tokens_per_step: int) -> Budget:
        """The budget that the settings give. Raises `ConfigError` when they give none.

        `steps_per_epoch`: infinite where the text is not known yet.
        """
        known: list[float] = [train.steps] if train.steps is not None else []
        known += [train.tokens / tokens_per_step] if train.tokens is not None else []
        known += [train.epochs * steps_per_epoch] if train.epochs is not None else []
        if not known and train.minutes is None:
            raise ConfigError("No budget is set", "Give one of --steps, --tokens, --minutes, --epochs.")
        least = min(known, default=math.inf)
        fixed = math.ceil(least) if math.isfinite(least) else None
        seconds = train.minutes * 60 if train.minutes is not None else None
        return Budget(fixed, seconds, fixed if seconds is None else None)

    def plan(self, step: int, spent: float, pace: float | None) -> None:
        """Plans the total anew. `spent`: seconds so far in the whole run; `pace`: seconds of a step, if known."""
        if self.seconds is None or pace is None or self._stays(step, spent, pace):
            return
        total = step + max(0, math.floor((self.seconds - spent) / pace))
        self.total = max(1, min(total, self.fixed) if self.fixed is not None else total)

    def _stays(self, step: int, spent: float, pace: float) -> bool:
        """Whether the plan is not to move: the time is nearly over, or past its half and about met by the plan."""
        if self.total is None or self.seconds is None or spent <= FREEZE * self.seconds:
            return False
        missed = spent + pace * (self.total - step) - self.seconds
        return spent > LAST * self.seconds or abs(missed) <= DRIFT * self.seconds

    def spent(self, step: int, seconds: float) -> bool:
        """Whether the run is over."""
        if self.total is not None and step >= self.total:
            return True
        return self.seconds is not None and seconds >= self.seconds * (OVERTIME if self.total is not None else 1.0)

    def horizon(self, step: int) -> int:
        """The total for the schedule; far away while it is unknown."""
        return self.total if self.total is not None else step + 1_000_000

    def seconds_left(self, step: int, spent: float, pace: float) -> float:
        """An estimate of the training time that is left."""
        return pace * (self.total - step) if self.total is not None else max(0.0, (self.seconds or 0.0) - spent)
