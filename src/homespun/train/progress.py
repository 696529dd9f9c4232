"""Where a run stands, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """Where a run stands. With the weights, the optimizer, the loss scale and the guard it is all there is to save."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    advised: bool = False
    alarmed: bool = False
    logged: int = 0
    evaluated: int = 0
    saved: int = 0
    saved_at: float = 0.0  # the seconds then
    sampled: int = 0


class History:
    """The evaluations of a run, rows as in `metrics.jsonl`: which was the best, and how many came after it."""

    def __init__(self) -> None:
        self.latest: dict[str, Any] = {}
        self.losses: list[float] = []  # those that were finite
        self.best_step: int | None = None
        self.worse = 0
        self.step = 0

    def add(self, row: Mapping[str, Any]) -> bool:
        """Takes in a validation row; whether it is the best so far (a loss that is not finite never is)."""
        loss = row["validation_loss"]
        better = loss is not None and loss < min(self.losses, default=math.inf)
        self.losses += [] if loss is None else [loss]
        self.latest, self.step = dict(row), row["step"]
        self.best_step = self.step if better else self.best_step
        self.worse = 0 if better else self.worse + 1
        return better


@dataclass(frozen=True)
class Summary:
    """How a run ended: `reason` is `budget`, `patience` or `signal`, and then `signal` is its number."""

    steps: int
    tokens: int
    seconds: float
    validation: dict[str, Any]
    best_step: int | None
    reason: str
    signal: int | None = None

    @property
    def validation_bits_per_byte(self) -> float | None:
        """Of the last evaluation, if there was one."""
        return self.validation.get("validation_bits_per_byte")


def finite(value: float) -> float | None:
    """The value, or nothing where it is NaN or infinite: JSON knows neither."""
    return value if math.isfinite(value) else None
