"""Which rows of a parameter are a matrix of their own: for optimizers that treat a matrix as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """The rows of a parameter (..., rows, columns): blocks of `sizes`, one below the other, `times` over.

    All blocks in the same place make one matrix: queries and keys of three heads, laid head by head, are
    `Rows((D, D), times=3)`, two matrices of 3 * D rows.
    """

    sizes: tuple[int, ...]
    times: int = 1

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Views (..., times, size, columns), one for each matrix."""
        return tensor.unflatten(-2, (self.times, sum(self.sizes))).split(self.sizes, dim=-2)


@runtime_checkable
class Fused(Protocol):
    """A module some of whose parameters hold several matrices."""

    def fused_rows(self) -> dict[str, Rows]:
        """Their names within the module, and how the rows are shared."""
        ...


def fused_rows(model: nn.Module) -> dict[str, Rows]:
    """What all parts of a model say, by the whole names of the parameters; any other parameter is one matrix."""
    parts = [(path, module) for path, module in model.named_modules() if isinstance(module, Fused)]
    return {f"{path}.{name}".lstrip("."): rows for path, part in parts for name, rows in part.fused_rows().items()}
