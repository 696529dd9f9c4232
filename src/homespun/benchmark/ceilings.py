"""What this machine can do at best: matrix products at a model's own shapes, and how fast memory is read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homespun.model.decoder import Decoder
from homespun.train.precision import ceiling

COPIED = 2**26  # numbers in a copy, 256 MiB: more than most caches hold
LARGE = (2**14, 2**12)  # a matrix of as many
LEAST = 3  # tries of anything, however little time there is


@dataclass(frozen=True)
class Product:
    """A matrix product of the model, forward and backward: how often it stands in the model, and its best FLOP/s."""

    outputs: int
    inputs: int
    count: int
    flops_per_second: float


@dataclass(frozen=True)
class Ceilings:
    """The bounds that training and decoding are compared with.

    products: at `rows` tokens, in `precision`. flops_per_second: of all products of the model, one after the other.
    Bytes per second: `copy` (read and written), `row` (one row times a matrix that no cache holds, fp32), `model_row`
    (one row times each matrix of the model in turn, fp32: small models stay in a cache).
    """

    precision: str
    rows: int
    products: tuple[Product, ...]
    flops_per_second: float
    copy_bytes_per_second: float
    row_bytes_per_second: float
    model_row_bytes_per_second: float

    def table(self) -> list[tuple[str, str]]:
        """The ceilings as lines for a person."""
        shapes = [
            (f"{p.outputs:,} x {p.inputs:,}", f"{p.flops_per_second / 1e9:,.0f} GFLOP/s, {p.count} in the model")
            for p in self.products
        ]
        return [
            *shapes,
            ("all products of the model", f"{self.flops_per_second / 1e9:,.0f} GFLOP/s"),
            ("memory, copy", f"{self.copy_bytes_per_second / 1e9:,.1f} GB/s, read and written"),
            ("memory, one row x a large matrix", f"{self.row_bytes_per_second / 1e9:,.1f} GB/s"),
            ("one row x the model's matrices", f"{self.model_row_bytes_per_second / 1e9:,.1f} GB/s"),
        ]


def measure(model: Decoder, rows: int, dtype: torch.dtype, precision: str, seconds: float) -> Ceilings:
    """The ceilings for a model on its device, at `rows` tokens in one forward; products and memory each get `seconds`.

    Of a mixture's experts, one stands for those that take part.
    """
    device = model.head_weight.device
    shapes = product_shapes(model)
    products = []
    for (outputs, inputs), count in sorted(shapes.items(), key=lambda item: -item[0][0] * item[0][1] * item[1]):
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
        rate = _best(lambda one=linear: ceiling(one, rows, dtype, device), seconds / len(shapes))  # type: ignore[misc]
        products.append(Product(outputs, inputs, count, rate))
    sizes = [p.outputs * p.inputs * p.count for p in products]
    times = [size / p.flops_per_second for size, p in zip(sizes, products, strict=True)]
    source = torch.randn(COPIED, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _fastest(lambda: target.copy_(source), device, seconds / 3)
    own = [parameter.detach() for parameter in _matrices(model) if parameter.dim() == 2]
    return Ceilings(
        precision,
        rows,
        tuple(products),
        sum(sizes) / sum(times),
        copy,
        _row_speed([source.view(LARGE)], seconds / 3),
        _row_speed(own, seconds / 3),
    )


def product_shapes(model: Decoder) -> Counter[tuple[int, int]]:
    """(outputs, inputs) of every matrix that tokens are multiplied with, the head included."""
    return Counter((parameter.size(-2), parameter.size(-1)) for parameter in _matrices(model))


def _matrices(model: Decoder) -> list[Tensor]:
    """The head, and all parameters that are a matrix or, with experts, several of one shape; no table of the input."""
    named = model.named_parameters()
    return [
        model.head_weight,
        *(p for n, p in named if p.dim() in (2, 3) and "embed" not in n and n != "lm_head.weight"),
    ]


def synchronize(device: torch.device) -> None:
    """Returns when the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row_speed(matrices: Sequence[Tensor], seconds: float) -> float:
    rows = [torch.randn(1, matrix.size(1), device=matrix.device) for matrix in matrices]

    @torch.inference_mode()
    def multiply() -> None:
        for row, matrix in zip(rows, matrices, strict=True):
            F.linear(row, matrix)

    return sum(matrix.nbytes for matrix in matrices) / _fastest(multiply, matrices[0].device, seconds)


def _fastest(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest time of a call, in seconds."""

    def calls_per_second() -> float:
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        return 1 / (time.perf_counter() - begin)

    call()
    return 1 / _best(calls_per_second, seconds)


def _best(rate: Callable[[], float], seconds: float) -> float:
    """The highest of the rates that can be measured in `seconds`."""
    end = time.perf_counter() + seconds
    best, tries = 0.0, 0
    while tries < LEAST or time.perf_counter() < end:
        best, tries = max(best, rate()), tries + 1
    return best
