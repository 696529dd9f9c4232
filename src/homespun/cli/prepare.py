"""`homespun prepare`: only tokenise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from homespun.cli import options, show


def prepare(
    data: Annotated[list[str], options.argument("DATA...", options.DATA)],
    out: Annotated[Path | None, options.option("--out -o", "DIR", "Where to write it; the cache if not given.")] = None,
    tokenizer: options.TokenizerName = None,
    json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Tokenise text once, to train on it many times.

    Example: [bold]homespun prepare texts/ --tokenizer bpe:4096 --out corpus[/bold]
    """
    from homespun import run
    from homespun.train.log import open_console

    corpus = run.prepare(data, tokenizer or "auto", out, open_console(quiet, stderr=json))
    sides = {"train": corpus.train, "valid": corpus.valid}
    counts = {name: {"documents": s.documents, "tokens": s.count, "bytes": s.bytes} for name, s in sides.items()}
    if json:
        show.as_json({"folder": str(corpus.folder), "vocabulary": corpus.tokenizer.vocab_size, **counts})
        return
    rows = [(name, *(f"{number:,}" for number in row.values())) for name, row in counts.items()]
    show.table(f"{corpus.tokenizer.vocab_size:,} tokens in the vocabulary", rows, ("", "documents", "tokens", "bytes"))
    typer.echo(f"Corpus: {corpus.folder}")
    show.next_commands({show.command("train", corpus.folder): "train on it"})
