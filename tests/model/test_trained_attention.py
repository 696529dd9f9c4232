"""Attention from matrix products, as it is trained in bf16 on a CPU, equals the plain one."""

import pytest
import torch

from homespun.model.attention import core
from homespun.model.attention.core import attend, trained_attention


def heads(count: int, tokens: int, size: int, seed: int, dtype=torch.bfloat16) -> torch.Tensor:
    drawn = torch.randn(2, tokens, count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype).transpose(1, 2).requires_grad_()


def gradients(attention, q, k, v):
    y = attention(q, k, v)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return y, *torch.autograd.grad(y, (q, k, v), upstream.to(y.dtype))


@pytest.mark.parametrize("shared", [4, 2, 1])
@pytest.mark.parametrize(("tokens", "window"), [(1, None), (5, 3), (128, None), (300, None), (300, 70), (300, 200)])
def test_equal_to_the_plain_path(monkeypatch, shared, tokens, window):
    """In fp32, where rounding hides nothing; scale other than the usual, values narrower than keys."""
    q, k, v = heads(4, tokens, 8, 0, torch.float32), heads(shared, tokens, 8, 1, torch.float32), None
    v = heads(shared, tokens, 6, 2, torch.float32)
    fast = gradients(lambda *x: trained_attention(*x, window or tokens, 0.3), q, k, v)
    plain = gradients(lambda *x: attend(*x, window=window, scale=0.3), q, k, v)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_taken_in_bf16_training_only(monkeypatch):
    q, k, v = (heads(2, 40, 8, seed) for seed in range(3))
    taken = []
    monkeypatch.setattr(core, "trained_attention", lambda *given: taken.append(given) or trained_attention(*given))
    fast = gradients(attend, q, k, v)
    assert len(taken) == 1
    with torch.no_grad():
        attend(q.detach(), k.detach(), v.detach())
        attend(q[:, :, -1:].detach(), k.detach(), v.detach())
    attend(q, k, v, padding=torch.tensor([0, 3]))
    attend(*(x.float() for x in (q, k, v)))
    assert len(taken) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(*(x.float() for x in (q, k, v))).dtype == torch.bfloat16
    assert len(taken) == 2
    monkeypatch.setenv("HOMESPUN_PLAIN", "1")
    plain = gradients(attend, q, k, v)
    assert len(taken) == 2
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, atol=3e-2, rtol=3e-2)


def test_no_future_leaks():
    q, k, v = (heads(2, 200, 8, seed) for seed in range(3))
    y = attend(q, k, v)
    for gradient in torch.autograd.grad(y[:, :, 130].sum(), (q, k, v)):
        assert gradient[:, :, 131:].abs().max() == 0 and gradient[:, :, :131].abs().max() > 0


def test_the_operators_keep_their_contract():
    q, k, v = (heads(2, 9, 8, seed) for seed in range(3))
    torch.library.opcheck(trained_attention, (q, k, v, 9, 0.3), test_utils=("test_schema", "test_faketensor"))
