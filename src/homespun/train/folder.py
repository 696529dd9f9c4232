"""The folder of a run: its recipe, its tokenizer, and where it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homespun import config
from homespun.data.material import Material
from homespun.errors import CheckpointError, ConfigError
from homespun.model.cost import cost
from homespun.train.disk import replace
from homespun.train.machine import environment
from homespun.train.recipe import BUDGETS, Recipe

ENVIRONMENT = "environment.json"

CHANGEABLE = frozenset({*BUDGETS, "evaluate_every", "evaluate_tokens", "save_every", "keep", "sample_every", "compile",
                        "patience", "max_bad_steps", "micro_batch", "checkpoint_activations", "precision"})  # fmt: skip
"""Training settings that may differ when a run goes on."""


def open_folder(folder: Path, chosen: Recipe, corpus: Material, data: Sequence[str]) -> None:
    """Makes the run's folder, or checks that the run in it is this one."""
    settings = folder / "recipe.yaml"
    if settings.is_file():
        _check_same(folder, config.parse(Recipe, read_settings(settings), str(settings)), chosen, corpus)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and holds no run", "Choose another folder with --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        about = environment() | {
            "parameters": cost(chosen.model).parameters,
            "corpus": corpus.key,
            "data": list(data),
            "conversations": corpus.conversations,
        }
        _keep(folder / "tokenizer.json", corpus.tokenizer.to_json().encode())
        _write_environment(folder, about)
        replace(settings, config.to_yaml(chosen).encode())  # last: a folder with a recipe is a run
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}", "Choose another folder with --out.") from None


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file. Raises `ConfigError` when it cannot be read."""
    try:
        return config.read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "Name a YAML file of settings.") from None


def environment_of(folder: Path) -> dict[str, Any]:
    """What `environment.json` tells; nothing if there is none. Raises `CheckpointError` when it is damaged."""
    try:
        about = json.loads((folder / ENVIRONMENT).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise CheckpointError(
            f"{folder / ENVIRONMENT} is damaged", "Delete it: it only says where the run was trained."
        )
    return about


def note_environment(folder: Path, **facts: Any) -> None:
    """Adds facts to `environment.json`."""
    _write_environment(folder, environment_of(folder) | facts)


def _keep(path: Path, data: bytes) -> None:
    """Writes what is not there already: the recipe may name this very file, and a corpus knows its age."""
    if not path.is_file() or path.read_bytes() != data:
        replace(path, data)


def _write_environment(folder: Path, about: Mapping[str, Any]) -> None:
    replace(folder / ENVIRONMENT, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())


def _check_same(folder: Path, old: Recipe, new: Recipe, corpus: Material) -> None:
    """Raises `CheckpointError` unless the run in `folder` was trained with the same settings on the same text."""
    before, after = _flat(config.to_dict(old)), _flat(config.to_dict(new))
    free = {"name", *(f"train.{key}" for key in CHANGEABLE)}
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key) and key not in free]
    if changed:
        key = min(changed, key=lambda key: (not key.endswith("kind"), key))  # another kind explains what else differs
        raise CheckpointError(
            f"The run in {folder} has {key} = {before.get(key)}, not {after.get(key)}",
            "Use the same settings to continue it, or choose another folder with --out.",
        )
    if environment_of(folder).get("corpus", corpus.key) != corpus.key:
        raise CheckpointError(f"The run in {folder} was trained on other text", "Choose another folder with --out.")


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
