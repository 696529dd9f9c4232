"""The options of an index, for every verb that writes text, and how its sources are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from homespun.cli.options import option
from homespun.errors import ConfigError

if TYPE_CHECKING:
    from homespun.generate.thought import Source
    from homespun.retrieve.prompt import Grounded, Grounding
    from homespun.retrieve.protocol import Meaning

Retrieve = Annotated[str | None, option("--retrieve", "INDEX", "Look up passages for the prompt; also KIND:SPEC.")]
Passages = Annotated[int | None, typer.Option("--passages", metavar="N", min=1, help="Of --retrieve, at most: 3.")]


def grounding(place: str | None, passages: int | None, run: Source, meaning: Meaning | None = None) -> Grounding | None:
    """What `--retrieve` and `--passages` ask for; the vectors are the run's, made by `meaning` if it is given."""
    if place is None:
        if passages is not None:
            raise ConfigError("--passages says how many --retrieve finds", "Give --retrieve INDEX, too.")
        return None
    from homespun.retrieve.meaning import RunMeaning
    from homespun.retrieve.prompt import Grounding
    from homespun.retrieve.protocol import open_retriever

    retriever = open_retriever(place, meaning or RunMeaning(run))
    for note in retriever.notes:
        typer.echo(f"note: {note}", err=True)
    return Grounding(retriever, passages or 3)


def tell_sources(grounded: Grounded[Any]) -> None:
    """The passages that a prompt got, numbered, on standard error."""
    from homespun.train.log import visible

    if grounded.note is not None:
        typer.echo(f"note: {grounded.note}", err=True)
    for number, passage in enumerate(grounded.passages or (), 1):
        typer.echo(f"[{number}] {visible(passage.cited)} (score {passage.score:.4f})", err=True)


def retrieved(grounded: Grounded[Any]) -> dict[str, Any]:
    """The same for JSON; nothing where nothing was looked for."""
    return {} if grounded.passages is None else {"retrieved": grounded.to_dicts()}
