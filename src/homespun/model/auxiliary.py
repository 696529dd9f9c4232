"""What a part of the decoder reports beside its output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Auxiliary:
    """A part's own losses and figures: returned with the output, never kept on a module (law 6).

    penalty: what to add to the mean loss of a token, weighted; none where a part has none. losses: the same by name,
    unweighted and without gradient, for reports. counts: for each part in its order, how many of this batch's tokens
    each of its experts took, (E,) int64; none for a part without experts.
    """

    penalty: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    counts: tuple[Tensor | None, ...] = (None,)

    @staticmethod
    def merge(parts: Iterable[Auxiliary]) -> Auxiliary:
        """Several parts' reports as one. Losses are means over the parts that have them, so depth changes no weight."""
        parts = list(parts)
        penalties = [part.penalty for part in parts if part.penalty is not None]
        losses: dict[str, list[Tensor]] = {}
        for part in parts:
            for name, value in part.losses.items():
                losses.setdefault(name, []).append(value)
        return Auxiliary(
            torch.stack(penalties).mean() if penalties else None,
            {name: torch.stack(values).mean() for name, values in losses.items()},
            tuple(counts for part in parts for counts in part.counts),
        )
