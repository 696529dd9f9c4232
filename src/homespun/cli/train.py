"""`homespun train`: from text to a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from homespun.cli import options, show
from homespun.cli.options import Choices
from homespun.errors import DataError

if TYPE_CHECKING:
    from homespun.run import Run


def train(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None, options.argument("DATA... [KEY=VALUE...]", f"{options.DATA} And settings.")
    ] = None,
    recipe: options.RecipeName = None,
    config: options.SettingsFile = None,
    out: options.RunFolder = None,
    steps: options.Steps = None,
    tokens: options.Tokens = None,
    minutes: options.Minutes = None,
    epochs: options.Epochs = None,
    seed: options.Seed = None,
    tokenizer: options.TokenizerName = None,
    resume: Annotated[bool, options.option("--resume", None, "Insist that there is a run to continue.")] = False,
    json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model on your text.

    The same command continues a run that was stopped. A budget given here replaces the budget of the recipe.

    Examples: [bold]homespun train my.txt --minutes 5[/bold]
    or [bold]homespun train texts/ --recipe gpt2-nano model.layers=4[/bold]
    """
    data, settings = options.split_arguments(arguments)
    from homespun import run
    from homespun.train.log import open_console

    if recipe is None and out is not None and (out / "recipe.yaml").is_file():
        recipe = str(out)  # a run goes on by its own recipe
    chosen = Choices(recipe, config, settings, steps, tokens, minutes, epochs, seed, tokenizer).build()
    if not data and not chosen.data.mixture:
        raise DataError("No text was named", "Give a file, a folder, or try stories:1000.")
    done = run.train(data, chosen, out, resume=resume, console=open_console(quiet, stderr=json))
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun every process comes here; the first one speaks
    leave_if_stopped(done, show.command(*context.obj))
    if json:
        show.as_json(outcome(done))
        return
    tell_result(done)
    show.next_commands(
        {
            show.command("generate", done.folder, "-p", "Once"): "let it write",
            show.command("info", done.folder): "the story of the run",
        }
    )


def outcome(run: Run) -> dict[str, object]:
    """What `--json` prints about a run that has ended."""
    result = run.result
    return run.summary() | {"reason": result.reason if result else None, "report": str(run.folder / "report.html")}


def tell_result(run: Run) -> None:
    """How the training ended, and where everything lies."""
    from homespun.train.estimate import human_time

    if result := run.result:
        bits = result.validation_bits_per_byte
        measured = "" if bits is None else f", {bits:.3f} bits per byte on text it has not seen"
        steps = f"{result.steps:,} step{'' if result.steps == 1 else 's'}"
        typer.echo(f"Trained {steps} in {human_time(result.seconds)}{measured}.")
        if result.best_step not in (None, result.steps):
            typer.echo(f"The best was step {result.best_step:,}; to use it: homespun generate --checkpoint best.")
    typer.echo(f"Run: {run.folder}   Report: {run.folder / 'report.html'}")


def leave_if_stopped(run: Run, again: str) -> None:
    """After Ctrl-C or SIGTERM, with everything saved: says how to go on, and exits with 130 or 143."""
    if run.result is not None and run.result.signal:
        typer.echo(f"Stopped at step {run.step} and saved in {run.folder}. To go on: {again}", err=True)
        raise typer.Exit(128 + run.result.signal)
