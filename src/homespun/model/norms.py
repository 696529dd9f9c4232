"""Normalisations. B batch, T tokens, d width."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from homespun.config import Config
from homespun.model.packed import Packing
from homespun.model.plain import by_hand


class RMSNorm(Config):
    """Divide by the root mean square, times a learned weight (Zhang and Sennrich, 2019)."""

    kind: Literal["rms"] = "rms"
    eps: Annotated[float, Field(gt=0, le=1e-2)] = 1e-6

    def build(self, width: int) -> nn.Module:
        """A module (..., width) -> (..., width)."""
        return RootMeanSquare(width, self.eps)

    def parameters(self, width: int) -> int:
        """How many numbers it learns."""
        return width


class LayerNorm(Config):
    """Subtract the mean, divide by the deviation, times a weight, plus a bias (Ba et al., 2016)."""

    kind: Literal["layer"] = "layer"
    eps: Annotated[float, Field(gt=0, le=1e-2)] = 1e-5
    bias: bool = True

    def build(self, width: int) -> nn.Module:
        """A module (..., width) -> (..., width)."""
        return nn.LayerNorm(width, eps=self.eps, bias=self.bias)

    def parameters(self, width: int) -> int:
        """How many numbers it learns."""
        return width * (2 if self.bias else 1)


Norm = Annotated[RMSNorm | LayerNorm, Field(discriminator="kind")]


class RootMeanSquare(nn.Module):
    """RMSNorm as Llama computes it: in fp32, rounded to the input's type, and only then times the weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (..., d) -> (..., d)
        if by_hand(x):
            return _TrainedRootMeanSquare.apply(x, self.weight, self.eps)
        if x.dtype == torch.float32:  # the fused kernel gives the same bits here; in bf16 it rounds elsewhere
            return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        h = x.float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)

    def packed(self, packing: Packing) -> RootOfSquares:
        """The same in fewer operations."""
        return RootOfSquares(self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class RootOfSquares(nn.Module):
    """RMSNorm in fp32 by the length of the vector: x / sqrt(|x|^2 + d eps) * (weight sqrt(d)), four small operations.

    `weight` (..., d) may differ between the heads.
    """

    def __init__(self, weight: Tensor, eps: float):
        super().__init__()
        size = weight.size(-1)
        self.weight = weight.detach() * size**0.5
        self.least = weight.detach().new_tensor((size * eps) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:  # (..., d) -> (..., d)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.hypot(length, self.least) * self.weight


class _TrainedRootMeanSquare(torch.autograd.Function):
    """y = w x r with r = 1 / rms(x), for training without a compiler: half the passes over memory of plain autograd,
    and one rounding less.

    With a = r dy: dw = sum(x a), dx = w a - x r^2 mean(w x a).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        r = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (wide * r).mul_(weight).to(torch.promote_types(x.dtype, weight.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        wide = x.to(r.dtype)
        a = d_y * r  # (..., d)
        xa = (wide * a).flatten(0, -2)
        d_weight = xa.sum(0)
        mean = (xa @ weight.to(xa.dtype) / x.size(-1)).view_as(r)
        d_x = a.mul_(weight).addcmul_(wide, r.square() * mean, value=-1)
        return d_x.to(x.dtype), d_weight.to(weight.dtype), None
