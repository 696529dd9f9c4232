"""Our own family: what won our trials at each size (docs/LOG.md)."""

from __future__ import annotations

from homespun.data.vocabulary import Auto, Bpe
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import ModelConfig
from homespun.model.feedforward import ReLU2
from homespun.optim import Muon, WarmupStableDecay
from homespun.train.recipe import Recipe, TrainConfig


def _model(width: int, layers: int, heads: int, context: int) -> ModelConfig:
    return ModelConfig(
        width=width,
        layers=layers,
        context=context,
        attention=GroupedAttention(heads=heads, qk_norm=True),
        feed_forward=ReLU2(),
        initialize="zero",
    )


_SCHEDULE = WarmupStableDecay(warmup=20, decay=0.4)

TINY = Recipe(
    name="house-tiny",
    model=_model(width=128, layers=4, heads=2, context=128),
    tokenizer=Auto(),
    optimizer=Muon(learning_rate=0.02, adam_learning_rate=0.006, schedule=_SCHEDULE),
    train=TrainConfig(minutes=1, batch_tokens=4096),
)
SMALL = Recipe(
    name="house-small",
    model=_model(width=384, layers=6, heads=6, context=256),
    tokenizer=Auto(),
    optimizer=Muon(learning_rate=0.02, adam_learning_rate=0.003, schedule=_SCHEDULE),
    train=TrainConfig(minutes=10, batch_tokens=4096),
)
BASE = Recipe(
    name="house-base",
    model=_model(width=768, layers=12, heads=12, context=1024),
    tokenizer=Bpe(size=32768),
    optimizer=Muon(learning_rate=0.02, adam_learning_rate=0.001, schedule=WarmupStableDecay(warmup=200, decay=0.4)),
    train=TrainConfig(tokens=2_500_000_000, batch_tokens=524288),
)
RECIPES = {recipe.name: recipe for recipe in (TINY, SMALL, BASE)}
