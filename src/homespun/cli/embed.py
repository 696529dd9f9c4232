"""`homespun embed`: vectors of texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homespun.cli import options, show
from homespun.cli.generate import Checkpoint, lines_of, standard_input
from homespun.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np


def embed(
    run: Annotated[Path, options.argument("RUN", "The folder of a run.")],
    texts: Annotated[list[str] | None, options.argument("[TEXT...]", "Texts; - reads one per line.")] = None,
    file: Annotated[
        list[Path] | None, options.option("--file", "FILE", "Texts, one per line. May be repeated.")
    ] = None,
    npy: Annotated[Path | None, options.option("--npy", "FILE", "Write a NumPy array (n, e) of float32.")] = None,
    checkpoint: Checkpoint = "last",
    json: options.AsJson = False,
) -> None:
    """Turn texts into vectors of length 1: their products say how alike texts are.

    Without TEXT and --file, standard input is read, one text on each line. Each vector is a line of numbers.

    Example: [bold]homespun embed runs/mine "a red fox" "the crimson vixen"[/bold]
    """
    if json and npy is not None:
        raise ConfigError("--json and --npy are two forms of one thing", "Leave one of them out.")
    found = _texts(texts, file)
    from homespun.run import load

    loaded = load(run, checkpoint)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    vectors = loaded.embed(found)
    if npy is not None:
        _save(npy, vectors)
        typer.echo(f"{len(vectors):,} vectors of {vectors.shape[1]:,} numbers: {npy}", err=True)
        return
    for text, vector in zip(found, vectors.tolist(), strict=True):
        if json:
            show.as_json({"text": text, "embedding": vector}, indent=None)
        else:
            typer.echo(" ".join(f"{number:.6g}" for number in vector))


def _texts(given: list[str] | None, files: list[Path] | None) -> list[str]:
    found = [] if given or files else _lines(standard_input())
    for text in given or ():
        found += _lines(standard_input()) if text == "-" else [text]
    for file in files or ():
        found += lines_of(file)
    if not found:
        raise DataError("There is no text to embed", "Give texts, --file FILE, or lines on standard input.")
    return found


def _lines(text: str) -> list[str]:
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _save(path: Path, vectors: np.ndarray) -> None:
    import numpy as np

    try:
        with path.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}", "Name a file in a folder with room.") from None
