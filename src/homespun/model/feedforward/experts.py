"""Mixture of experts: many small feed-forward parts, of which each token uses a few.

B batch, T tokens, N = B * T, d width, f hidden of one expert, E experts, K of them for a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from homespun.config import Config, Count
from homespun.errors import ConfigError
from homespun.model.auxiliary import Auxiliary
from homespun.model.cost import PartCost, linear
from homespun.model.feedforward.dense import SwiGLU, SwiGLUFeedForward
from homespun.model.feedforward.routers import Router, Routing, SoftmaxRouter
from homespun.model.matrices import Rows
from homespun.model.plain import plain

if TYPE_CHECKING:
    from homespun.model.decoder import ModelConfig

Coefficient = Annotated[float, Field(ge=0)]


class Experts(Config):
    """A router sends each token to a few of many SwiGLU experts; their outputs are summed by weight (Shazeer et al.,
    2017). No token is dropped, whatever the router does.

    `hidden`: of each expert; none means 8/3 of the width divided by the router's top_k, so that a token costs what it
    would in a dense SwiGLU. `shared`: so many experts more that see every token (DeepSeek). `dense_layers`: layers,
    counted from 0, that have a dense SwiGLU of `dense_hidden` instead. `balance_loss` and `z_loss`: weights of the two
    losses that keep the experts evenly used (Fedus et al., 2021) and the router's scores small (Zoph et al., 2022).
    `capacity`: in training, an expert takes at most that many times its fair share of a batch and what is beyond is
    dropped; none means no limit.
    """

    kind: Literal["experts"] = "experts"
    experts: Annotated[Count, Field(le=4096)] = 8
    hidden: Count | None = None
    shared: Annotated[int, Field(ge=0)] = 0
    router: Router = SoftmaxRouter()
    dense_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    dense_hidden: Count | None = None
    balance_loss: Coefficient = 0.01
    z_loss: Coefficient = 1e-3
    capacity: Annotated[float, Field(gt=0)] | None = None

    def check(self, model: ModelConfig) -> None:
        """Raises `ConfigError` where the router cannot choose, or a layer is not there."""
        self.router.check(self.experts)
        if beyond := [layer for layer in self.dense_layers if layer >= model.layers]:
            raise ConfigError(
                f"model.feed_forward.dense_layers names layer {beyond[0]}, but the last layer is {model.layers - 1}",
                "Layers are counted from 0.",
            )

    def size(self, width: int) -> int:
        """The hidden width of one expert."""
        return self.hidden or -(-8 * width // (3 * self.router.top_k * 32)) * 32

    @property
    def dense(self) -> SwiGLU:
        """What the layers without experts have."""
        return SwiGLU(hidden=self.dense_hidden)

    def build(self, model: ModelConfig, layer: int) -> nn.Module:
        """The module of one layer."""
        return self.dense.build(model, layer) if layer in self.dense_layers else MixtureOfExperts(self, model)

    def cost(self, model: ModelConfig, layer: int) -> PartCost:
        """What one layer costs. `activations` are those of a batch without a capacity limit."""
        if layer in self.dense_layers:
            return self.dense.cost(model, layer)
        d, f, taken = model.width, self.size(model.width), self.router.top_k
        expert = linear(d, f) * 2 + linear(f, d)
        used = expert * taken + PartCost(activations=taken * (2 * d + 4 * f))  # rows in and out, gate, up, product
        idle = (self.experts - taken) * expert.parameters
        router = linear(d, self.experts) + PartCost(activations=d + 3 * self.experts)
        shared = SwiGLU(hidden=self.shared * f).cost(model, layer) if self.shared else PartCost()
        return router + used + shared + PartCost(parameters=idle, idle=idle)


class MixtureOfExperts(nn.Module):
    """(B, T, d) -> (B, T, d), with balance and z-loss and the experts' counts beside it."""

    def __init__(self, config: Experts, model: ModelConfig):
        super().__init__()
        self.config = config
        d, f = model.width, config.size(model.width)
        self.gate = config.router.build(d, config.experts)
        self.experts = ExpertWeights(config.experts, d, f)
        if config.shared:
            self.shared_experts = SwiGLUFeedForward(d, config.shared * f, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Auxiliary]:
        c = self.config
        flat = x.flatten(0, 1)  # (N, d)
        routing = self.gate(flat)
        chosen = routing.chosen.flatten()
        counts = chosen.new_zeros(c.experts).scatter_add_(0, chosen, torch.ones_like(chosen))  # bincount would wait
        limit = None
        if c.capacity is not None and self.training:  # a token that is written must not depend on its company
            limit = max(1, round(c.capacity * len(chosen) / c.experts))
        y = self.experts(flat, routing, counts, limit).view_as(x)
        if c.shared:
            y = y + self.shared_experts(x)[0]
        return y, self._report(routing, counts)

    def _report(self, routing: Routing, counts: Tensor) -> Auxiliary:
        c = self.config
        if not torch.is_grad_enabled():
            return Auxiliary(counts=(counts,))
        balance, z = balance_loss(routing, counts), routing.logits.logsumexp(-1).square().mean()
        return Auxiliary(
            penalty=c.balance_loss * balance + c.z_loss * z,
            losses={"balance_loss": balance.detach(), "router_z_loss": z.detach()},
            counts=(counts,),
        )

    def rebalance(self, counts: Tensor) -> None:
        """Tells the router what an update's tokens were, (E,), of all devices."""
        self.gate.rebalance(counts)


def balance_loss(routing: Routing, counts: Tensor) -> Tensor:
    """E * sum over experts of (share of tokens * mean probability): 1 when both are even, E when all go to one.

    Only the probabilities carry gradient: what is used too much becomes less likely.
    """
    tokens = counts / counts.sum().clamp(min=1)
    return len(counts) * (tokens * routing.shares.mean(0)).sum()


class ExpertWeights(nn.Module):
    """The experts' matrices: `gate_up_proj` (E, 2f, d), the gate's rows before up's, and `down_proj` (E, d, f)."""

    def __init__(self, experts: int, width: int, hidden: int):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, hidden))

    def fused_rows(self) -> dict[str, Rows]:
        """Of each expert: the gate's rows, and up's."""
        hidden = self.down_proj.size(-1)
        return {"gate_up_proj": Rows((hidden, hidden))}

    def forward(self, x: Tensor, routing: Routing, counts: Tensor, limit: int | None = None) -> Tensor:
        """Tokens (N, d) through their experts, summed by weight: (N, d). `counts` (E,) of the chosen experts.

        `limit`: what is beyond it, the last choices of each expert, counts nothing.
        """
        # Which row comes first within an expert matters to the last bit of a product alone: without a limit this is the
        # order, and so are the bits, of Hugging Face.
        order = routing.chosen.flatten().sort(stable=limit is not None).indices
        row = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        row, weights = row.view_as(routing.chosen), routing.weights
        if limit is not None:
            weights = _limited(weights, routing.chosen, row, counts, limit)
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        gate_up_proj, down_proj = self.gate_up_proj.to(dtype), self.down_proj.to(dtype)
        return _SparseSwiGLU.apply(x.to(dtype), gate_up_proj, down_proj, weights, order, row, counts)


@torch.compiler.disable  # compiled with the rest by torch 2.13, the comparison came out wrong on a CPU
def _limited(weights: Tensor, chosen: Tensor, row: Tensor, counts: Tensor, limit: int) -> Tensor:
    """The weights (N, K), 0 where a choice is not among the first `limit` of its expert."""
    starts = counts.cumsum(0) - counts
    return weights * (row - starts[chosen] < limit)


class _SparseSwiGLU(torch.autograd.Function):
    """sum over a token's experts e of weight * down_e(silu(gate_e x) * up_e x), with rows sorted by expert so that each
    expert is one matrix product. The backward works in place where autograd would make copies.

    x (N, d), weights (N, K). order (R,): the places of (token, choice), expert by expert, of which counts (E,) belong
    to each. row (N, K): where in it each choice stands.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate_up_proj: Tensor,
        down_proj: Tensor,
        weights: Tensor,
        order: Tensor,
        row: Tensor,
        counts: Tensor,
    ) -> Tensor:
        token, weight = order // weights.size(1), weights.flatten()[order, None]
        rows = x.index_select(0, token)  # (R, d)
        gate_up = grouped_linear(rows, gate_up_proj, counts)  # (R, 2f)
        gate, up = gate_up.chunk(2, dim=-1)
        inner = F.silu(gate).mul_(up)
        y = grouped_linear(inner, down_proj, counts) * weight  # (R, d)
        ctx.save_for_backward(rows, gate_up_proj, down_proj, weight, counts, token, row, gate_up, inner)
        return _sum_rows(y, row).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate_up_proj, down_proj, weight, counts, token, row, gate_up, inner = ctx.saved_tensors
        d_y = d_out.index_select(0, token)  # (R, d), still without the weights
        d_inner = grouped_linear(d_y, down_proj.mT, counts)  # (R, f)
        d_weight = torch.einsum("rf,rf->r", d_inner, inner).to(weight.dtype)
        weight = weight.to(d_y.dtype)
        d_down = grouped_outer(d_y.mul_(weight), inner, counts)  # (E, d, f)
        d_gate_up = _gate_up_gradient(d_inner.mul_(weight), gate_up)
        d_gate_up_proj = grouped_outer(d_gate_up, rows, counts)  # (E, 2f, d)
        d_x = _sum_rows(grouped_linear(d_gate_up, gate_up_proj.mT, counts), row).to(rows.dtype)
        return d_x, d_gate_up_proj, d_down, d_weight[row], None, None, None


def _gate_up_gradient(d_inner: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient of silu(gate) * up, from (R, f) to (R, 2f). Overwrites d_inner."""
    gate, up = gate_up.chunk(2, dim=-1)
    if torch.compiler.is_compiling():  # it fuses this, and cannot write into a part of a matrix
        return torch.cat((torch.ops.aten.silu_backward(d_inner * up, gate), d_inner * F.silu(gate)), dim=-1)
    d_gate_up = torch.empty_like(gate_up)
    d_gate, d_up = d_gate_up.chunk(2, dim=-1)
    torch.mul(d_inner, F.silu(gate), out=d_up)
    torch.ops.aten.silu_backward.grad_input(d_inner.mul_(up), gate, grad_input=d_gate)
    return d_gate_up


def _sum_rows(rows: Tensor, row: Tensor) -> Tensor:
    """The rows of each token summed in fp32 at least: rows (R, d), row (N, K) -> (N, d)."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if rows.dtype == torch.float64:  # the kernel does not know it
        return rows[row].sum(1)
    return F.embedding_bag(row, rows, mode="sum")


def grouped_linear(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Rows (R, in), of which the first counts[0] meet weights[0], the next counts[1] weights[1] and so on: (R, out).

    weights (E, out, in). One grouped product; where that cannot serve, a product for each expert, which gives the same.
    """
    if torch.compiler.is_compiling():
        return _opaque_linear(rows, weights, counts)
    if _groupable(rows, weights):
        return F.grouped_mm(rows, weights.mT, offs=_ends(counts))
    return looped_linear(rows, weights, counts)


def grouped_outer(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    """left^T right of each expert's rows, (R, m), (R, n) -> (E, m, n): `grouped_linear`'s gradient to its weights."""
    if torch.compiler.is_compiling():
        return _opaque_outer(left, right, counts)
    if _groupable(left, right):
        return F.grouped_mm(left.mT, right, offs=_ends(counts))
    parts = zip(left.split(counts.tolist()), right.split(counts.tolist()), strict=True)
    return torch.stack([a.mT @ b for a, b in parts])


def looped_linear(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """The same as `grouped_linear`, expert by expert: plain, and the oracle of its tests."""
    parts = rows.split(counts.tolist())
    return torch.cat([F.linear(part, weight) for part, weight in zip(parts, weights, strict=True)])


# To the compiler the two products are closed: it refuses the kernel in fp32, and cannot follow a loop over counts.


@torch.library.custom_op("homespun::grouped_linear", mutates_args=())
def _opaque_linear(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    return grouped_linear(rows, weights, counts)


@_opaque_linear.register_fake
def _(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    return rows.new_empty(rows.size(0), weights.size(1))


@torch.library.custom_op("homespun::grouped_outer", mutates_args=())
def _opaque_outer(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    return grouped_outer(left, right, counts)


@_opaque_outer.register_fake
def _(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    return left.new_empty(counts.size(0), left.size(1), right.size(1))


def _groupable(*matrices: Tensor) -> bool:
    """Whether the kernel of the grouped product takes these: no fp64, and rows of whole 16 bytes, also transposed."""
    if plain():
        return False
    whole = 16 // matrices[0].element_size()
    sizes = [size for matrix in matrices for size in (matrix.shape[-2:] if matrix.dim() == 3 else matrix.shape[-1:])]
    return matrices[0].dtype != torch.float64 and not any(size % whole for size in sizes)


def _ends(counts: Tensor) -> Tensor:
    return counts.cumsum(0).to(torch.int32)
