"""`homespun tune`: a trained model learns to answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homespun.cli import options, show
from homespun.cli.generate import Checkpoint
from homespun.cli.train import leave_if_stopped, outcome, tell_result
from homespun.errors import ConfigError, DataError

if TYPE_CHECKING:
    from homespun.model.lora import LoRA
    from homespun.run import Run

PAIRS = "Files of prompts with answers, or of conversations. And settings."


def tune(
    context: typer.Context,
    run: Annotated[Path, options.argument("RUN", "The folder of a run.")],
    arguments: Annotated[list[str] | None, options.argument("PAIRS... [KEY=VALUE...]", PAIRS)] = None,
    out: options.RunFolder = None,
    lora: Annotated[int | None, options.option("--lora", "RANK", "Train a low-rank adapter alone.")] = None,
    alpha: Annotated[
        float | None, options.option("--alpha", "N", "Of the adapter; twice the rank if not given.")
    ] = None,
    targets: Annotated[
        str | None, options.option("--targets", "NAMES", "Layers that get one, as q_proj,v_proj; all if not given.")
    ] = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    minutes: options.Minutes = None,
    seed: options.Seed = None,
    checkpoint: Checkpoint = "last",
    json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Teach a trained model to answer.

    The same command continues a run that was stopped.

    Example: [bold]homespun tune runs/mine pairs.jsonl --out runs/answers[/bold]
    """
    pairs, settings = options.split_arguments(arguments)
    if not pairs:
        raise DataError("No file of answers was named", "Give rows of prompt and completion, or of messages.")
    from homespun import run as runs
    from homespun.train.log import open_console

    adapter = _adapter(lora, alpha, targets)
    budgets = {"epochs": epochs, "steps": steps, "minutes": minutes, "seed": seed}
    flags = [f"train.{name}={value}" for name, value in budgets.items() if value is not None]
    folder = out if out is not None else run.parent / f"{run.name}-tuned"
    console = open_console(quiet, stderr=json)
    done = runs.tune(run, pairs, folder, *flags, *settings, lora=adapter, checkpoint=checkpoint, console=console)
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun every process comes here; the first one speaks
    leave_if_stopped(done, show.command(*context.obj))
    if json:
        show.as_json(outcome(done))
        return
    tell_result(done)
    _tell_answers(done)
    show.next_commands({show.command("chat", done.folder): "talk with it"})


def _adapter(rank: int | None, alpha: float | None, targets: str | None) -> LoRA | None:
    """The adapter that the options ask for."""
    if rank is None and (alpha is not None or targets is not None):
        raise ConfigError("--alpha and --targets are of an adapter", "Give its rank, too: --lora 8.")
    from homespun.config import parse
    from homespun.model.lora import LoRA

    names = [name.strip() for name in (targets or "").split(",") if name.strip()]
    if targets is not None and not names:
        raise ConfigError(f"--targets {targets!r} names no layer", "Name some, as q_proj,v_proj, or leave it out.")
    given = {"rank": rank, "alpha": alpha, "targets": names}
    return None if rank is None else parse(LoRA, given, "the command line")


def _tell_answers(done: Run) -> None:
    from homespun.train.log import read_metrics

    rows = [row for row in read_metrics(done.folder / "metrics.jsonl") if row.get("validation_loss") is not None]
    if len(rows) > 1:
        before, after = (row["validation_bits_per_byte"] for row in (rows[0], rows[-1]))
        helped = "" if after < before else " Tuning did not help."
        typer.echo(f"That text is held-out answers; before tuning they cost {before:.3f} bits per byte.{helped}")
