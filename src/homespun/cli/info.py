"""`homespun info`: recipes and machine, or the story of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from homespun.cli import options, show


def info(
    run: Annotated[Path | None, options.argument("[RUN]", "The folder of a run.")] = None,
    json: options.AsJson = False,
) -> None:
    """List the recipes and what this machine offers; with RUN, tell the story of that run."""
    if run is None:
        _house(json)
    else:
        _story(run, json)


def _house(json: bool) -> None:
    from homespun.run import DEFAULT_RECIPE, plan, recipe, recipes
    from homespun.train.log import short
    from homespun.train.machine import environment

    chosen = {name: recipe(name) for name in recipes()}
    sizes = {name: plan(one, measure=False).parameters for name, one in chosen.items()}
    if json:
        show.as_json({"recipes": sizes, "default": DEFAULT_RECIPE, "environment": environment()})
        return
    columns = ("recipe", "parameters", "width", "layers", "context", "vocabulary", "optimizer")
    rows = []
    for name, one in chosen.items():
        m, vocabulary = one.model, str(getattr(one.tokenizer, "size", None) or one.tokenizer.kind)
        numbers = (short(sizes[name]), m.width, m.layers, m.context)
        rows.append((name, *numbers, vocabulary, one.optimizer.kind))
    show.table("Recipes (parameters with 1,024 tokens where the text decides the vocabulary)", rows, columns)
    typer.echo(f"{DEFAULT_RECIPE} is used when none is named.")
    show.table("This machine", _pairs(environment()))


def _story(folder: Path, json: bool) -> None:
    from homespun.run import load
    from homespun.train.log import short

    run = load(folder)
    summary = run.summary()
    if json:
        show.as_json(summary | {"notes": run.notes})
        return
    rows = [
        ("recipe", summary["recipe"]),
        ("parameters", short(summary["parameters"])),
        ("vocabulary", f"{summary['vocabulary']:,} tokens"),
        ("checkpoint", f"step {summary['step']}"),
        *_progress(summary),
        *(("note", note) for note in run.notes),
        *(("advice", said) for said in summary["advice"]),
    ]
    show.table(str(folder), rows)
    show.table("Trained on", _pairs(summary["environment"]))
    show.next_commands({show.command("generate", folder, "-p", "Once"): "let it write"})


def _progress(summary: dict[str, Any]) -> list[tuple[str, str]]:
    from homespun.train.estimate import human_time
    from homespun.train.log import short

    last, validation, best = summary["last"], summary["validation"], summary["best"]
    rows = []
    if last:
        rows.append(("tokens", short(last["tokens"])))
        rows.append(("time", human_time(last["seconds"])))
        rows.append(("training loss", f"{show.figure(last['loss'])} nats per token"))
    for name, row in (("validation", validation), ("best", best)):
        if row:
            bits, loss = show.figure(row.get("validation_bits_per_byte")), show.figure(row.get("validation_loss"))
            rows.append((name, f"{bits} bits per byte, {loss} nats per token, at step {row['step']}"))
    return rows


def _pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), str(value)) for name, value in values.items() if value is not None]
