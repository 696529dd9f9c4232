"""How a token knows its place. B batch, T tokens, H heads, D head size, d width.

A kind of position does two deeds, either of which may be nothing: it adds to the embedding at the input, and it turns
queries and keys inside the heads. `start` is the place of the first of the T tokens; `padding` (B,) counts the empty
slots on the left of each row, which take no place.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from homespun.config import Config
from homespun.errors import ConfigError
from homespun.model.packed import Packing
from homespun.model.plain import by_hand
from homespun.model.scaling import Scaling


class RotaryPositions(Config):
    """Turn pairs of query and key numbers by an angle that grows with the place (RoPE, Su et al., 2021), half-split.

    `fraction`: the share of each head that is turned, from its start. `scaling`: reach beyond the trained context.
    """

    kind: Literal["rotary"] = "rotary"
    base: Annotated[float, Field(gt=1)] = 10000.0
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    scaling: Scaling | None = None

    def at_input(self, width: int, context: int) -> nn.Module:
        """Nothing is added to the embedding."""
        return NoTable()

    def in_heads(self, head_size: int) -> nn.Module:
        """The rotation of queries and keys. Raises `ConfigError` where an odd number of them would turn."""
        turned = int(head_size * self.fraction)
        if turned % 2 or not turned:
            raise ConfigError(
                f"Rotary positions turn pairs, but {turned} of the {head_size} numbers of a head would turn",
                "Change model.width, model.attention.heads or model.positions.fraction.",
            )
        return Rotation(turned, self.base, self.scaling)

    def softmax_factor(self) -> float:
        """What multi-head latent attention multiplies its softmax scale by."""
        return self.scaling.softmax_factor() if self.scaling else 1.0

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

    def softmax_factor(self) -> float:
        """What multi-head latent attention multiplies its softmax scale by."""
        return 1.0

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

    def onwards(self, x: Tensor, start: int, padding: Tensor | None = None) -> Tensor:
        """Anything, at any places."""
        return x

    def packed(self, packing: Packing) -> NoRotation:
        """The same."""
        return self


class Rotation(nn.Module):
    """Rotary embedding of the first `size` numbers of each head, half-split as in Llama.

    The tables are plain fp32 tensors, no buffers: `.to(bfloat16)`, the meta device and checkpoints cannot spoil them;
    they are made where and when they are needed.
    """

    def __init__(self, size: int, base: float, scaling: Scaling | None = None):
        super().__init__()
        self.size, self.base, self.scaling = size, base, scaling
        self._cos = self._sin = torch.empty(0, size // 2)
        self._last: tuple[Any, Tensor | None, Tensor, Tensor] = None, None, self._cos, self._sin

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin of every angle up to `length` places: two (>= length, size/2) fp32 tensors."""
        if self._cos.size(0) < length or self._cos.device != device:
            with torch.inference_mode(False), torch.no_grad():  # made while writing, they must serve training, too
                place = torch.arange(_round_up(length), device=device, dtype=torch.float32)
                angle = torch.outer(place, self._frequencies(device))
                factor = self.scaling.table_factor() if self.scaling else 1.0
                self._cos, self._sin = angle.cos() * factor, angle.sin() * factor
        return self._cos, self._sin

    def _frequencies(self, device: torch.device) -> Tensor:
        spans = self.base ** (torch.arange(0, self.size, 2).to(device, torch.float32) / self.size)
        return self.scaling.frequencies(spans, self.base) if self.scaling else 1.0 / spans

    def forward(self, q: Tensor, k: Tensor, start: int = 0, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, H, T, D) of the T places from `start` on."""
        cos, sin = self.tables(start + q.size(2), q.device)
        if padding is None:
            cos, sin = cos[start : start + q.size(2)], sin[start : start + q.size(2)]  # (T, size/2)
        else:
            place = places(start, q.size(2), padding, q.device)
            cos, sin = cos[place][:, None], sin[place][:, None]  # (B, 1, T, size/2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    def onwards(self, x: Tensor, start: int, padding: Tensor | None = None) -> Tensor:
        """What `forward` does, for queries and keys beside each other, (B, H, T, D), in few operations.

        The layers of a step that share this module share its tables.
        """
        tokens = x.size(2)
        last, last_padding, cos, sin = self._last
        if last != (start, tokens, x.device) or last_padding is not padding:
            place = places(start, tokens, padding, x.device)
            cos, sin = (table[place] for table in self.tables(start + tokens, x.device))
            cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)  # (T, size) or (B, T, size)
            cos, sin = (cos, sin) if padding is None else (cos[:, None], sin[:, None])
            self._last = (start, tokens, x.device), padding, cos, sin
        turned, rest = x[..., : self.size], x[..., self.size :]
        turned = torch.addcmul(turned * cos, turned.roll(self.size // 2, -1), sin)  # (a, b) rolled by half is (b, a)
        return torch.cat((turned, rest), dim=-1) if rest.size(-1) else turned

    def packed(self, packing: Packing) -> Rotation:
        """One for all layers."""
        return packing.shared.setdefault((self.size, self.base, self.scaling), copy.copy(self))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + R/2]) by the angle i of each place; what lies beyond the first R numbers stays."""
    turned = 2 * cos.size(-1)
    if turned < x.size(-1):
        return torch.cat((rotate(x[..., :turned], cos, sin), x[..., turned:]), dim=-1)
    if by_hand(x):
        return _TrainedRotation.apply(x, cos, sin)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class _TrainedRotation(torch.autograd.Function):
    """`rotate` for training without a compiler, in two passes over memory. Its gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(d_y, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    y = x.new_empty(x.shape)
    (a, b), (left, right) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(a, cos, out=left)
    left.addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=right)
    right.addcmul_(a, sin, value=sign)
    return y


def _round_up(length: int) -> int:
    return max(256, 1 << (length - 1).bit_length())  # grow by doubling, so that decoding does not rebuild at each token
