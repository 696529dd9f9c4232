"""From what a person names to what is trained on: the corpus, and the recipe with what the text decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from homespun import config
from homespun.data.corpus import Corpus, prepare
from homespun.data.tokenizer import Tokenizer
from homespun.errors import ConfigError
from homespun.train.log import Console, PlainConsole
from homespun.train.parallel import World
from homespun.train.recipe import Recipe


def listed(data: str | Path | Sequence[str | Path]) -> list[str]:
    """One source, or several, as a list."""
    return [str(data)] if isinstance(data, (str, Path)) else [str(source) for source in data]


def gather(
    data: str | Sequence[str], recipe: Recipe, out: str | Path | None = None, console: Console | None = None
) -> Corpus:
    """The corpus of the sources `data`, or of `recipe.data.mixture`, in `out` or in the cache."""
    shown = console or PlainConsole()
    return prepare(
        listed(data), recipe.tokenizer, recipe.data, Path(out) if out else None,
        progress=shown.preparing, say=shown.note,
    )  # fmt: skip


def gather_once(data: str | Sequence[str], recipe: Recipe, console: Console, world: World) -> Corpus:
    """The same for several processes: the leader prepares, the others then find it in the cache."""
    if not world.leader:
        world.wait()
    corpus = gather(data, recipe, console=console if world.leader else PlainConsole(quiet=True))
    if world.leader:
        world.wait()
    return corpus


def completed(recipe: Recipe, tokenizer: Tokenizer) -> Recipe:
    """The recipe with what text and objective ask of the model; a vocabulary set by hand must hold every token."""
    asked = recipe.model.vocab
    if asked is not None and asked < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab = {asked} is smaller than the tokenizer's {tokenizer.vocab_size} tokens",
            "Leave model.vocab out, or choose a smaller tokenizer.",
        )
    model = recipe.objective.completed(recipe.model)
    sized = recipe.model_copy(update={"model": model})
    return config.override(sized, [f"model.vocab={asked or tokenizer.vocab_size}"])
