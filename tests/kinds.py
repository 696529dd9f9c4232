"""Small models of every kind of part, and every combination of them."""

from __future__ import annotations

import itertools

import torch

from homespun.model.attention import CausalLatentAttention, GroupedAttention, MultiHeadLatentAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import GELU, Experts, ReLU2, SigmoidRouter, SoftmaxRouter, SwiGLU
from homespun.model.norms import LayerNorm, RMSNorm
from homespun.model.positions import LearnedPositions, RotaryPositions
from homespun.model.scaling import YarnScaling

MLA = {"heads": 4, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 6}
ATTENTIONS = {
    "mha": GroupedAttention(heads=4),
    "gqa": GroupedAttention(heads=4, kv_heads=2, qk_norm=True),
    "mqa-bias": GroupedAttention(heads=4, kv_heads=1, bias=True, output_bias=False),
    "window": GroupedAttention(heads=4, kv_heads=2, window=5),
    "chunks": GroupedAttention(heads=4, query_chunk=3),
    "window-chunks": GroupedAttention(heads=4, window=4, full_layers=(1,), query_chunk=3, head_size=8),
    "mla": MultiHeadLatentAttention(**MLA),
    "mla-q": MultiHeadLatentAttention(**(MLA | {"q_lora_rank": 10, "v_head_dim": 10})),
    "latent": CausalLatentAttention(heads=4, kv_heads=2, block=5, latents=2, memory=2),
}
FEED_FORWARDS = {
    "swiglu": SwiGLU(hidden=24),
    "gelu": GELU(bias=True, approximate="tanh"),
    "relu2": ReLU2(),
    "experts": Experts(experts=4, hidden=12),
    "experts-shared": Experts(
        experts=4, hidden=8, shared=1, dense_layers=(0,), dense_hidden=16,
        router=SigmoidRouter(groups=2, top_groups=2, scale=1.5),
    ),
    "experts-groups": Experts(experts=4, hidden=8, router=SoftmaxRouter(groups=2, top_groups=1, normalize=False)),
}  # fmt: skip
NORMS = {"rms": RMSNorm(), "layer": LayerNorm()}
POSITIONS = {"rotary": RotaryPositions(), "learned": LearnedPositions()}
MORE_POSITIONS = {
    "yarn": RotaryPositions(
        scaling=YarnScaling(factor=4, original_context=8, beta_fast=2.0, mscale=1.0, mscale_all_dim=0.7)
    ),
    "partial": RotaryPositions(fraction=0.5),
}
KINDS = [
    *itertools.product(ATTENTIONS, FEED_FORWARDS, NORMS, POSITIONS),
    *itertools.product(ATTENTIONS, ["swiglu"], ["rms"], MORE_POSITIONS),
]
T, V = 12, 29
TOKENS = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(3))


def small(attention: str, feed_forward: str, norm: str, positions: str, **more) -> ModelConfig:
    """A model of two narrow layers."""
    return ModelConfig(
        vocab=V, width=16, layers=2, context=16, attention=ATTENTIONS[attention],
        feed_forward=FEED_FORWARDS[feed_forward], norm=NORMS[norm], positions=(POSITIONS | MORE_POSITIONS)[positions],
        **more,
    )  # fmt: skip


def build(settings: ModelConfig, scale: float = 8.0) -> Decoder:
    """A model with weights large enough for every path to matter."""
    torch.manual_seed(1)
    model = Decoder(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, 0.0, 0.02 * scale)
            else:
                parameter += torch.randn_like(parameter) * 0.1
    return model
