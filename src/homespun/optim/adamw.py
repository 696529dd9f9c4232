"""AdamW (Loshchilov and Hutter, 2019) on every parameter, through torch's fused step."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from homespun.config import Config, Count
from homespun.model.decoder import ModelConfig
from homespun.optim.groups import adam_groups, assign, fused
from homespun.optim.schedule import Schedule, WarmupStableDecay

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Clip = Annotated[float, Field(gt=0)] | None
Beta = Annotated[float, Field(ge=0, lt=1)]


class Common(Config):
    """What every optimizer here has. `betas`, `eps`: AdamW's. `clip`: the largest global norm of the gradient (none: no
    limit). `expert_multiplier`: of the learning rate, for the matrices of routed experts. `qk_clip`: see `qk_clip.py`;
    measured and applied every `qk_clip_every` steps.

    Norms and biases never decay.
    """

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Decay = 0.1
    clip: Clip = 1.0
    expert_multiplier: Rate = 1.0
    qk_clip: Clip = None
    qk_clip_every: Count = 1
    schedule: Schedule = WarmupStableDecay()

    def check(self, model: ModelConfig) -> None:
        """Raises `ConfigError` where the model's attention cannot be clipped."""
        if self.qk_clip is not None:
            model.attention.check_clip()


class AdamW(Common):
    """AdamW. `decay_embeddings`: as GPT-2 does."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: Rate = 3e-4
    decay_embeddings: bool = True

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of `model`'s parameters. Raises `ConfigError` for a parameter that the rules do not know."""
        rates = (self.learning_rate, self.weight_decay, self.decay_embeddings, self.expert_multiplier)
        groups = adam_groups(assign(model), *rates)
        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=fused(model.parameters()))
