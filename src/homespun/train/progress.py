"""Where a run stands, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run stands. With the weights, the optimizer, the loss scale and the guard it is all there is to save."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    total: int | None = None
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0  # evaluations since the best one
    losses: list[float | None] = field(default_factory=list)  # of every evaluation
    logged: int = 0
    evaluated: int = 0
    saved: int = 0
    sampled: int = 0


@dataclass(frozen=True)
class Summary:
    """How a run ended: `reason` is `budget`, `patience` or `signal`, and then `signal` is its number."""

    steps: int
    tokens: int
    seconds: float
    validation: dict[str, float]
    best_step: int | None
    reason: str
    signal: int | None = None

    @property
    def validation_bits_per_byte(self) -> float | None:
        """Of the last evaluation, if there was one."""
        return self.validation.get("validation_bits_per_byte")
