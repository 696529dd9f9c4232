"""A run that has learned nothing yet, for a model that is to learn from what comes."""

from __future__ import annotations

from pathlib import Path

from homespun import config
from homespun.data.tokenizer import Tokenizer
from homespun.errors import ConfigError
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.train.checkpoint import Checkpoints
from homespun.train.disk import replace
from homespun.train.folder import note_environment
from homespun.train.machine import environment
from homespun.train.recipe import Recipe
from homespun.train.saved import unbegun


def start_run(folder: Path, recipe: Recipe, model: Decoder, tokenizer: Tokenizer) -> None:
    """Makes the run at step 0 in `folder`, unless there is one. Raises `ConfigError` where the folder holds something
    else, or a run of another model."""
    settings = folder / "recipe.yaml"
    if settings.is_file():
        found = config.parse(Recipe, config.read_yaml(settings.read_text(encoding="utf-8")), str(settings))
        if found.model != recipe.model:
            raise ConfigError(f"The run in {folder} has another model", "Choose another folder.")
        return
    left = {"checkpoints", "tokenizer.json", "environment.json"}  # by a kill in this function
    if folder.exists() and not {place.name for place in folder.iterdir()} <= left:
        raise ConfigError(f"{folder} exists and holds no run", "Choose another folder.")
    if tokenizer.vocab_size > (recipe.model.vocab or 0):
        told = f"The model has {recipe.model.vocab} tokens, the tokenizer {tokenizer.vocab_size}"
        raise ConfigError(told, "Give a smaller tokenizer, or a larger model.")
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "tokenizer.json", tokenizer.to_json().encode())
    note_environment(folder, **environment(), parameters=cost(recipe.model).parameters)
    Checkpoints(folder / "checkpoints").save(0, {"model": model.state_dict(), "optimizer": {}}, unbegun(recipe))
    replace(settings, config.to_yaml(recipe).encode())  # last: a folder with a recipe is a run
