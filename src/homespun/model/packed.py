"""Matrices packed for decoding: laid out for a product with few rows, or rounded to fewer bits (weights only).

What is not a matrix of a linear layer stays as it is, and so do the activations: in fp32, cast for the product alone.
The packed products are torch's own and for the CPU. d inputs, n outputs, g inputs of a group.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homespun.model.plain import plain

Weights = Literal["fp32", "bf16", "int8", "int4"]
"""How a matrix is kept: fp32, bf16, one scale for each output (int8), one scale and zero for 32 inputs (int4)."""

GROUP = 32  # inputs that share a scale in int4
_OUTPUTS = 16  # the int4 kernel takes outputs so many at a time
_INPUTS = 32  # and the int8 kernel inputs: it reads past the end of a matrix of any other number
_MANY = 16  # rows from which it is quicker to make a bf16 matrix of an int8 one
_SMALL = 150_000  # weights of a matrix from which a layout of its own repays the slower call
_LAYOUT = {torch.float32: 8, torch.bfloat16: 1}  # rows to lay out for: the best for 1 to 512 rows, as measured


class Product(nn.Module):
    """x W^T + b for a packed W (n, d): (..., d) -> (..., n), fp32."""

    def __init__(self, matrix: Tensor, bias: Tensor | None):
        super().__init__()
        self.bias = bias
        self.weight = matrix.new_empty(0, dtype=torch.float32)  # empty: a cache asks what comes out, and where

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        """x W^T."""
        raise NotImplementedError


class PlainProduct(Product):
    """By torch's general product: the reference for the packed ones."""

    def __init__(self, matrix: Tensor, bias: Tensor | None):
        super().__init__(matrix, bias)
        self.matrix = matrix

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix)


class LaidProduct(Product):
    """In blocks as the CPU's kernel wants them, in fp32 or bf16: laid out once, not in each product."""

    def __init__(self, matrix: Tensor, bias: Tensor | None):
        super().__init__(matrix, bias)
        self.dtype = matrix.dtype
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(matrix, _LAYOUT[self.dtype])

    def product(self, x: Tensor) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.matrix, None, "none", [], "")
        return y.to(x.dtype)


class Int8Product(Product):
    """Integers times one scale for each output. The scales come after the product, in fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias)
        self.matrix, self.scales = to_int8(weight)
        self.ones = torch.ones_like(self.scales, dtype=torch.bfloat16)

    def product(self, x: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16).flatten(0, -2)
        if len(rows) < _MANY and rows.size(1) % _INPUTS == 0:
            y = torch._weight_int8pack_mm(rows, self.matrix, self.ones)
        else:
            y = F.linear(rows, self.matrix.to(torch.bfloat16))  # holds these integers exactly
        return (y * self.scales).view(*x.shape[:-1], -1)


class Int4Product(Product):
    """Four bits for a weight, and a scale and a zero for each `GROUP` inputs."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias)
        integers, scales, zeros = to_int4(weight)
        self.matrix = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
        self.scales_and_zeros = torch.stack((scales, zeros), dim=-1).transpose(0, 1).contiguous()  # (d / g, n, 2)

    def product(self, x: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16).flatten(0, -2)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.matrix, GROUP, self.scales_and_zeros)
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) -> integers from -127 to 127 and fp32 scales (n,)."""
    scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


def to_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, d) -> int32 integers i from 0 to 15, and bf16 scales and zeros (n, d / g): W = (i - 8) scale + zero."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1)
    scales = ((high - low) / 15).clamp(min=1e-9).to(torch.bfloat16)
    zeros = (low + 8 * scales.float()).to(torch.bfloat16)
    integers = ((groups - zeros.float()[..., None]) / scales.float()[..., None]).round() + 8
    return integers.clamp(0, 15).flatten(1).to(torch.int32), scales, zeros


def rounded(weight: Tensor, weights: Weights) -> Tensor:
    """The fp32 matrix that a packed one stands for."""
    match kept(weight, weights):
        case "bf16":
            return weight.bfloat16().float()
        case "int8":
            integers, scales = to_int8(weight)
            return integers * scales[:, None]
        case "int4":
            integers, scales, zeros = to_int4(weight)
            return ((integers.unflatten(1, (-1, GROUP)) - 8) * scales.float()[..., None] + zeros[..., None]).flatten(1)
        case _:
            return weight


def kept(weight: Tensor, weights: Weights) -> Weights:
    """The form of a matrix (n, d): int8 instead of int4 where it does not divide into the kernel's blocks."""
    fits = weight.size(0) % _OUTPUTS == 0 and weight.size(1) % GROUP == 0
    return "int8" if weights == "int4" and not fits else weights


def _lays_out(dtype: torch.dtype) -> bool:
    """Whether this CPU has kernels for a matrix that was laid out before."""
    if not torch.backends.mkldnn.is_available() or "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass
class Packing:
    """How the parts of a model are packed; what its layers can share is made once."""

    weights: Weights
    shared: dict[Any, Any] = field(default_factory=dict)

    def matrix(self, weight: Tensor, bias: Tensor | None = None) -> Product:
        """The packed product of a matrix (n, d) and a bias (n,)."""
        weight = weight.detach()
        if plain():
            return PlainProduct(rounded(weight, self.weights), bias)
        match kept(weight, self.weights):
            case "int8":
                return Int8Product(weight, bias)
            case "int4":
                return Int4Product(weight, bias)
            case form:
                matrix = weight.to(torch.bfloat16 if form == "bf16" else torch.float32)
                if matrix.numel() >= _SMALL and _lays_out(matrix.dtype):
                    return LaidProduct(matrix, bias)
                return PlainProduct(matrix.float(), bias)

    def linear(self, *layers: nn.Linear) -> Product:
        """One product for linear layers that read the same, their outputs beside each other."""
        weights: list[Tensor] = [layer.weight for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        return self.matrix(torch.cat(weights), torch.cat(biases).detach() if biases else None)


@runtime_checkable
class Packable(Protocol):
    """A module that knows a better way for itself than `packed` does."""

    def packed(self, packing: Packing) -> nn.Module:
        """A module of the same function, for decoding."""
        ...


def packed(module: nn.Module, packing: Packing) -> nn.Module:
    """The same function in evaluation mode, its linear layers packed. All other parameters are shared, not copied."""
    if isinstance(module, Packable):
        return module.packed(packing)
    if isinstance(module, nn.Linear):
        return packing.linear(module)
    return with_packed_parts(module, packing)


def with_packed_parts(module: nn.Module, packing: Packing, **kept_parts: nn.Module) -> nn.Module:
    """A shallow copy of a module whose parts are packed, but for `kept_parts`."""
    other = copy.copy(module)
    other._modules = {name: kept_parts.get(name) or packed(part, packing) for name, part in module.named_children()}
    other.training = False
    return other
