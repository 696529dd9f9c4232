"""What several updates together say: the figures of a row of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from homespun.train.progress import finite
from homespun.train.update import Stepped
from homespun.train.usage import add, expert_use


def figures(done: Sequence[Stepped]) -> dict[str, Any]:
    """The mean losses of these updates in nats, `loss` (none without updates) and all others by name; how experts were
    used; the largest score of attention, where it was measured."""
    count = sum(each.count for each in done)
    row: dict[str, Any] = {"loss": float(torch.stack([each.loss for each in done]).sum()) / count if count else None}
    if done:
        for name in done[-1].extra:
            row[name] = finite(float(sum(each.extra[name] for each in done)) / max(count, 1))
        row |= expert_use(add([each.counts for each in done]))
    if scores := [each.largest_score for each in done if each.largest_score is not None]:
        row["max_attention_logit"] = finite(float(torch.stack(scores).max()))
    return row
