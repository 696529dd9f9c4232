"""What several verbs share: their options, and how the options become a recipe."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homespun.errors import ConfigError

if TYPE_CHECKING:
    from homespun.train.recipe import Recipe

_SETTING = re.compile(r"(name|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+)=.*", re.DOTALL)
_UNDOTTED = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


def option(names: str, metavar: str | None, help: str) -> Any:
    """An option without a default of its own; `names` as typed, set apart by spaces."""
    return typer.Option(*names.split(), metavar=metavar, help=help, show_default=False)


def argument(metavar: str, help: str) -> Any:
    """A positional argument."""
    return typer.Argument(metavar=metavar, help=help, show_default=False)


DATA = "Files, folders, globs, - (standard input), stories:N, python:."

RecipeName = Annotated[str | None, option("--recipe -r", "NAME|FILE", "A built-in recipe or a YAML file of settings.")]
SettingsFile = Annotated[Path | None, option("--config", "FILE", "A YAML file of settings laid over the recipe.")]
RunFolder = Annotated[Path | None, option("--out -o", "RUN", "The run's folder; a default under runs/ if not given.")]
Steps = Annotated[str | None, option("--steps", "N", "Stop after so many steps, e.g. 1k.")]
Tokens = Annotated[str | None, option("--tokens", "N", "Stop after so many tokens, e.g. 1M.")]
Minutes = Annotated[str | None, option("--minutes", "N", "Stop after so many minutes.")]
Epochs = Annotated[str | None, option("--epochs", "N", "Stop after so many passes over the text.")]
Seed = Annotated[int | None, option("--seed", "N", "Everything random follows from it.")]
TokenizerName = Annotated[
    str | None,
    option("--tokenizer", "KIND", "auto, bytes, chars, bpe:4096, wordpiece:4096, gpt2:FOLDER, or a tokenizer.json."),
]
AsJson = Annotated[bool, option("--json", None, "Print JSON for a program to read.")]
Quiet = Annotated[bool, option("--quiet -q", None, "No progress, only the result.")]


@dataclass(frozen=True)
class Choices:
    """What was said about the recipe on the command line; `settings` are the `key=value` arguments."""

    recipe: str | None = None
    config: Path | None = None
    settings: tuple[str, ...] = ()
    steps: str | None = None
    tokens: str | None = None
    minutes: str | None = None
    epochs: str | None = None
    seed: int | None = None
    tokenizer: str | None = None

    def build(self) -> Recipe:
        """The recipe: the named one, then the file of settings, then flags, then `key=value`. Raises `ConfigError`."""
        from homespun import run

        name = self.recipe if self.recipe is not None else run.DEFAULT_RECIPE
        return run.recipe(name, *self._assignments(), file=self.config)

    def _assignments(self) -> list[str]:
        flags = [field.name for field in fields(self) if field.name in ("steps", "tokens", "minutes", "epochs", "seed")]
        given = [f"train.{name}={getattr(self, name)}" for name in flags if getattr(self, name) is not None]
        return [*given, *_tokenizer_settings(self.tokenizer), *self.settings]


def _tokenizer_settings(name: str | None) -> list[str]:
    if name is None:
        return []
    from homespun.config import to_dict
    from homespun.data.vocabulary import parse_tokenizer

    return [f"tokenizer.{key}={json.dumps(value)}" for key, value in to_dict(parse_tokenizer(name)).items()]


def split_arguments(arguments: Iterable[str] | None) -> tuple[list[str], tuple[str, ...]]:
    """Data and settings, from a mixture: `dotted.key=value` is a setting unless a file of that name exists."""
    data: list[str] = []
    settings: list[str] = []
    for argument in arguments or ():
        if _is_file(argument):
            data.append(argument)
        elif _SETTING.fullmatch(argument):
            settings.append(argument)
        elif _UNDOTTED.fullmatch(argument):
            raise ConfigError(f"{argument!r} is no file and no setting", "Settings have dotted keys: train.steps=500.")
        else:
            data.append(argument)
    return data, tuple(settings)


def settings_only(arguments: Iterable[str] | None, verb: str) -> tuple[str, ...]:
    """The settings, where a verb takes no data. Raises `ConfigError` for anything else."""
    data, settings = split_arguments(arguments)
    if data:
        raise ConfigError(
            f"homespun {verb} takes settings, not {data[0]!r}", "Write dotted.key=value or --recipe NAME."
        )
    return settings


def _is_file(argument: str) -> bool:
    try:
        return Path(argument).exists() or bool(glob.has_magic(argument) and glob.glob(argument))
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        return False
