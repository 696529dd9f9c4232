"""The one exact causal attention; the only place that calls the scaled dot product.

B batch, H heads, Hk key-value heads, T queries, S keys (the queries are the last T of them), D head size.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from homespun.model.plain import plain

_ROWS = 128  # queries whose probabilities are in memory at one time, in `trained_attention`
_SCORES = 2**24  # scores that are looked at together; bounds the temporary memory


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    query_chunk: int | None = None,
    padding: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T * scale) v, where each query sees itself and what stands before it.

    q (B, H, T, D), k and v (B, Hk, S, D) with H a multiple of Hk and S >= T; returns (B, H, T, D).
    `window`: a query sees that many keys, itself among them. `query_chunk`: queries are taken that many at a time,
    which bounds the memory of the scores and changes no result. `padding` (B,): keys before it are empty in that row.
    """
    queries, keys = q.size(2), k.size(2)
    step = query_chunk or queries
    if step >= queries:
        return _attend(q, k, v, window, padding, scale)
    parts = []
    for begin in range(0, queries, step):
        end = min(begin + step, queries)
        seen = keys - queries + end
        parts.append(_attend(q[:, :, begin:end], k[:, :, :seen], v[:, :, :seen], window, padding, scale))
    return torch.cat(parts, dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, padding: Tensor | None, scale: float | None) -> Tensor:
    queries, keys = q.size(2), k.size(2)
    if padding is None and queries == keys and _trains_in_bf16(q):
        low = [x.to(torch.bfloat16) for x in (q, k, v)]
        return trained_attention(*low, window or keys, q.size(-1) ** -0.5 if scale is None else scale)
    if window is not None and (first := keys - queries - window + 1) > 0:  # no query sees what stands before `first`
        k, v = k[:, :, first:], v[:, :, first:]
        padding = padding if padding is None else padding - first
        keys -= first
    mask = None
    if padding is not None or 1 < queries < keys or (window is not None and keys > window):
        mask = visible(queries, keys, window, padding, q.device)
    causal = mask is None and queries > 1  # the kernel aligns its own causal mask top-left: right only for T = S
    grouped = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)


def _trains_in_bf16(q: Tensor) -> bool:
    """Whether `trained_attention` is the faster way: in bf16 the CPU's own kernel is half as fast as the products."""
    if q.device.type != "cpu" or not q.requires_grad or plain():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    return dtype == torch.bfloat16


@torch.library.custom_op("homespun::trained_attention", mutates_args=())
def trained_attention(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    """What `attend` computes where T = S, from matrix products alone: (B, H, T, D) in the type of `v`.

    A block of queries at a time, against the keys that it sees. The backward makes the probabilities P again:
    dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(P dP)), dQ = dS K scale, dK = dS^T Q scale.
    """
    q3, k3, v3 = _by_shared_head(q, k, v)
    y = q3.new_empty(*q3.shape[:-1], v.size(-1))
    for rows, keys in _blocks(q.size(2), window):
        p = _probabilities(q3[:, :, rows], k3[:, keys], rows, keys, window, scale)
        y[:, :, rows] = torch.bmm(p, v3[:, keys]).view_as(y[:, :, rows])
    return y.view(*q.shape[:-1], -1)


@torch.library.custom_op("homespun::trained_attention_backward", mutates_args=())
def _trained_attention_backward(
    d_y: Tensor, q: Tensor, k: Tensor, v: Tensor, window: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    q3, k3, v3 = _by_shared_head(q, k, v)
    d_y = d_y.reshape(*q3.shape[:-1], -1)
    d_q, d_k, d_v = torch.empty_like(q3), torch.zeros_like(k3), torch.zeros_like(v3)
    for rows, keys in _blocks(q.size(2), window):
        asking, upstream = q3[:, :, rows], d_y[:, :, rows].flatten(1, 2)
        p = _probabilities(asking, k3[:, keys], rows, keys, window, scale)
        d_v[:, keys].baddbmm_(p.mT, upstream)
        d_p = torch.bmm(upstream, v3[:, keys].mT)
        d_s = torch.ops.aten._softmax_backward_data.out(d_p, p, -1, p.dtype, grad_input=d_p)
        d_q[:, :, rows] = torch.bmm(d_s, k3[:, keys]).view_as(asking)
        d_k[:, keys].baddbmm_(d_s.mT, asking.flatten(1, 2))
    return d_q.mul_(scale).view_as(q), d_k.mul_(scale).view_as(k), d_v.view_as(v)


def _by_shared_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, H, T, D), (B, Hk, S, D) -> (B Hk, H / Hk, T, D), (B Hk, S, D): heads that share keys beside each other."""
    batch, shared = k.shape[:2]
    return q.reshape(batch * shared, -1, *q.shape[2:]), k.reshape(-1, *k.shape[2:]), v.reshape(-1, *v.shape[2:])


def _blocks(length: int, window: int) -> list[tuple[slice, slice]]:
    """Queries that are taken together, and the keys that any of them sees."""
    starts = range(0, length, _ROWS)
    return [
        (slice(start, end), slice(max(0, start - window + 1), end))
        for start, end in ((start, min(start + _ROWS, length)) for start in starts)
    ]


def _probabilities(q: Tensor, k: Tensor, rows: slice, keys: slice, window: int, scale: float) -> Tensor:
    """softmax of the masked scores of a block, (N, G t, s), from q (N, G, t, D) and k (N, s, D)."""
    count, group, queries, _ = q.shape
    mask = _mask(group, queries, k.size(1), window if window < rows.stop else None, q.dtype)
    scores = torch.baddbmm(mask.expand(count, -1, -1), q.flatten(1, 2), k.mT, alpha=scale)
    return torch.ops.aten._softmax.out(scores, -1, False, out=scores)


@functools.lru_cache(maxsize=32)
def _mask(group: int, queries: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of a block, (group * queries, keys): 0, or -inf where a query does not look."""
    seen = visible(queries, keys, window, None, torch.device("cpu"))
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -math.inf).repeat(group, 1)


def _fake_attention(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    return v.new_empty(*q.shape[:-1], v.size(-1))


def _fake_backward(d_y: Tensor, q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _differentiate(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    return *_trained_attention_backward(d_y, *ctx.saved_tensors, *ctx.settings), None, None


trained_attention.register_fake(_fake_attention)
_trained_attention_backward.register_fake(_fake_backward)
trained_attention.register_autograd(_differentiate, setup_context=_keep)


def attend_shared(q: Tensor, latents: Tensor, padding: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention of all heads over one sequence of vectors that are keys and values at once.

    q (B, H, T, D), latents (B, S, D); returns (B, H, T, D). The heads become rows of queries, so that nothing is copied
    for each head.
    """
    heads, queries, keys = q.size(1), q.size(2), latents.size(1)
    mask = None
    if queries > 1 or padding is not None:
        seen = visible(queries, keys, None, padding, q.device)
        mask = seen.repeat_interleave(heads, dim=-2)  # row t * H + h
    rows = q.transpose(1, 2).flatten(1, 2)[:, None]  # (B, 1, T * H, D)
    shared = latents[:, None]
    y = F.scaled_dot_product_attention(rows, shared, shared, attn_mask=mask, scale=scale)
    return y[:, 0].unflatten(1, (queries, heads)).transpose(1, 2)


def attend_where(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys that are `seen` (B or 1, 1, T or 1, S); none means all of them.

    q (B, H, T, D), k and v (B, Hk, S, D); returns (B, H, T, D). Every query has to see something.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=q.size(1) != k.size(1))


@torch.no_grad()
def largest_scores(q: Tensor, k: Tensor, window: int | None = None, scale: float | None = None) -> Tensor:
    """The largest score q k^T * scale that each head gives to a key which its query sees, (H,) in fp32.

    q (B, H, T, D), k (B, Hk, S, D), as for `attend`. Takes so many queries at a time that the scores stay small.
    """
    batch, heads, queries, size = q.shape
    keys, shared = k.size(2), k.size(1)
    step = max(1, _SCORES // (batch * heads * keys))
    largest = q.new_full((heads,), -torch.inf, dtype=torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        for begin in range(0, queries, step):
            part = q[:, :, begin : begin + step].float().unflatten(1, (shared, -1))  # (B, Hk, H / Hk, t, D)
            seen = keys - queries + begin + part.size(3)
            first = 0 if window is None else max(0, seen - part.size(3) - window + 1)  # no query sees what is before
            scores = part @ k[:, :, None, first:seen].float().mT
            hidden = ~visible(part.size(3), seen - first, window, None, q.device)
            largest = largest.maximum(scores.masked_fill_(hidden, -torch.inf).amax((0, 3, 4)).flatten())
    return largest * (size**-0.5 if scale is None else scale)


def visible(queries: int, keys: int, window: int | None, padding: Tensor | None, device: torch.device) -> Tensor:
    """True where a query may look: (T, S), or (B, 1, T, S) with padding. Every query sees itself: no row is empty."""
    i = torch.arange(keys - queries, keys, device=device)[:, None]
    j = torch.arange(keys, device=device)[None]
    seen = j <= i
    if window is not None:
        seen &= i - j < window
    if padding is not None:
        seen = seen & (j >= padding[:, None, None, None]) | (i == j)
    return seen


def split_heads(x: Tensor, head_size: int) -> Tensor:
    """(..., T, H * D) -> (..., H, T, D)"""
    return x.unflatten(-1, (-1, head_size)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(..., H, T, D) -> (..., T, H * D)"""
    return x.transpose(-3, -2).flatten(-2)
