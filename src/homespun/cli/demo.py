"""`homespun demo`: the main job with no arguments."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homespun.cli import options, show
from homespun.cli.options import Choices
from homespun.cli.train import leave_if_stopped, outcome, tell_result
from homespun.errors import ConfigError

if TYPE_CHECKING:
    from homespun.run import Run

CORPUS = "stories:15000"
SHORT = ("train.evaluate_tokens=16384",)  # a minute is for training
SCORED, SHOWN = 20, 3  # samples that the grammar judges, and those that are printed
TEMPERATURE = 0.7  # of the samples: a little bolder than the likeliest words


def demo(
    seconds: Annotated[float | None, options.option("--seconds", "N", "Train so long; 60 if not given.")] = None,
    steps: options.Steps = None,
    out: options.RunFolder = None,
    seed: options.Seed = None,
    json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a small corpus of stories, train on it for a minute, and show what the model writes.

    Needs no network and no data. The stories come from a grammar, and the same grammar judges what was written.
    """
    if seconds is not None and steps is not None:
        raise ConfigError("Both --seconds and --steps were given", "Give one of them.")
    if seconds is not None and not seconds > 0:
        raise ConfigError(f"--seconds {seconds} is no time to train", "Give a positive number.")
    from homespun.run import train
    from homespun.train.log import open_console

    folder = out if out is not None else _new_folder()
    minutes = None if steps is not None else str((60.0 if seconds is None else seconds) / 60)
    recipe = Choices("house-tiny", None, SHORT, steps, minutes=minutes, seed=seed).build()
    done = train(CORPUS, recipe, folder, console=open_console(quiet, stderr=json))
    leave_if_stopped(done, show.command("demo", "--out", folder, *_said(seconds, steps, seed)))
    texts = [
        record.text for record in done.records([""], count=SCORED, max_tokens=200, temperature=TEMPERATURE, seed=1)
    ]
    if json:
        show.as_json(outcome(done) | {"samples": texts, "sentences": _judge(texts)[0], "grammatical": _judge(texts)[1]})
    else:
        _tell(done, texts)


def _new_folder() -> Path:
    """`runs/demo`, or the first of `runs/demo-2`, `runs/demo-3`... that is free."""
    names = (Path("runs") / (f"demo-{number}" if number > 1 else "demo") for number in count(1))
    return next(folder for folder in names if not folder.exists())


def _said(seconds: float | None, steps: str | None, seed: int | None) -> list[object]:
    given = {"--seconds": seconds, "--steps": steps, "--seed": seed}
    return [word for name, value in given.items() if value is not None for word in (name, value)]


def _judge(texts: list[str]) -> tuple[int, int]:
    """How many whole sentences the texts have, and how many of them the grammar of the stories can write."""
    from homespun.data.stories import score

    scores = [score(text) for text in texts]
    return sum(found.total for found in scores), sum(found.parsed for found in scores)


def _tell(run: Run, texts: list[str]) -> None:
    typer.echo(f"\nThe model writes ({SHOWN} of {len(texts)} samples):")
    for text in texts[:SHOWN]:
        typer.echo("")
        show.write(text.strip())
    sentences, parsed = _judge(texts)
    if sentences:
        typer.echo(f"\n{parsed} of {sentences} sentences ({parsed / sentences:.0%}) follow the grammar of the stories.")
    tell_result(run)
    show.next_commands(
        {
            show.command("generate", run.folder, "-p", "Once upon a time", "--stream"): "let it go on from your words",
            show.command("train", "my.txt", "--minutes", "5"): "train on your own text",
            show.command("plan", "--recipe", "house-small"): "what a larger model costs",
            show.command("info"): "all recipes",
        }
    )
