"""How evenly the experts of a mixture are used: the figures of `metrics.jsonl`. E experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Counts = tuple[Tensor | None, ...]
"""For each layer, how many tokens each of its experts took, (E,); none for a layer without experts."""


def add(counts: Sequence[Counts]) -> Counts:
    """The sum over batches or steps, layer by layer."""
    return tuple(None if layer[0] is None else torch.stack(layer).sum(0) for layer in zip(*counts, strict=True))


def expert_use(counts: Counts) -> dict[str, Any]:
    """The rows' `experts`: for each layer that has them, by its number.

    share: of all tokens, for each expert. max_violation: by how much the busiest exceeds its fair share, 0 when even
    (MaxVio, Wang et al., 2024). entropy: of the shares, 1 when even, 0 when one expert does everything. dead: how many
    took no token at all.
    """
    found = {str(number): _of(layer) for number, layer in enumerate(counts) if layer is not None}
    return {"experts": found} if found else {}


def _of(counts: Tensor) -> dict[str, Any]:
    counts = counts.cpu()  # one wait for the device, not one for each figure
    share = counts.double() / counts.sum().clamp(min=1)
    return {
        "share": [round(each, 5) for each in share.tolist()],
        "max_violation": round(float(share.max() * len(share) - 1), 4),
        "entropy": round(float(torch.special.entr(share).sum() / torch.log(share.new_tensor(max(2, len(share))))), 4),
        "dead": int((counts == 0).sum()),
    }
