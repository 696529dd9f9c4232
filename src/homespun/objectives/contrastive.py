"""The contrastive loss, and how a space of embeddings looks. P pairs of this process, N of all, e size."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Gather = Callable[[Tensor], tuple[Tensor, int]]
"""The rows of all processes in their order, with gradients to whom they belong, and where one's own begin."""


def alone(rows: Tensor) -> tuple[Tensor, int]:
    """The `Gather` of a single process."""
    return rows, 0


def info_nce(first: Tensor, second: Tensor, documents: Tensor, temperature: float, gather: Gather = alone) -> Tensor:
    """The loss of each pair in nats, (P,): each view has to find the other among the second (first) views of all pairs.

    first, second (P, e): unit vectors; documents (P,): other pairs of the same document are no negatives, and a number
    below 0 marks a pair that is none: it costs nothing and is nobody's negative. The mean of both directions (van den
    Oord et al., 2018; Radford et al., 2021); ln N where all vectors are equal.
    """
    everyone, start = gather(torch.cat([first, second], dim=1))  # (N, 2 e)
    firsts, seconds = everyone.chunk(2, dim=1)
    others, _ = gather(documents)
    own = torch.arange(start, start + len(first), device=first.device)
    hidden = (documents[:, None] == others) | (others < 0)  # (P, N)
    hidden[torch.arange(len(first)), own] = False
    directions = ((first, seconds), (second, firsts))
    losses = [
        F.cross_entropy((view @ views.T / temperature).masked_fill(hidden, -math.inf), own, reduction="none")
        for view, views in directions
    ]
    return torch.stack(losses).mean(0) * (documents >= 0)


@torch.no_grad()
def figures(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """What tells a good space from a collapsed one; NaN for fewer than two pairs.

    alignment: the mean squared distance of a pair; 0 is best. uniformity: the logarithm of the mean of exp(-2 squared
    distance) over different texts; 0 means that all are one point, -4 that they fill the sphere (Wang and Isola, 2020).
    spread: the standard deviation of a coordinate, relative to that of vectors in all directions: 1 is even, 0 a point.
    """
    count, size = first.shape
    if count < 2:
        nothing = first.new_full((), math.nan)
        return {"alignment": nothing, "uniformity": nothing, "spread": nothing}
    apart = (2 - 2 * first @ first.T).clamp(min=0)[~torch.eye(count, dtype=torch.bool, device=first.device)]
    return {
        "alignment": (first - second).square().sum(1).mean(),
        "uniformity": apart.mul(-2).exp().mean().log(),
        "spread": first.std(0).square().mean().sqrt() * math.sqrt(size),
    }
