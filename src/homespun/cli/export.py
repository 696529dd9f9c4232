"""`homespun export`: a run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from homespun.cli import options, show
from homespun.cli.generate import Checkpoint


def export(
    run: Annotated[Path, options.argument("RUN", "The folder of a run.")],
    out: Annotated[Path, options.argument("OUT", "A new folder.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="hf: for transformers; peft: the adapter of a tuned run.")
    ] = "hf",
    dtype: Annotated[
        str | None, options.option("--dtype", "TYPE", "fp32, bf16 or fp16; fp32 if not given, or as imported.")
    ] = None,
    max_shard: Annotated[str, typer.Option("--max-shard", metavar="BYTES", help="Of one weight file.")] = "5G",
    checkpoint: Checkpoint = "last",
    json: options.AsJson = False,
) -> None:
    """Write a trained model as other programs read it.

    Example: [bold]homespun export runs/mine --to hf mine-hf[/bold]
    """
    from homespun.run import export as write
    from homespun.run import load

    loaded = load(run, checkpoint)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    name = write(loaded, out, to, dtype=dtype, max_shard=max_shard)
    if json:
        show.as_json({"folder": str(out), "class": name, "step": loaded.step})
        return
    typer.echo(f"Exported step {loaded.step:,} as {name}: {out}")
