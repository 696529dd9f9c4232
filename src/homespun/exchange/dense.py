"""Classes without experts that are close to our own form: Llama, Qwen3 and StableLM."""

from __future__ import annotations

from typing import Any

from homespun.exchange.layout import Layout, Settings
from homespun.exchange.rotary import read_rotary, write_rotary
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import ModelConfig


def read_trunk(
    s: Settings, context: int, kv_heads: int | None = None, theta: float = 10000.0, fraction: float | None = None
) -> dict[str, Any]:
    """What all classes with grouped attention have in common; the arguments are the class's defaults.

    `fraction`: see `read_rotary`.
    """
    s.only("hidden_act", "silu", "swish")
    heads = s.need("num_attention_heads")
    return {
        "vocab": s.need("vocab_size"),
        "width": s.need("hidden_size"),
        "layers": s.layers,
        "context": s.get("max_position_embeddings", context),
        "attention": {
            "kind": "grouped",
            "heads": heads,
            "kv_heads": s.get("num_key_value_heads", kv_heads or heads),
            "head_size": s.get("head_dim", s.need("hidden_size") // heads),
        },
        "norm": {"kind": "rms", "eps": s.get("rms_norm_eps", 1e-6)},
        "positions": read_rotary(s, theta, fraction),
        "tie_embeddings": s.get("tie_word_embeddings", False),
    }


def write_common(model: ModelConfig) -> dict[str, Any]:
    """What the classes of Llama's kin and of DeepSeek's write in the same words."""
    return {
        "vocab_size": model.vocab or 1,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "max_position_embeddings": model.context,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm.eps,
        "tie_word_embeddings": model.tie_embeddings,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def write_trunk(model: ModelConfig, partial: bool = False) -> dict[str, Any]:
    """The same back. `partial`: the class may turn a part of each head."""
    attention = model.attention
    assert isinstance(attention, GroupedAttention)
    heads = {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.shared_heads,
        "head_dim": attention.size(model.width),
    }
    return write_common(model) | heads | write_rotary(model, partial)


def _read_llama(s: Settings) -> dict[str, Any]:
    trunk = read_trunk(s, context=2048)
    trunk["attention"]["bias"] = s.get("attention_bias", False)
    hidden, bias = s.need("intermediate_size"), s.get("mlp_bias", False)
    return trunk | {"feed_forward": {"kind": "swiglu", "hidden": hidden, "bias": bias}}


def _write_llama(model: ModelConfig) -> dict[str, Any]:
    feed_forward: Any = model.feed_forward
    return write_trunk(model) | {
        "intermediate_size": feed_forward.size(model.width),
        "attention_bias": biased(model),
        "mlp_bias": feed_forward.bias,
    }


def biased(model: ModelConfig) -> bool:
    """Whether any projection of the attention has a bias; a class that has all of them then gets zeros for others."""
    attention = model.attention
    assert isinstance(attention, GroupedAttention)
    return attention.bias or attention.biased_output


def _read_qwen3(s: Settings) -> dict[str, Any]:
    trunk = read_trunk(s, context=32768, kv_heads=32)
    trunk["attention"] |= {
        "head_size": s.get("head_dim", 128),
        "qk_norm": True,
        "bias": s.get("attention_bias", False),
        **_windows(s, trunk["layers"]),
    }
    return trunk | {"feed_forward": {"kind": "swiglu", "hidden": s.need("intermediate_size")}}


def _windows(s: Settings, layers: int) -> dict[str, Any]:
    """`window` and `full_layers`."""
    window = s.get("sliding_window", 4096) if s.get("use_sliding_window", False) else None
    if window is None:
        return {}
    first = s.get("max_window_layers", 28)
    usual = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    kinds = s.get("layer_types", usual)
    full = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    return {"window": window, "full_layers": full} if len(full) < layers else {}


def _write_qwen3(model: ModelConfig) -> dict[str, Any]:
    attention: Any = model.attention
    feed_forward: Any = model.feed_forward
    windows = [attention.seen(layer) for layer in range(model.layers)]
    first = next((layer for layer, window in enumerate(windows) if window), model.layers)
    return write_trunk(model) | {
        "intermediate_size": feed_forward.size(model.width),
        "attention_bias": biased(model),
        "use_sliding_window": any(windows),
        "sliding_window": attention.window if any(windows) else None,
        "max_window_layers": first,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }


def _read_stablelm(s: Settings) -> dict[str, Any]:
    s.only("use_parallel_residual", False)
    s.only("qk_layernorm", False)
    trunk = read_trunk(s, context=4096, kv_heads=32, fraction=0.25)
    trunk["attention"] |= {
        "head_size": trunk["width"] // trunk["attention"]["heads"],
        "bias": s.get("use_qkv_bias", False),
        "output_bias": False,
    }
    return trunk | {
        "feed_forward": {"kind": "swiglu", "hidden": s.need("intermediate_size")},
        "norm": {"kind": "layer", "eps": s.get("layer_norm_eps", 1e-5)},
    }


def _write_stablelm(model: ModelConfig) -> dict[str, Any]:
    attention: Any = model.attention
    feed_forward: Any = model.feed_forward
    trunk = write_trunk(model, partial=True)
    del trunk["head_dim"], trunk["rms_norm_eps"]
    return trunk | {
        "intermediate_size": feed_forward.size(model.width),
        "layer_norm_eps": model.norm.eps,
        "use_qkv_bias": attention.bias,
        "use_parallel_residual": False,
        "qk_layernorm": False,
        "hidden_dropout": 0.0,
    }


_PARTS = {"attention": ("grouped",), "feed_forward": ("swiglu",), "norm": ("rms",), "positions": ("rotary",)}
_LAYER_NORM = _PARTS | {"norm": ("layer",)}
LLAMA = Layout("LlamaForCausalLM", "llama", _PARTS, _read_llama, _write_llama, whole_heads=True)
QWEN3 = Layout("Qwen3ForCausalLM", "qwen3", _PARTS, _read_qwen3, _write_qwen3)
STABLELM = Layout("StableLmForCausalLM", "stablelm", _LAYER_NORM, _read_stablelm, _write_stablelm, whole_heads=True)
