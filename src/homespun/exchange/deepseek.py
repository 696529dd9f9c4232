"""DeepSeek-V3 (and Kimi-K2): latent attention, sigmoid router, shared experts, dense layers at the bottom.

Its files keep the rotated numbers of a head in pairs (0, 1), (2, 3)...; ours stand half-split: (0, D/2), (1, D/2 + 1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from homespun.exchange.dense import write_common
from homespun.exchange.layout import Layout, Settings
from homespun.exchange.pieces import Rule, expert_rules, permuted
from homespun.exchange.rotary import read_rotary, write_rotary
from homespun.model.attention.mla import MultiHeadLatentAttention
from homespun.model.decoder import ModelConfig
from homespun.model.feedforward import Experts


def _read(s: Settings) -> dict[str, Any]:
    s.only("hidden_act", "silu", "swish")
    s.only("attention_bias", False)
    s.only("scoring_func", "sigmoid")
    s.only("topk_method", "noaux_tc")
    s.only("moe_layer_freq", 1)
    heads = s.need("num_attention_heads")
    s.only("num_key_value_heads", heads)
    attention = {
        "kind": "mla",
        "heads": heads,
        "kv_lora_rank": s.need("kv_lora_rank"),
        "q_lora_rank": s.values.get("q_lora_rank", 1536),
        "qk_nope_head_dim": s.need("qk_nope_head_dim"),
        "qk_rope_head_dim": s.need("qk_rope_head_dim"),
        "v_head_dim": s.need("v_head_dim"),
    }
    return {
        "vocab": s.need("vocab_size"),
        "width": s.need("hidden_size"),
        "layers": s.layers,
        "context": s.get("max_position_embeddings", 4096),
        "attention": attention,
        "feed_forward": _read_feed_forward(s),
        "norm": {"kind": "rms", "eps": s.get("rms_norm_eps", 1e-6)},
        "positions": read_rotary(s),
        "tie_embeddings": s.get("tie_word_embeddings", False),
    }


def _read_feed_forward(s: Settings) -> dict[str, Any]:
    dense = s.get("first_k_dense_replace", 3)
    if dense >= s.layers:
        return {"kind": "swiglu", "hidden": s.need("intermediate_size")}
    router = {
        "kind": "sigmoid",
        "top_k": s.get("num_experts_per_tok", 8),
        "normalize": s.get("norm_topk_prob", True),
        "scale": s.get("routed_scaling_factor", 2.5),
        "groups": s.get("n_group", 8),
        "top_groups": s.get("topk_group", 4),
    }
    return {
        "kind": "experts",
        "experts": s.get("n_routed_experts", 256),
        "hidden": s.get("moe_intermediate_size", 2048),
        "shared": s.get("n_shared_experts", 1),
        "router": router,
        "dense_layers": list(range(dense)),
        "dense_hidden": s.need("intermediate_size") if dense else None,
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    attention = model.attention
    assert isinstance(attention, MultiHeadLatentAttention)
    own = {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "kv_lora_rank": attention.kv_lora_rank,
        "q_lora_rank": attention.q_lora_rank,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": attention.qk_rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "rope_interleave": True,
        "attention_bias": False,
        "num_nextn_predict_layers": 0,
    }
    return write_common(model) | own | _write_feed_forward(model) | write_rotary(model)


def _write_feed_forward(model: ModelConfig) -> dict[str, Any]:
    part: Any = model.feed_forward
    fixed = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
    if not isinstance(part, Experts):  # no layer has experts: their numbers stand for nothing
        nothing = ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group")
        hidden = part.size(model.width)
        sizes = {"intermediate_size": hidden, "moe_intermediate_size": hidden, "first_k_dense_replace": model.layers}
        return fixed | sizes | dict.fromkeys(nothing, 1) | {"norm_topk_prob": True, "routed_scaling_factor": 1.0}
    router = part.router
    return fixed | {
        "intermediate_size": part.dense.size(model.width),
        "moe_intermediate_size": part.size(model.width),
        "n_routed_experts": part.experts,
        "n_shared_experts": part.shared,
        "num_experts_per_tok": router.top_k,
        "norm_topk_prob": router.normalize,
        "routed_scaling_factor": router.scale,
        "n_group": router.groups,
        "topk_group": router.top_groups,
        "first_k_dense_replace": len(set(part.dense_layers)),
    }


def _rules(model: ModelConfig, settings: Mapping[str, Any]) -> Sequence[Rule]:
    attention, part = model.attention, model.feed_forward
    assert isinstance(attention, MultiHeadLatentAttention)
    rules = expert_rules(part.experts, "mlp.experts.{}") if isinstance(part, Experts) else []
    if settings.get("rope_interleave") is False:
        return rules
    inside, turned = attention.qk_nope_head_dim, attention.qk_rope_head_dim
    names = r"model\.layers\.\d+\.self_attn\."
    return [
        *rules,
        _half_split(names + r"q(_b)?_proj\.weight", _order(attention.heads, inside, turned)),
        _half_split(names + r"kv_a_proj_with_mqa\.weight", _order(1, attention.kv_lora_rank, turned)),
    ]


def _order(blocks: int, kept: int, turned: int) -> Tensor:
    """The rows of theirs in our order: in each block `kept` stay, and of the `turned` ones the even come first."""
    pairs = torch.arange(turned).view(-1, 2).T.flatten()
    one = torch.cat((torch.arange(kept), kept + pairs))
    return (torch.arange(blocks)[:, None] * (kept + turned) + one).flatten()


def _half_split(pattern: str, order: Tensor) -> Rule:
    inverse = order.argsort()
    return permuted(pattern, out=lambda t: t[inverse.to(t.device)], back=lambda t: t[order.to(t.device)])


def _ignored(model: ModelConfig) -> Sequence[str]:
    """Rotary tables, and the layers above the last one, which predict a second token and are no part of the decoder."""
    own = "|".join(map(str, range(model.layers)))
    return (r".*\.rotary_emb\.inv_freq", rf"model\.layers\.(?!({own})\.)\d+\..*")


DEEPSEEK_V3 = Layout(
    "DeepseekV3ForCausalLM",
    "deepseek_v3",
    {"attention": ("mla",), "feed_forward": ("swiglu", "experts"), "norm": ("rms",), "positions": ("rotary",)},
    _read,
    _write,
    _rules,
    _ignored,
)
