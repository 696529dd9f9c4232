"""The one attention, against the formula written out."""

import itertools

import pytest
import torch

from homespun.model.attention.core import attend, visible


def plain(q, k, v, window=None, padding=None):
    """softmax(q k^T / sqrt(D)) v with the mask written out; heads repeated by hand."""
    groups = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT / q.size(-1) ** 0.5
    scores = scores.masked_fill(~visible(q.size(2), k.size(2), window, padding, q.device), float("-inf"))
    return scores.softmax(-1) @ v


def tensors(queries, keys, heads=4, kv_heads=2, size=8):
    torch.manual_seed(0)
    return (torch.randn(2, h, n, size) for h, n in ((heads, queries), (kv_heads, keys), (kv_heads, keys)))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (9, 9), (3, 9), (8, 9)])
@pytest.mark.parametrize("window", [None, 1, 4, 9, 50])
@pytest.mark.parametrize("chunk", [None, 1, 4, 7, 9])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_formula(queries, keys, window, chunk, padded):
    q, k, v = tensors(queries, keys)
    padding = torch.tensor([0, 2]) if padded else None
    ours = attend(q, k, v, window, chunk, padding)
    expected = plain(q, k, v, window, padding)
    real = slice(max(0, 2 - (keys - queries)), None)  # queries that stand in the padding themselves are of no use
    torch.testing.assert_close(ours[:, :, real], expected[:, :, real], atol=1e-6, rtol=1e-5)
    assert ours.isfinite().all()


def test_what_is_visible():
    seen = visible(3, 5, None, None, torch.device("cpu")).int().tolist()
    assert seen == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    seen = visible(3, 5, 2, None, torch.device("cpu")).int().tolist()
    assert seen == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    seen = visible(3, 3, None, torch.tensor([2]), torch.device("cpu"))[0, 0].int().tolist()
    assert seen == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]  # every query sees itself: no row is empty


def test_grouped_heads_equal_repeated_heads():
    for heads, kv_heads in itertools.product((4,), (1, 2, 4)):
        q, k, v = tensors(6, 6, heads, kv_heads)
        full = attend(q, k.repeat_interleave(heads // kv_heads, 1), v.repeat_interleave(heads // kv_heads, 1))
        torch.testing.assert_close(attend(q, k, v), full, atol=1e-6, rtol=1e-5)
