"""The kinds of feed-forward."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from homespun.model.feedforward.dense import GELU, ReLU2, SwiGLU
from homespun.model.feedforward.experts import Experts
from homespun.model.feedforward.routers import SigmoidRouter, SoftmaxRouter

FeedForward = Annotated[SwiGLU | GELU | ReLU2 | Experts, Field(discriminator="kind")]
"""The union of the kinds; another kind is one more file and one more word here."""

__all__ = ["GELU", "Experts", "FeedForward", "ReLU2", "SigmoidRouter", "SoftmaxRouter", "SwiGLU"]
