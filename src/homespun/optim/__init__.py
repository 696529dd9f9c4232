"""The kinds of optimizer, their schedules, and what the trainer does with them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from homespun.optim.adamw import AdamW
from homespun.optim.muon import Muon
from homespun.optim.qk_clip import clip_attention
from homespun.optim.schedule import Constant, Cosine, Schedule, WarmupStableDecay
from homespun.optim.state import clip_gradients, load_optimizer_tensors, optimizer_tensors, set_learning_rate

Optimizer = Annotated[AdamW | Muon, Field(discriminator="kind")]
"""The union of the kinds; another kind is one more file and one more word here."""

__all__ = [
    "AdamW",
    "Constant",
    "Cosine",
    "Muon",
    "Optimizer",
    "Schedule",
    "WarmupStableDecay",
    "clip_attention",
    "clip_gradients",
    "load_optimizer_tensors",
    "optimizer_tensors",
    "set_learning_rate",
]
