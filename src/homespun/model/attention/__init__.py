"""The kinds of attention."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from homespun.model.attention.grouped import GroupedAttention
from homespun.model.attention.latent import CausalLatentAttention
from homespun.model.attention.mla import MultiHeadLatentAttention

Attention = Annotated[GroupedAttention | MultiHeadLatentAttention | CausalLatentAttention, Field(discriminator="kind")]
"""The union of the kinds; another kind is one more file and one more word here."""
