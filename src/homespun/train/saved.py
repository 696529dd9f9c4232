"""A run as others take it: what is trained and where it lies, and the state of one whose training has not begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from homespun.data.tokenizer import Tokenizer
from homespun.model.decoder import Decoder
from homespun.train.progress import Progress
from homespun.train.recipe import Recipe


class Trained(Protocol):
    """What tuning, teaching and exports need of a run."""

    @property
    def folder(self) -> Path: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def model(self) -> Decoder: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def step(self) -> int: ...


def unbegun(recipe: Recipe) -> dict[str, Any]:
    """The state of a checkpoint at step 0: budget, rows and precision are still to be planned."""
    return {
        "progress": vars(Progress()),
        "budget": {"fixed": None, "seconds": None, "total": None},
        "micro_rows": None,
        "guard": {"total": 0, "in_a_row": 0},
        "precision": None,
        "optimizer": recipe.optimizer.kind,
    }
