"""The chunked loss is the plain loss, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from homespun.objectives.cross_entropy import IGNORED, chunked_cross_entropy, token_losses


def problem(
    rows: int = 37, width: int = 16, vocabulary: int = 50, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Hidden states, head and targets, a third of them ignored."""
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    targets[torch.rand(rows) < 0.33] = IGNORED
    return hidden, weight, targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None, z_loss: float = 0.0) -> Tensor:
    """The same with all logits in memory."""
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    z = (logits.logsumexp(-1).square() * (targets != IGNORED)).sum()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum") + z_loss * z


@pytest.mark.parametrize("chunk", [1, 8, 37, 1000])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_and_gradients_equal_those_of_full_logits(chunk: int, softcap: float | None, z_loss: float) -> None:
    hidden, weight, targets = problem()
    expected = plain(hidden, weight, targets, softcap, z_loss)
    d_hidden, d_weight = torch.autograd.grad(expected * 0.3, (hidden, weight))
    loss = chunked_cross_entropy(hidden, weight, targets, softcap, z_loss, chunk)
    (loss * 0.3).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(hidden.grad, d_hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad, d_weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap, z_loss", [(None, 0.0), (3.0, 0.0), (None, 0.1), (3.0, 0.1)])
def test_gradients_are_right_to_double_precision(softcap: float | None, z_loss: float) -> None:
    hidden, weight, targets = problem(7, 4, 11, torch.float64)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked_cross_entropy(hidden, weight, targets, softcap, z_loss, chunk=3)

    assert torch.autograd.gradcheck(loss, (hidden, weight), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_more_columns_than_one_block_of_the_vocabulary() -> None:
    hidden, weight, targets = problem(5, 8, 2500)
    torch.testing.assert_close(chunked_cross_entropy(hidden, weight, targets), plain(hidden, weight, targets))


def test_the_sum_over_parts_is_the_sum_over_all() -> None:
    hidden, weight, targets = problem(40)
    whole = chunked_cross_entropy(hidden, weight, targets)
    parts = [chunked_cross_entropy(hidden[i : i + 7], weight, targets[i : i + 7]) for i in range(0, 40, 7)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_value_is_right_in_bf16(autocast: bool) -> None:
    """At initialisation the loss is ln V for each token; sums in bf16 would stall far below it."""
    hidden, weight = torch.randn(3000, 32), torch.randn(1000, 32) * 0.02
    targets = torch.randint(1000, (3000,))
    expected = plain(hidden, weight, targets)
    dtype = torch.float32 if autocast else torch.bfloat16
    hidden, weight = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = chunked_cross_entropy(hidden, weight, targets, chunk=64)
        loss.backward()
        with torch.no_grad():
            again = chunked_cross_entropy(hidden, weight, targets, chunk=64)
    assert loss.dtype == torch.float32 and hidden.grad.dtype == weight.grad.dtype == dtype
    assert again == pytest.approx(loss.item(), rel=1e-6)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_under_autocast_are_those_of_fp32_within_its_roundings(dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(200, 64, 3000)
    expected = torch.autograd.grad(plain(hidden, weight * 0.1, targets), (hidden, weight))
    with torch.autocast("cpu", dtype):
        found = torch.autograd.grad(chunked_cross_entropy(hidden, weight * 0.1, targets, chunk=64), (hidden, weight))
    for mine, exact in zip(found, expected, strict=True):
        assert (mine - exact).norm() < 0.01 * exact.norm()


def test_a_batch_with_every_target_ignored_is_zero_with_zero_gradients() -> None:
    hidden, weight, _ = problem()
    loss = chunked_cross_entropy(hidden, weight, torch.full((37,), IGNORED), z_loss=0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden)) and torch.equal(weight.grad, torch.zeros_like(weight))


def test_ignored_rows_spoil_nothing_whatever_they_hold() -> None:
    hidden, weight, targets = problem()
    ignored = targets == IGNORED
    with torch.no_grad():
        hidden[ignored] = float("nan")
    loss = chunked_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(weight.grad).all()
    assert torch.equal(hidden.grad[ignored], torch.zeros(int(ignored.sum()), 16))


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    hidden, weight, targets = problem()
    (loss := chunked_cross_entropy(hidden, weight * 1e4, targets)).backward()
    torch.testing.assert_close(loss, plain(hidden, weight * 1e4, targets))
    assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()


def test_a_tied_weight_gets_the_gradient_of_both_its_uses() -> None:
    weight = torch.randn(20, 8, requires_grad=True)
    tokens, targets = torch.randint(20, (9,)), torch.randint(20, (9,))
    expected = torch.autograd.grad(plain(F.embedding(tokens, weight).tanh(), weight, targets), weight)[0]
    chunked_cross_entropy(F.embedding(tokens, weight).tanh(), weight, targets, chunk=4).backward()
    torch.testing.assert_close(weight.grad, expected)


def test_only_wanted_gradients_are_made() -> None:
    hidden, weight, targets = problem()
    frozen = weight.detach()
    chunked_cross_entropy(hidden, frozen, targets).backward()
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(plain(hidden, frozen, targets), hidden)[0])
    chunked_cross_entropy(hidden.detach(), weight, targets).backward()
    torch.testing.assert_close(weight.grad, torch.autograd.grad(plain(hidden, weight, targets), weight)[0])
    assert not chunked_cross_entropy(hidden.detach(), frozen, targets).requires_grad


class Operations(TorchDispatchMode):
    """Records the names of all operations, and the size of the largest tensor that one returned."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.names = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(func.__name__)
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return result


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_no_tensor_is_larger_than_one_chunk_of_logits(gradients: bool, autocast: bool) -> None:
    hidden, weight, targets = problem(256, 8, 4000)
    with (
        Operations() as seen,
        torch.set_grad_enabled(gradients),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss = chunked_cross_entropy(hidden, weight, targets, softcap=10.0, chunk=16)
        if gradients:
            loss.backward()
    assert 16 * 4000 <= seen.largest < 32 * 4000


def test_without_gradients_there_is_one_product_for_each_chunk() -> None:
    hidden, weight, targets = problem(64, 8, 30)
    with torch.no_grad(), Operations() as seen:
        chunked_cross_entropy(hidden, weight, targets.clamp(min=0), chunk=16)
    assert sum(name.startswith(("mm", "addmm")) for name in seen.names) == 4


def test_token_losses_are_the_terms_of_the_sum() -> None:
    hidden, weight, targets = problem()
    losses = token_losses(hidden, weight, targets, softcap=4.0, chunk=8)
    capped = 4 * torch.tanh(hidden @ weight.T / 4)
    torch.testing.assert_close(
        losses, F.cross_entropy(capped, targets, ignore_index=IGNORED, reduction="none").detach()
    )
    assert not losses.requires_grad and torch.equal(
        losses[targets == IGNORED], torch.zeros(int((targets == IGNORED).sum()))
    )


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    hidden, weight, targets = problem()
    (first,) = torch.autograd.grad(chunked_cross_entropy(hidden, weight, targets), hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()
