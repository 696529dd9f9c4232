"""Whether a fast path is to be taken, and the one switch that turns all of them off: to see whether one is to blame."""

from __future__ import annotations

import os

import torch
from torch import Tensor

SWITCH = "HOMESPUN_PLAIN"


def plain() -> bool:
    """Whether the environment asks for the plain paths: `HOMESPUN_PLAIN=1`."""
    return os.environ.get(SWITCH, "0") not in ("", "0")


def by_hand(x: Tensor) -> bool:
    """Whether to take a gradient that is written by hand: in training, unless a compiler fuses the plain one anyway."""
    return x.requires_grad and not torch.compiler.is_compiling() and not plain()
