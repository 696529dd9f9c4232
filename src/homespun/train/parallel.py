"""Several processes, one run: the only file that knows torch.distributed.

Without `torchrun` there is one process and every function here is trivial.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class World:
    """Who this process is: its rank among `size` processes, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leader(self) -> bool:
        """Whether this process writes, prints and saves."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """The elementwise maximum of `values` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """The rows of all processes in the order of their ranks, as many from each, and where one's own begin.

        Its backward sums what every process wants of a row, so that losses which are summed over all processes have
        the gradients of one process that holds all rows.
        """
        if self.size == 1:
            return rows, 0
        everyone: Tensor = _Gather.apply(rows, self.rank, self.size)
        return everyone, self.rank * len(rows)

    def least(self, number: int) -> int:
        """The smallest of every process's `number`."""
        return -int(self.largest(torch.tensor(-number, device=self.device)))

    def from_leader(self, values: Tensor) -> Tensor:
        """The leader's `values`, in place."""
        if self.size > 1:
            dist.broadcast(values, src=0)
        return values

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter], bucket: int = 2**23) -> None:
        """Sums the gradients over all processes. Losses are divided by the global count before, so no mean is taken."""
        if self.size == 1:
            return
        for group in _buckets([p.grad for p in parameters if p.grad is not None], bucket):
            flat = torch.cat([gradient.flatten() for gradient in group])
            dist.all_reduce(flat)
            for gradient, summed in zip(group, flat.split([g.numel() for g in group]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            dist.barrier()


class _Gather(torch.autograd.Function):
    """Rows (n, ...) of each of `size` processes -> (n * size, ...)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, size: int) -> Tensor:
        ctx.own = slice(rank * len(rows), (rank + 1) * len(rows))
        everyone = [torch.empty_like(rows) for _ in range(size)]
        dist.all_gather(everyone, rows.contiguous())
        return torch.cat(everyone)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        wanted = upstream.contiguous().clone()
        dist.all_reduce(wanted)
        return wanted[ctx.own], None, None


def join() -> World:
    """This process's place among those started by `torchrun` (environment variables RANK, WORLD_SIZE, LOCAL_RANK)."""
    size, rank, local = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(rank, size, device)


def leave() -> None:
    """Ends the group that `join` made; safe to call twice."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(gradients: list[Tensor], limit: int) -> Iterable[list[Tensor]]:
    group: list[Tensor] = []
    held = 0
    for gradient in gradients:
        if group and (held + gradient.numel() > limit or gradient.dtype != group[0].dtype):
            yield group
            group, held = [], 0
        group.append(gradient)
        held += gradient.numel()
    if group:
        yield group
