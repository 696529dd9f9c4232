"""Gradients written by hand for training equal those of the plain formulas."""

import pytest
import torch

from homespun.model.feedforward.dense import squared_relu
from homespun.model.norms import RootMeanSquare
from homespun.model.positions import rotate

X = torch.randn(2, 3, 7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ANGLE = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def norm(dtype):
    module = RootMeanSquare(12, 1e-6).to(dtype)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.5, 2, 12))
    return module, module.weight


def part(name, dtype):
    """A function of x, and what it learns."""
    if name == "norm":
        return norm(dtype)
    if name == "norm, fp32 weight":  # as under autocast
        return norm(torch.float32)
    if name == "rotation":
        return lambda x: rotate(x, ANGLE.cos().to(dtype), ANGLE.sin().to(dtype)), None
    return squared_relu, None


def results(function, learnt, x):
    """What comes out, the gradients, and the name of the last operation."""
    y = function(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y.dtype)
    wanted = [x] if learnt is None else [x, learnt]
    return [y, *torch.autograd.grad(y, wanted, upstream)], type(y.grad_fn).__name__


@pytest.mark.parametrize("name", ["norm", "norm, fp32 weight", "rotation", "squared relu"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str
)
@pytest.mark.parametrize("transposed", [False, True])
def test_equal_to_the_plain_formula(monkeypatch, name, dtype, tolerance, transposed):
    x = X.to(dtype)
    x = (x.transpose(1, 3).contiguous().transpose(1, 3) if transposed else x).requires_grad_()
    fast, by_hand = results(*part(name, dtype), x)
    monkeypatch.setenv("HOMESPUN_PLAIN", "1")
    plain, by_torch = results(*part(name, dtype), x)
    assert "Trained" in by_hand + type(fast[0].grad_fn.next_functions[0][0]).__name__ and "Trained" not in by_torch
    for one, other in zip(fast, plain, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
