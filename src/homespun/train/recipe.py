"""The recipe: one frozen tree that says everything about a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from homespun.config import Config, Count
from homespun.data.corpus import DataConfig
from homespun.data.vocabulary import Auto, TokenizerConfig
from homespun.model.decoder import ModelConfig
from homespun.model.lora import LoRA
from homespun.objectives import NextToken, Objective
from homespun.optim import AdamW, Optimizer
from homespun.train.compiling import Compile
from homespun.train.precision import Choice

BUDGETS = ("steps", "tokens", "minutes", "epochs")


class TrainConfig(Config):
    """How long and how to train.

    Budgets: the first of `steps`, `tokens`, `minutes`, `epochs` that is spent ends the run; at least one is needed.
    `batch_tokens`: tokens of one optimizer step, over all processes and micro-batches. `micro_batch`: rows of one
    forward (none: what fits). `evaluate_every`, `save_every`, `sample_every`: in steps (none: ten times in a run, and
    never so often that evaluations take a tenth of the time). `evaluate_tokens`: how much of the validation text one
    evaluation reads. `keep`: how many checkpoints stay beside the best. `patience`: stop after that many evaluations
    without a new best. `max_bad_steps`: stop after that many steps in a row whose loss or gradient is not finite.
    """

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Count | None = None
    tokens: Count | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_tokens: Annotated[Count, Field(le=2**26)] = 8192
    micro_batch: Count | None = None
    evaluate_every: Count | None = None
    evaluate_tokens: Count = 65536
    save_every: Count | None = None
    keep: Count = 2
    sample_every: Count | None = None
    precision: Choice = "auto"
    compile: Compile = "auto"
    patience: Count | None = None
    checkpoint_activations: bool = False
    max_bad_steps: Count = 20


class Tuned(Config):
    """What a run was tuned from: the run in `base`, at `step`. `adapter`: what alone was trained; none: all weights."""

    base: str
    step: Annotated[int, Field(ge=0)]
    adapter: LoRA | None = None


class Recipe(Config):
    """Everything about a run: what `recipe.yaml` in its folder holds."""

    name: str = "custom"
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = Auto()
    data: DataConfig = DataConfig()
    objective: Objective = NextToken()
    optimizer: Optimizer = AdamW()
    train: TrainConfig = TrainConfig()
    tuned: Tuned | None = None

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        self.optimizer.check(self.model)
        self.objective.check(self.model)
        return self
