"""How a token knows its place. B batch, T tokens, H heads, D head size, d width.

A kind of position does two deeds, either of which may be nothing: it adds to the embedding at the input, and it turns
queries and keys inside the heads. `start` is the place of the first of the T tokens; `padding` (B,) counts the empty
slots on the left of each row, which take no place.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from homespun.config import Config
from homespun.errors import ConfigError


class RotaryPositions(Config):
    """Turn pairs of query and key numbers by an angle that grows with the place (RoPE, Su et al., 2021), half-split."""

    kind: Literal["rotary"] = "rotary"
    base: Annotated[float, Field(gt=1)] = 10000.0

    def at_input(self, width: int, context: int) -> nn.Module:
        """Nothing is added to the embedding."""
        return NoTable()

    def in_heads(self, head_size: int) -> nn.Module:
        """The rotation of queries and keys. Raises `ConfigError` for an odd head size."""
        if head_size % 2:
            raise ConfigError(
                f"Rotary positions need an even head size, not {head_size}",
                "Change model.width or model.attention.heads.",
            )
        return Rotation(head_size, self.base)

    def parameters(self, width: int, context: int) -> int:
        """How many numbers it learns: none."""
        return 0


class LearnedPositions(Config):
    """Add a learned vector for each place (GPT-2). There is no place beyond `model.context`."""

    kind: Literal["learned"] = "learned"

    def at_input(self, width: int, context: int) -> nn.Module:
        """The table of `context` vectors."""
        return PositionTable(context, width)

    def in_heads(self, head_size: int) -> nn.Module:
        """Queries and keys stay as they are."""
        return NoRotation()

    def parameters(self, width: int, context: int) -> int:
        """How many numbers it learns."""
        return context * width


Positions = Annotated[RotaryPositions | LearnedPositions, Field(discriminator="kind")]


def places(start: int, length: int, padding: Tensor | None, device: torch.device) -> Tensor:
    """Places of `length` tokens from `start` on: (T,), or (B, T) where rows are padded on the left; never below 0."""
    place = torch.arange(start, start + length, device=device)
    return place if padding is None else (place - padding[:, None]).clamp(min=0)


class NoTable(nn.Module):
    """Adds nothing at the input."""

    def forward(self, x: Tensor, start: int = 0, padding: Tensor | None = None) -> Tensor:
        return x


class PositionTable(nn.Embedding):
    """Learned vectors, one for each place."""

    def forward(self, x: Tensor, start: int = 0, padding: Tensor | None = None) -> Tensor:
        if start + x.size(1) > self.num_embeddings:
            raise ConfigError(
                f"Learned positions end at {self.num_embeddings}, but {start + x.size(1)} tokens were given",
                "Give fewer tokens, or train with a larger model.context.",
            )
        return x + super().forward(places(start, x.size(1), padding, x.device))


class NoRotation(nn.Module):
    """Leaves queries and keys as they are."""

    def forward(self, q: Tensor, k: Tensor, start: int = 0, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return q, k


class Rotation(nn.Module):
    """Rotary embedding of queries and keys, half-split as in Llama.

    The tables are plain fp32 tensors, no buffers: `.to(bfloat16)`, the meta device and checkpoints cannot spoil them;
    they are made where and when they are needed.
    """

    def __init__(self, head_size: int, base: float):
        super().__init__()
        self.head_size, self.base = head_size, base
        self._cos = self._sin = torch.empty(0, head_size // 2)

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin of every angle up to `length` places: two (>= length, D/2) fp32 tensors."""
        if self._cos.size(0) < length or self._cos.device != device:
            with torch.inference_mode(False):  # made while writing, the tables must serve training, too
                exponent = torch.arange(0, self.head_size, 2).to(device, torch.float32) / self.head_size
                place = torch.arange(_round_up(length), device=device, dtype=torch.float32)
                angle = torch.outer(place, 1.0 / self.base**exponent)
                self._cos, self._sin = angle.cos(), angle.sin()
        return self._cos, self._sin

    def forward(self, q: Tensor, k: Tensor, start: int = 0, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        cos, sin = self.tables(start + q.size(2), q.device)  # q (B, H, T, D)
        if padding is None:
            cos, sin = cos[start : start + q.size(2)], sin[start : start + q.size(2)]  # (T, D/2)
        else:
            place = places(start, q.size(2), padding, q.device)
            cos, sin = cos[place][:, None], sin[place][:, None]  # (B, 1, T, D/2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        return rotate(q, cos, sin), rotate(k, cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) by the angle i of each place."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _round_up(length: int) -> int:
    return max(256, 1 << (length - 1).bit_length())  # grow by doubling, so that decoding does not rebuild at each token
