"""A very small run for the trainer's tests: a few stories in bytes, a model of two narrow layers."""

from __future__ import annotations

from pathlib import Path

import torch

from homespun.config import override
from homespun.data.corpus import Corpus, DataConfig, prepare
from homespun.data.vocabulary import Bytes
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import ReLU2
from homespun.optim import AdamW, Muon
from homespun.train.recipe import Recipe, TrainConfig
from homespun.train.trainer import Trainer

ROWS, CONTEXT = 4, 32
RECIPE = Recipe(
    name="test",
    model=ModelConfig(
        vocab=260, width=16, layers=2, context=CONTEXT, attention=GroupedAttention(heads=2, qk_norm=True),
        feed_forward=ReLU2(), dropout=0.1,
    ),
    tokenizer=Bytes(),
    optimizer=Muon(learning_rate=0.02),
    train=TrainConfig(steps=12, batch_tokens=ROWS * CONTEXT, precision="fp32", compile="off", evaluate_tokens=1024),
)  # fmt: skip
ADAMW = RECIPE.model_copy(update={"optimizer": AdamW(learning_rate=1e-3)})


def corpus(count: int = 60) -> Corpus:
    """A corpus of that many stories, from the cache after the first call."""
    return prepare([f"stories:{count}"], Bytes(), DataConfig())


def trainer(folder: Path, *settings: str, recipe: Recipe = RECIPE, text: Corpus | None = None, **more) -> Trainer:
    """A trainer on the small corpus; the same seed gives the same weights."""
    recipe = override(recipe, settings)
    torch.manual_seed(recipe.train.seed)
    return Trainer(recipe, Decoder(recipe.model), text or corpus(), folder, **more)


def tensors(run: Trainer) -> dict[str, torch.Tensor]:
    """Everything that is saved as tensors."""
    from homespun.optim import optimizer_tensors

    optimizer = {f"optimizer.{k}": v for k, v in optimizer_tensors(run.updater.optimizer, run.model).items()}
    return {**run.model.state_dict(), **optimizer}


def assert_equal(one: Trainer, other: Trainer) -> None:
    """Weights, optimizer and progress agree to the last bit."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]
    assert (one.progress.step, one.progress.tokens, one.budget) == (
        other.progress.step, other.progress.tokens, other.budget,
    )  # fmt: skip
