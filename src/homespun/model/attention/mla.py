"""Multi-head latent attention (DeepSeek-V2 and V3): keys and values of all heads rise from one small vector per token.

B batch, T tokens, S keys, d width, H heads; of each head dn numbers without place, dr rotated, dv of value; r the rank
of the shared latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from homespun.config import Config, Count
from homespun.model.attention.core import attend, attend_shared, largest_scores, merge_heads, split_heads
from homespun.model.cache import LatentCache
from homespun.model.cost import PartCost, linear, mean_keys
from homespun.model.matrices import Rows
from homespun.model.norms import RootMeanSquare
from homespun.model.packed import Packing, with_packed_parts

if TYPE_CHECKING:
    from homespun.model.decoder import ModelConfig

ABSORBED = 4  # so few new tokens are cheaper to answer in the space of the latents than by expanding all of them
LONG = 256  # keys from which the fused kernel repays zeros beside the values; shorter ones are bit-equal to DeepSeek's


class MultiHeadLatentAttention(Config):
    """Attention through a latent of `kv_lora_rank` numbers and one rotary key of `qk_rope_head_dim` for all heads,
    which is all that a decoding keeps (DeepSeek-AI, 2024). The names are those of DeepSeek-V3.

    `q_lora_rank`: queries come from a latent, too; none means straight from the input. Each head compares
    `qk_nope_head_dim` numbers without and `qk_rope_head_dim` with place, and reads `v_head_dim`. `norm_eps`: of the
    latents' norms, which is not the model's.
    """

    kind: Literal["mla"] = "mla"
    heads: Annotated[Count, Field(le=4096)] = 12
    kv_lora_rank: Count = 128
    q_lora_rank: Count | None = None
    qk_nope_head_dim: Count = 64
    qk_rope_head_dim: Count = 32
    v_head_dim: Count = 64
    norm_eps: Annotated[float, Field(gt=0, le=1e-2)] = 1e-6

    def check(self, model: ModelConfig) -> None:
        """Raises `ConfigError` where the rotary part cannot turn."""
        model.positions.in_heads(self.qk_rope_head_dim)

    def check_clip(self) -> None:
        """Every model of this kind can be clipped."""

    @property
    def key_size(self) -> int:
        """The numbers that a head compares."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def build(self, model: ModelConfig, layer: int) -> LatentKeyValueAttention:
        """The module of one layer."""
        return LatentKeyValueAttention(self, model)

    def cost(self, model: ModelConfig, layer: int, length: int, causal: bool) -> PartCost:
        """What one layer costs, at a sequence of `length` tokens. FLOPs are those of training."""
        d, h, r, rope = model.width, self.heads, self.kv_lora_rank, self.qk_rope_head_dim
        inner, out = h * self.key_size, h * self.v_head_dim
        query = linear(d, inner)
        if self.q_lora_rank is not None:
            query = linear(d, self.q_lora_rank) + linear(self.q_lora_rank, inner) + _norm(self.q_lora_rank)
        latent = linear(d, r + rope) + _norm(r) + linear(r, h * (self.qk_nope_head_dim + self.v_head_dim))
        padded = 2 * max(self.key_size, self.v_head_dim) if length >= LONG else self.key_size + self.v_head_dim
        seen = PartCost(flops=2 * h * padded * mean_keys(length, None, causal))
        # kept for the backward: the latent's rotary part, q and k as projected and as used, v as projected and as
        # padded, and the output, padded and flat
        kept = PartCost(activations=rope + 3 * inner + h * (padded + self.v_head_dim) + 2 * out)
        return query + latent + seen + kept + linear(out, d) + PartCost(cache=r + rope)


class LatentKeyValueAttention(nn.Module):
    """The attention of one layer: (B, T, d) -> (B, T, d)."""

    def __init__(self, config: MultiHeadLatentAttention, model: ModelConfig):
        super().__init__()
        self.config = config
        d, r, inner = model.width, config.kv_lora_rank, config.heads * config.key_size
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(d, inner, bias=False)
        else:
            self.q_a_proj = nn.Linear(d, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RootMeanSquare(config.q_lora_rank, config.norm_eps)
            self.q_b_proj = nn.Linear(config.q_lora_rank, inner, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(d, r + config.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RootMeanSquare(r, config.norm_eps)
        self.kv_b_proj = nn.Linear(r, config.heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False)
        self.o_proj = nn.Linear(config.heads * config.v_head_dim, d, bias=False)
        self.rotation = model.positions.in_heads(config.qk_rope_head_dim)
        self.scale = config.key_size**-0.5 * model.positions.softmax_factor()

    def forward(self, x: Tensor, cache: LatentCache | None = None) -> Tensor:  # (B, T, d) -> (B, T, d)
        start, padding = (cache.length, cache.padding) if cache is not None else (0, None)
        q, kv, kr = self._project(x, start, padding)
        if cache is not None:
            kv, kr = cache.append(kv, kr)  # (B, 1, S, r) and (B, 1, S, dr)
        if cache is not None and x.size(1) <= ABSORBED:
            return self.o_proj(merge_heads(self._absorbed(q, cache.filled, padding)))
        k, v = self._expand(kv, kr)
        return self.o_proj(merge_heads(self._expanded(q, k, v, padding)))

    def _project(self, x: Tensor, start: int, padding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, dn + dr), latents (B, 1, T, r) and rotary keys (B, 1, T, dr), each turned to its place."""
        c = self.config
        q = self.q_proj(x) if c.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q_nope, q_rope = split_heads(q, c.key_size).split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
        kv, kr = self.kv_a_proj_with_mqa(x).split([c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
        kv, kr = self.kv_a_layernorm(kv)[:, None], kr[:, None]
        q_rope, kr = self.rotation(q_rope, kr, start, padding)
        return torch.cat((q_nope, q_rope), dim=-1), kv, kr

    def _expand(self, kv: Tensor, kr: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, H, S, dn + dr) and values (B, H, S, dv) of all heads."""
        c = self.config
        both = split_heads(self.kv_b_proj(kv[:, 0]), c.qk_nope_head_dim + c.v_head_dim)
        k_nope, v = both.split([c.qk_nope_head_dim, c.v_head_dim], dim=-1)
        return torch.cat((k_nope, kr.expand(-1, c.heads, -1, -1)), dim=-1), v

    def _expanded(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None) -> Tensor:
        """For training and prompts. The fused kernel wants keys and values of one size, so zeros are added."""
        size, v_size = self.config.key_size, self.config.v_head_dim
        if k.size(2) >= LONG:
            v = F.pad(v, (0, max(0, size - v_size)))
            q, k = (F.pad(each, (0, max(0, v_size - size))) for each in (q, k))
        return attend(q, k, v, padding=padding, scale=self.scale)[..., :v_size]

    def _absorbed(self, q: Tensor, latents: Tensor, padding: Tensor | None) -> Tensor:
        """For few new tokens: queries go down into the latents' space, and what they read comes up from it.

        latents (B, S, r + dr), the cache as it is, serves as keys and as values of all heads: nothing is expanded.
        """
        c = self.config
        up = self.kv_b_proj.weight.view(c.heads, c.qk_nope_head_dim + c.v_head_dim, c.kv_lora_rank)
        w_k, w_v = up.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)  # (H, dn, r), (H, dv, r)
        q_nope, q_rope = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
        q = torch.cat((q_nope @ w_k, q_rope), dim=-1)  # (B, H, T, r + dr)
        read = attend_shared(q, latents, padding, self.scale)[..., : c.kv_lora_rank]
        return read @ w_v.mT  # (B, H, T, dv)

    def fused_rows(self) -> dict[str, Rows]:
        """The latent apart from the rotary key, and the keys of all heads apart from the values."""
        c = self.config
        return {
            "kv_a_proj_with_mqa.weight": Rows((c.kv_lora_rank, c.qk_rope_head_dim)),
            "kv_b_proj.weight": Rows((c.qk_nope_head_dim, c.v_head_dim), times=c.heads),
        }

    def largest_scores(self, x: Tensor) -> Tensor:
        """The largest scaled score of each head over the tokens x (B, T, d): (H,)."""
        q, kv, kr = self._project(x, 0, None)
        return largest_scores(q, self._expand(kv, kr)[0], scale=self.scale)

    @torch.no_grad()
    def scale_scores(self, factors: Tensor) -> None:
        """Multiplies the scores of each head by its factor, (H,). Where queries and keys are the head's own each takes
        the root; the rotary key belongs to all heads, so its queries take the whole."""
        c = self.config
        queries = self.q_proj if c.q_lora_rank is None else self.q_b_proj
        q_nope, q_rope = Rows((c.qk_nope_head_dim, c.qk_rope_head_dim), c.heads).split(queries.weight)  # (H, dn, in)
        k_nope, _ = self.fused_rows()["kv_b_proj.weight"].split(self.kv_b_proj.weight)
        whole = factors[:, None, None]
        for rows, factor in ((q_nope, whole.sqrt()), (q_rope, whole), (k_nope, whole.sqrt())):
            rows.mul_(factor)

    def packed(self, packing: Packing) -> nn.Module:
        """The same with packed matrices, but for the one whose rows `_absorbed` takes apart."""
        return with_packed_parts(self, packing, kv_b_proj=self.kv_b_proj)

    def new_cache(self, batch: int, capacity: int, padding: Tensor | None = None) -> LatentCache:
        """An empty cache for `batch` rows of up to `capacity` tokens, of the weights' type and on their device."""
        c = self.config
        return LatentCache(
            batch, capacity, c.kv_lora_rank, c.qk_rope_head_dim, padding, like=self.kv_a_proj_with_mqa.weight
        )


def _norm(size: int) -> PartCost:
    return PartCost(size, activations=2 * size)  # its input, and its output as the next part's input
