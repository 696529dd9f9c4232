"""One measure of validation loss for all: every character of the held-out text, in windows of equal length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 64  # windows that are read at a time


@torch.inference_mode()
def mean_loss(logits: Callable[[Tensor], Tensor], ids: Sequence[int], context: int) -> float:
    """Nats per token of the text `ids` in windows of `context` that do not overlap, the last unfinished one left out.

    logits: token ids (B, T) to (B, T, V).
    """
    windows = (len(ids) - 1) // context
    text = torch.as_tensor(ids[: windows * context + 1], dtype=torch.int64)
    tokens, targets = text[:-1].view(windows, context), text[1:].view(windows, context)
    total = sum(
        F.cross_entropy(logits(rows).float().flatten(0, 1), wanted.flatten(), reduction="sum").item()
        for rows, wanted in zip(tokens.split(ROWS), targets.split(ROWS), strict=True)
    )
    return total / targets.numel()
