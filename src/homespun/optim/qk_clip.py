"""QK-Clip (Su, 2025; Kimi Team, 2025, "Kimi K2"): scores of attention that grow beyond a limit are scaled back.

Muon's updates are as large in the direction in which queries and keys already agree as in any other, so their scores
may grow without end. The cure is in the weights of queries and keys alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from homespun.model.decoder import Decoder


@torch.no_grad()
def clip_attention(model: Decoder, tokens: Tensor, limit: float, over_all: Callable[[Tensor], Tensor]) -> Tensor:
    """Scales queries and keys so that no head's largest scaled score over tokens (B, T) exceeds `limit`.

    Heads below it keep every bit. Returns the largest score there was; a limit that nothing reaches only measures.
    `over_all`: the elementwise maximum over all processes. A layer is measured when those below it are clipped.
    """
    largest = []
    for block, scores in model.largest_scores(tokens):
        scores = over_all(scores)
        factors = limit / scores.clamp(min=limit)
        block.scale_scores(torch.where(scores.isfinite(), factors, 1.0))  # what overflows in fp16 must not erase a head
        torch.clear_autocast_cache()  # it would still hold the weights from before
        largest.append(scores.max())
    return torch.stack(largest).max()
