"""`homespun learn`: a trained model keeps learning from what comes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homespun.cli import options, show
from homespun.errors import DataError

if TYPE_CHECKING:
    from homespun.learn.autonomous import Learned

SOURCES = "Files, folders, globs, *.jsonl, 'sqlite:FILE?QUERY', -, addresses; each may be DOMAIN=SOURCE. And settings."
Watch = Annotated[bool, options.option("--watch", None, "Go on when all is read, and wait for more.")]
Status = Annotated[bool, options.option("--status", None, "Tell what was learned so far, and stop.")]
Put = Annotated[bool, options.option("--put", None, "Only leave the texts in the run's queue, for a learner at work.")]
Cycles = Annotated[int | None, options.option("--cycles", "N", "Stop after so many cycles.")]
Minutes = Annotated[float | None, options.option("--minutes", "N", "Stop after so many minutes.")]
Tokens = Annotated[int | None, options.option("--tokens", "N", "Stop after so many new tokens that were kept.")]
Old = Annotated[
    list[str] | None,
    options.option("--old", "DATA", "Text it was trained on, to replay; the run's own if not given; none: without."),
]


def learn(
    context: typer.Context,
    run: Annotated[Path, options.argument("RUN", "The folder of a run.")],
    arguments: Annotated[list[str] | None, options.argument("SOURCE... [learn.KEY=VALUE...]", SOURCES)] = None,
    watch: Watch = False,
    status: Status = False,
    put: Put = False,
    cycles: Cycles = None,
    minutes: Minutes = None,
    tokens: Tokens = None,
    old: Old = None,
    json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Keep a trained model learning, and forgetting nothing.

    It learns in small cycles, with old text beside the new. A cycle that makes the model worse is taken back.
    Stopped or killed anywhere, the same command goes on.

    Example: [bold]homespun learn runs/mine notes/ --watch[/bold]
    """
    settings = [word for word in arguments or () if word.startswith("learn.") and "=" in word]
    sources = [word for word in arguments or () if word not in settings]
    if status:
        _status(run, json)
        return
    if not sources and not watch:
        raise DataError("No source was named", "Give a file or a folder, or --watch for the run's queue alone.")
    if put:
        _put(run, sources)
        return
    limits = {"watch": watch, "cycles": cycles, "minutes": minutes, "tokens": tokens}
    done = _learn(run, sources, settings, old or [], limits, quiet or json)
    if done.signal:
        again = show.command(*context.obj)
        typer.echo(f"Stopped at step {done.step}; what was kept is saved. To go on: {again}", err=True)
        raise typer.Exit(128 + done.signal)
    if json:
        show.as_json(vars(done))
    elif not quiet:
        show.next_commands({show.command("learn", run, "--status"): "what it learned"})


def _learn(
    folder: Path,
    sources: list[str],
    settings: list[str],
    old: list[str],
    limits: dict[str, Any],
    quiet: bool,
) -> Learned:
    import asyncio

    from homespun.config import override
    from homespun.learn.autonomous import Learner, Limits
    from homespun.learn.settings import LearnConfig
    from homespun.run import load
    from homespun.train.machine import keep_memory

    chosen = override(LearnConfig(), [word.removeprefix("learn.") for word in settings])
    keep_memory()
    run = load(folder)

    def say(sentence: str) -> None:
        if not quiet:
            show.write(sentence)

    learner = Learner(folder, run.recipe, run.tokenizer, run.model, chosen, old, say)
    try:
        return asyncio.run(learner.run(sources, Limits(**limits)))
    finally:
        learner.close()


def _put(run: Path, sources: list[str]) -> None:
    from homespun.data.sources import documents
    from homespun.errors import CheckpointError
    from homespun.learn.parts import plain
    from homespun.learn.spool import put

    if not (run / "recipe.yaml").is_file():
        raise CheckpointError(f"There is no run in {run}", "Name the folder of a run.")
    count = len([put(run, plain(document)) for document in documents(sources)])
    typer.echo(f"{count:,} {'text waits' if count == 1 else 'texts wait'} in the queue of {run}.")


def _status(run: Path, json: bool) -> None:
    from homespun.learn.status import STATES, status

    story = status(run)
    if json:
        show.as_json(story)
        return
    rows = [
        (each["name"], each["domain"], each["texts"], each["repeated"], each["unclean"]) for each in story["sources"]
    ]
    show.table("Sources", rows, ("source", "domain", "texts", "repeated", "unclean"))
    show.table("Texts", [(told, story["texts"][state]) for state, told in STATES.items() if state in story["texts"]])
    domains = [
        (each["domain"], *map(show.figure, (each["first"], each["now"])), each["replay_tokens"])
        for each in story["domains"]
    ]
    show.table("Domains: bits per byte of held-out text", domains, ("domain", "at first", "now", "tokens to replay"))
    show.table("Cycles", [_cycle(each) for each in story["cycles"]], ("cycle", "", "step", "new tokens", "why"))
    for each in story["sources"]:
        if each["problem"]:
            typer.echo(f"{each['name']}: {each['problem']}")


def _cycle(row: dict[str, Any]) -> tuple[Any, ...]:
    step = row["step"] if row["step"] is not None else row["base_step"]
    share = row["figures"].get("share", 1) if row["state"] == "kept" else 1
    state = row["state"] if share == 1 else f"{share:.3g} of it {row['state']}"
    return row["id"], state, step, row["new_tokens"], row["reason"] or "at work"
