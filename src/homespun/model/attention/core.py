"""The one exact causal attention; the only place that calls the scaled dot product.

B batch, H heads, Hk key-value heads, T queries, S keys (the queries are the last T of them), D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
