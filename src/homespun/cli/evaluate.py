"""`homespun evaluate`: how good a model is, on text and on what its vectors are for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from homespun.cli import options, show
from homespun.cli.generate import Checkpoint
from homespun.errors import ConfigError

Tasks = Annotated[list[Path] | None, options.option("--retrieval", "FILE|FOLDER", "Questions with their passages.")]
Pairs = Annotated[list[Path] | None, options.option("--similarity", "FILE", "Pairs of sentences with scores.")]


def evaluate(
    run: Annotated[Path, options.argument("RUN", "The folder of a run.")],
    data: Annotated[list[str] | None, options.argument("[DATA...]", options.DATA)] = None,
    retrieval: Tasks = None,
    similarity: Pairs = None,
    checkpoint: Checkpoint = "last",
    json: options.AsJson = False,
) -> None:
    """Measure a model: bits per byte on DATA, and its vectors beside what words alone reach.

    Example: [bold]homespun evaluate runs/mine held-out.txt --retrieval questions.jsonl[/bold]
    """
    if not (data or retrieval or similarity):
        raise ConfigError("There is nothing to evaluate on", "Name text, or --retrieval or --similarity.")
    from homespun.run import load

    loaded = load(run, checkpoint)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    found = loaded.evaluate(data or (), retrieval=retrieval or (), similarity=similarity or ())
    if json:
        show.as_json({title: _told(figures) for title, figures in found.items()})
        return
    for title, figures in found.items():
        _show(title, figures)


def _told(figures: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold: none for a figure that is no number."""
    found = {name: _told(each) if isinstance(each, dict) else each for name, each in figures.items()}
    return {name: None if isinstance(each, float) and not math.isfinite(each) else each for name, each in found.items()}


def _show(title: str, figures: dict[str, Any]) -> None:
    if all(isinstance(value, dict) for value in figures.values()):
        columns = list(next(iter(figures.values())))
        rows = [(name, *(show.figure(each[column]) for column in columns)) for name, each in figures.items()]
        show.table(title, rows, ("", *columns))
        return
    shown = {name: f"{value:,}" if isinstance(value, int) else show.figure(value) for name, value in figures.items()}
    show.table(title, [(name.replace("_", " "), value) for name, value in shown.items()])
