"""Cross-entropy of a whole vocabulary without its logits: a few hundred rows at a time, gradients made on the way.

N rows, R rows of one chunk, d width, V vocabulary. Memory: one (R, V) buffer instead of the (N, V) logits, their
softmax and their gradient; dh (N, d) and dW (V, d) are kept for the backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100
"""A target that no loss counts."""

_COLUMNS = 1024  # of the vocabulary in one fp32 product on a CPU: the outputs stay in its cache, 1.5x as fast


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk: int = 512,
) -> Tensor:
    """The SUM over targets not IGNORED of -log softmax(hidden @ weight.T)[target] + z_loss * logsumexp^2, in nats.

    hidden (N, d), weight (V, d), targets (N,) int64. `softcap`: logits become softcap * tanh(logits / softcap). The
    result is fp32 (fp64 for fp64) and differentiable once in `hidden` and `weight`; under autocast the products run in
    its type. Exactly 0 with zero gradients when every target is ignored. Without gradients wanted none are computed.
    """
    return cross_entropy_parts(hidden, weight, targets, softcap, z_loss, chunk)[0]


def cross_entropy_parts(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, z_loss: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """`chunked_cross_entropy`, its shares of cross-entropy and z-loss (without gradient), and the count of targets."""
    rows = (targets != IGNORED).nonzero().squeeze(1)
    if len(rows) < len(targets):  # rows that nobody asks about cost nothing and, whatever they hold, spoil nothing
        hidden, targets = hidden.index_select(0, rows), targets.index_select(0, rows)
    head = _Head(weight, hidden, softcap, z_loss, chunk)
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
            total, loss, z = _ChunkedCrossEntropy.apply(hidden, weight, targets, head)
        else:
            losses, z_losses = head.losses(hidden, targets)
            loss, z = losses.sum(), z_losses.sum()
            total = loss + z
    return total, loss, z, len(rows)


@torch.no_grad()
def token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None, chunk: int = 512
) -> Tensor:
    """The loss of each row, in nats: minus the log-probability of its target; 0 where the target is IGNORED.

    hidden (N, d), weight (V, d), targets (N,) -> (N,). No gradient.
    """
    valid = targets != IGNORED
    head = _Head(weight, hidden, softcap, 0.0, chunk)
    with torch.autocast(hidden.device.type, enabled=False):
        losses, _ = head.losses(hidden[valid], targets[valid])
    return losses.new_zeros(targets.shape).masked_scatter_(valid, losses)


class _Head:
    """The product with the head for one chunk of rows after the other, in buffers that are used again."""

    def __init__(self, weight: Tensor, hidden: Tensor, softcap: float | None, z_loss: float, chunk: int):
        self.softcap, self.z_loss, self.chunk = softcap, z_loss, max(1, min(chunk, len(hidden)))
        self.dtype = _product_dtype(hidden, weight)
        self.weight = weight.detach().to(self.dtype)  # (V, d)
        # fp16 underflows at the probabilities of a large vocabulary, before any loss scale could reach them
        self.gradient_dtype = torch.float32 if self.dtype == torch.float16 else self.dtype
        shape, sums = (self.chunk, len(weight)), torch.promote_types(self.dtype, torch.float32)
        self.buffer = torch.empty(shape, dtype=sums, device=weight.device)
        same = self.dtype == sums
        self.products = self.buffer if same else torch.empty(shape, dtype=self.dtype, device=weight.device)
        self.slopes = torch.empty_like(self.buffer) if softcap is not None else None

    def chunks(self, hidden: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of up to R rows: where, hidden states in the type of the products, targets."""
        for start in range(0, len(hidden), self.chunk):
            place = slice(start, start + self.chunk)
            yield place, hidden[place].detach().to(self.dtype), targets[place]

    def losses(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and z-loss of every row, (N,) each."""
        losses = torch.empty(len(hidden), dtype=self.buffer.dtype, device=hidden.device)
        z_losses = torch.zeros_like(losses)
        for place, states, wanted in self.chunks(hidden, targets):
            losses[place], normalizer, _, _ = self.exponentials(states, wanted)
            z_losses[place] = self.z_loss * normalizer.square()
        return losses, z_losses

    def exponentials(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One chunk: cross-entropy (R,), logsumexp (R,), exp(logits - peak) (R, V) in the buffer, its sums (R,)."""
        logits = self._logits(states)
        target = logits.gather(1, targets[:, None]).squeeze(1)
        peak = logits.amax(1)
        exponentials = logits.sub_(peak[:, None]).exp_()
        sums = exponentials.sum(1)
        normalizer = sums.log() + peak
        return normalizer - target, normalizer, exponentials, sums

    def gradient(self, exponentials: Tensor, sums: Tensor, normalizer: Tensor, targets: Tensor) -> Tensor:
        """d(loss) / d(hidden @ weight.T) of one chunk, (R, V), in place of the exponentials."""
        probabilities = exponentials.mul_(((1 + 2 * self.z_loss * normalizer) / sums)[:, None])
        gradient = probabilities.scatter_add_(1, targets[:, None], probabilities.new_full((len(targets), 1), -1.0))
        if self.slopes is not None:
            gradient.mul_(self.slopes[: len(targets)])
        return gradient if gradient.dtype == self.gradient_dtype else self.products[: len(targets)].copy_(gradient)

    def _logits(self, states: Tensor) -> Tensor:
        count, vocabulary = len(states), len(self.weight)
        products, logits = self.products[:count], self.buffer[:count]
        columns = _COLUMNS if products.device.type == "cpu" and self.dtype == torch.float32 else vocabulary
        for first in range(0, vocabulary, columns):
            part = slice(first, first + columns)
            torch.mm(states, self.weight[part].T, out=products[:, part])
        if self.products is not self.buffer:
            logits.copy_(products)
        if self.softcap is not None and self.slopes is not None:
            logits.div_(self.softcap).tanh_()
            torch.square(logits, out=self.slopes[:count]).neg_().add_(1)
            logits.mul_(self.softcap)
        return logits


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The forward already makes the gradients, while a chunk's softmax is at hand; the backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, head: _Head) -> tuple[Tensor, ...]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        total, loss_total, z_total = head.buffer.new_zeros(3).unbind()
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=head.buffer.dtype) if wants_weight else None
        head_weight = head.weight.to(head.gradient_dtype)
        for place, states, wanted in head.chunks(hidden, targets):
            losses, normalizer, exponentials, sums = head.exponentials(states, wanted)
            z_loss = head.z_loss * normalizer.square().sum()
            loss = losses.sum()
            total += loss + z_loss
            loss_total += loss
            z_total += z_loss
            gradient = head.gradient(exponentials, sums, normalizer, wanted)  # (R, V)
            if d_hidden is not None:
                d_hidden[place] = gradient @ head_weight
            if d_weight is not None:
                _add_product(d_weight, gradient.T, states.to(gradient.dtype))
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(loss_total, z_total)
        return total, loss_total, z_total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            d_hidden * upstream.to(d_hidden.dtype) if d_hidden is not None else None,
            (d_weight * upstream).to(ctx.weight_dtype) if d_weight is not None else None,
            None,
            None,
        )


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    dtype, device = torch.promote_types(hidden.dtype, weight.dtype), hidden.device.type
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where `total` may be wider than the factors."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
