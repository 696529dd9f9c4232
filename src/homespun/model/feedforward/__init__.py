"""The kinds of feed-forward."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from homespun.model.feedforward.dense import GELU, ReLU2, SwiGLU

FeedForward = Annotated[SwiGLU | GELU | ReLU2, Field(discriminator="kind")]
"""The union of the kinds; another kind is one more file and one more word here."""
