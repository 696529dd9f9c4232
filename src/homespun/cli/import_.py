"""`homespun import`: a model of transformers becomes a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from homespun.cli import options, show


def import_(
    source: Annotated[Path, options.argument("DIR", "A folder with config.json, safetensors and tokenizer.json.")],
    settings: Annotated[
        list[str] | None, options.argument("[KEY=VALUE...]", "Settings for training on, such as optimizer.kind=muon.")
    ] = None,
    out: options.RunFolder = None,
    json: options.AsJson = False,
) -> None:
    """Make a run of a model that transformers saved, to write with it or to train on.

    Example: [bold]homespun import smollm/ --out runs/smollm[/bold]
    """
    chosen = options.settings_only(settings, "import")
    from homespun.run import import_model
    from homespun.train.log import short

    folder = out if out is not None else Path("runs") / source.resolve().name
    run = import_model(source, folder, *chosen)
    summary = run.summary()
    if json:
        show.as_json(summary)
        return
    typer.echo(f"Imported {source}, {short(summary['parameters'])} parameters: {folder}")
    show.next_commands(
        {
            show.command("generate", folder, "-p", "Once"): "let it write",
            show.command("train", "my.txt", "--out", folder): "train on",
        }
    )
