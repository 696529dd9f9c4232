"""What a part of the decoder reports beside its output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Auxiliary:
    """Losses of the model's own, as sums over tokens (law 6): returned with the output, never kept on a module."""

    losses: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def merge(parts: Iterable[Auxiliary]) -> Auxiliary:
        """The sum of several parts' reports."""
        losses: dict[str, Tensor] = {}
        for part in parts:
            for name, value in part.losses.items():
                losses[name] = losses[name] + value if name in losses else value
        return Auxiliary(losses)
