"""`homespun index`: texts for models to look up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from homespun.cli import options, show
from homespun.cli.generate import Checkpoint


def index(
    data: Annotated[list[str], options.argument("DATA...", options.DATA)],
    out: Annotated[Path, options.option("--out -o", "INDEX", "The file of the index; one that is there is renewed.")],
    run: Annotated[
        Path | None, options.option("--run", "RUN", "The run whose vectors find passages by their meaning, too.")
    ] = None,
    checkpoint: Checkpoint = "last",
    json: options.AsJson = False,
) -> None:
    """Make or renew an index of texts, for models to look up.

    Only files that changed are read again. See docs/retrieval.md.

    Example: [bold]homespun index notes/ --out notes.index --run runs/mine[/bold]
    """
    from homespun.retrieve.build import build

    def say(note: str) -> None:
        typer.echo(note, err=True)

    meaning = None
    if run is not None:
        from homespun.retrieve.meaning import RunMeaning
        from homespun.run import load

        loaded = load(run, checkpoint)
        for note in loaded.notes:
            say(f"note: {note}")
        meaning = RunMeaning(loaded)
    built = build(data, out, meaning, say)
    if json:
        show.as_json(vars(built))
        return
    by = f"by words, and by meaning as {run} has it" if run is not None else "by words"
    typer.echo(f"{out} is made. Passages: {built.passages:,}, found {by}. Sources: {built.sources:,}.")
    typer.echo(f"Sources read: {built.changed:,}; gone: {built.removed:,}.")
