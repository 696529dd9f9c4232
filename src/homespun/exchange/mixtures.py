"""Classes of experts with grouped attention: Mixtral and Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from homespun.exchange.dense import biased, read_trunk, write_trunk
from homespun.exchange.layout import Layout, Settings
from homespun.exchange.pieces import Rule, expert_rules, renamed
from homespun.model.decoder import ModelConfig
from homespun.model.feedforward import Experts


def _read_mixtral(s: Settings) -> dict[str, Any]:
    trunk = read_trunk(s, context=131072, kv_heads=8, theta=1e6)
    trunk["norm"]["eps"] = s.get("rms_norm_eps", 1e-5)
    trunk["attention"]["window"] = s.get("sliding_window")
    router = {"kind": "softmax", "top_k": s.get("num_experts_per_tok", 2), "precision": "model"}
    hidden = s.need("intermediate_size")
    return trunk | {"feed_forward": {"kind": "experts", "experts": _count(s, 8), "hidden": hidden, "router": router}}


def _count(s: Settings, default: int) -> int:
    found: int = s.get("num_local_experts", s.get("num_experts", default))
    return found


def _write_mixtral(model: ModelConfig) -> dict[str, Any]:
    attention: Any = model.attention
    return (
        write_trunk(model)
        | _write_experts(model)
        | {
            "intermediate_size": _experts(model).size(model.width),
            "sliding_window": attention.window,
        }
    )


def _write_experts(model: ModelConfig) -> dict[str, Any]:
    experts = _experts(model)
    return {
        "num_local_experts": experts.experts,
        "num_experts": experts.experts,  # what transformers 4 reads for Qwen3-MoE
        "num_experts_per_tok": experts.router.top_k,
        "output_router_logits": False,
        "router_aux_loss_coef": experts.balance_loss,
    }


def _experts(model: ModelConfig) -> Experts:
    assert isinstance(model.feed_forward, Experts)
    return model.feed_forward


def _mixtral_rules(model: ModelConfig, settings: Mapping[str, Any]) -> Sequence[Rule]:
    gate = renamed(r"(model\.layers\.\d+\.)mlp\.gate\.weight", r"\1block_sparse_moe.gate.weight")
    return [gate, *expert_rules(_experts(model).experts, "block_sparse_moe.experts.{}", "w1", "w3", "w2")]


def _read_qwen3_moe(s: Settings) -> dict[str, Any]:
    trunk = read_trunk(s, context=32768, kv_heads=4)
    window = s.get("sliding_window", 4096) if s.get("use_sliding_window", False) else None
    trunk["attention"] |= {"qk_norm": True, "bias": s.get("attention_bias", False), "window": window}
    step, listed, layers = s.get("decoder_sparse_step", 1), s.get("mlp_only_layers", []), trunk["layers"]
    dense = [layer for layer in range(layers) if layer in listed or (layer + 1) % step]
    if len(dense) == layers:
        return trunk | {"feed_forward": {"kind": "swiglu", "hidden": s.get("intermediate_size", 6144)}}
    router = {
        "kind": "softmax",
        "top_k": s.get("num_experts_per_tok", 8),
        "normalize": s.get("norm_topk_prob", False),
        "precision": "model",
        "weights_precision": "model",
    }
    experts = {
        "kind": "experts",
        "experts": _count(s, 128),
        "hidden": s.get("moe_intermediate_size", 768),
        "router": router,
        "dense_layers": dense,
        "dense_hidden": s.get("intermediate_size", 6144) if dense else None,
    }
    return trunk | {"feed_forward": experts}


def _write_qwen3_moe(model: ModelConfig) -> dict[str, Any]:
    experts, attention = _experts(model), model.attention
    window = getattr(attention, "window", None)
    return (
        write_trunk(model)
        | _write_experts(model)
        | {
            "intermediate_size": experts.dense.size(model.width),
            "moe_intermediate_size": experts.size(model.width),
            "norm_topk_prob": experts.router.normalize,
            "decoder_sparse_step": 1,
            "mlp_only_layers": sorted(set(experts.dense_layers)),
            "attention_bias": biased(model),
            "use_sliding_window": window is not None,
            "sliding_window": window,
        }
    )


def _qwen3_moe_rules(model: ModelConfig, settings: Mapping[str, Any]) -> Sequence[Rule]:
    return expert_rules(model.feed_forward.experts, "mlp.experts.{}") if isinstance(model.feed_forward, Experts) else []


_PARTS = {"attention": ("grouped",), "feed_forward": ("experts",), "norm": ("rms",), "positions": ("rotary",)}
MIXTRAL = Layout("MixtralForCausalLM", "mixtral", _PARTS, _read_mixtral, _write_mixtral, _mixtral_rules)
QWEN3_MOE = Layout("Qwen3MoeForCausalLM", "qwen3_moe", _PARTS, _read_qwen3_moe, _write_qwen3_moe, _qwen3_moe_rules)
