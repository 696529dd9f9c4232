"""GPT-2: matrices stand with their inputs as rows, and those of queries, keys and values side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from homespun.exchange.layout import Layout, Settings
from homespun.exchange.pieces import Piece, Rule, renamed, transposed
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import ModelConfig
from homespun.model.feedforward import GELU

_FORMS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}


def _read(s: Settings) -> dict[str, Any]:
    s.only("scale_attn_weights", True)
    s.only("scale_attn_by_inverse_layer_idx", False)
    s.only("add_cross_attention", False)
    form = _FORMS[s.only("activation_function", *_FORMS)]
    width, heads = s.get("n_embd", 768), s.get("n_head", 12)
    return {
        "vocab": s.get("vocab_size", 50257),
        "width": width,
        "layers": s.get("n_layer", 12),
        "context": s.get("n_positions", s.get("n_ctx", 1024)),
        "attention": {"kind": "grouped", "heads": heads, "head_size": width // heads, "bias": True},
        "feed_forward": {"kind": "gelu", "hidden": s.get("n_inner", 4 * width), "bias": True, "approximate": form},
        "norm": {"kind": "layer", "eps": s.get("layer_norm_epsilon", 1e-5)},
        "positions": {"kind": "learned"},
        "tie_embeddings": s.get("tie_word_embeddings", True),
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    attention, feed_forward = model.attention, model.feed_forward
    assert isinstance(attention, GroupedAttention) and isinstance(feed_forward, GELU)
    return {
        "vocab_size": model.vocab or 1,
        "n_embd": model.width,
        "n_layer": model.layers,
        "n_head": attention.heads,
        "n_positions": model.context,
        "n_ctx": model.context,
        "n_inner": feed_forward.size(model.width),
        "activation_function": "gelu_new" if feed_forward.approximate == "tanh" else "gelu",
        "layer_norm_epsilon": model.norm.eps,
        "tie_word_embeddings": model.tie_embeddings,
        "scale_attn_weights": True,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "use_cache": True,
    }


def _rules(model: ModelConfig, settings: Mapping[str, Any]) -> Sequence[Rule]:
    layer, theirs = r"model\.layers\.(\d+)\.", r"transformer.h.\1."
    either = r"\.(weight|bias)"
    return [
        renamed(r"model\.embed_tokens\.weight", "transformer.wte.weight"),
        renamed(r"model\.embed_positions\.weight", "transformer.wpe.weight"),
        renamed(r"model\.norm" + either, r"transformer.ln_f.\1"),
        renamed(layer + "input_layernorm" + either, theirs + r"ln_1.\2"),
        renamed(layer + "post_attention_layernorm" + either, theirs + r"ln_2.\2"),
        Rule(layer + r"self_attn\.q_proj" + either, _fused),
        transposed(layer + r"self_attn\.o_proj\.weight", theirs + "attn.c_proj.weight"),
        renamed(layer + r"self_attn\.o_proj\.bias", theirs + "attn.c_proj.bias"),
        transposed(layer + r"mlp\.up_proj\.weight", theirs + "mlp.c_fc.weight"),
        renamed(layer + r"mlp\.up_proj\.bias", theirs + "mlp.c_fc.bias"),
        transposed(layer + r"mlp\.down_proj\.weight", theirs + "mlp.c_proj.weight"),
        renamed(layer + r"mlp\.down_proj\.bias", theirs + "mlp.c_proj.bias"),
    ]


def _fused(match: re.Match[str]) -> Piece:
    ours = tuple(f"model.layers.{match[1]}.self_attn.{part}_proj.{match[2]}" for part in "qkv")
    return Piece(ours, (f"transformer.h.{match[1]}.attn.c_attn.{match[2]}",), _join, _part)


def _join(tensors: Sequence[Tensor]) -> list[Tensor]:
    joined = torch.cat(list(tensors))
    return [joined.mT if joined.dim() == 2 else joined]


def _part(tensors: Sequence[Tensor]) -> list[Tensor]:
    joined = tensors[0].mT if tensors[0].dim() == 2 else tensors[0]
    return list(joined.chunk(3))


GPT2 = Layout(
    "GPT2LMHeadModel",
    "gpt2",
    {"attention": ("grouped",), "feed_forward": ("gelu",), "norm": ("layer",), "positions": ("learned",)},
    _read,
    _write,
    _rules,
    ignored=lambda model: (r".*\.attn\.(bias|masked_bias)",),  # the causal mask, in old files
    prefix="transformer.",
    whole_heads=True,
)
