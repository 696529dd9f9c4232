"""The reference: GPT-2 as nanoGPT trains it, for fair comparison."""

from __future__ import annotations

from homespun.data.vocabulary import Bpe, Chars
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import ModelConfig
from homespun.model.feedforward import GELU
from homespun.model.norms import LayerNorm
from homespun.model.positions import LearnedPositions
from homespun.optim import AdamW, Cosine
from homespun.train.recipe import Recipe, TrainConfig


def _model(width: int, layers: int, heads: int, context: int, bias: bool) -> ModelConfig:
    return ModelConfig(
        width=width,
        layers=layers,
        context=context,
        attention=GroupedAttention(heads=heads, bias=bias),
        feed_forward=GELU(bias=bias, approximate="tanh"),
        norm=LayerNorm(bias=bias),
        positions=LearnedPositions(),
    )


# nanoGPT's quick start on a CPU: 2,000 steps of 12 x 64 characters
NANO = Recipe(
    name="gpt2-nano",
    model=_model(width=128, layers=4, heads=4, context=64, bias=False),
    tokenizer=Chars(),
    optimizer=AdamW(learning_rate=1e-3, betas=(0.9, 0.99), schedule=Cosine(warmup=100, floor=0.1)),
    train=TrainConfig(steps=2000, batch_tokens=768),
)
# GPT-2 (124 M); its own vocabulary: --tokenizer gpt2:FOLDER
GPT2 = Recipe(
    name="gpt2",
    model=_model(width=768, layers=12, heads=12, context=1024, bias=True),
    tokenizer=Bpe(size=50257),
    optimizer=AdamW(learning_rate=6e-4, schedule=Cosine(warmup=2000, floor=0.1)),
    train=TrainConfig(steps=600_000, batch_tokens=491520),
)
RECIPES = {recipe.name: recipe for recipe in (NANO, GPT2)}
