"""`homespun bench`: what this machine can do, and how near a recipe comes to it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from homespun.cli import options, show
from homespun.cli.options import Choices
from homespun.errors import ConfigError

if TYPE_CHECKING:
    from homespun.benchmark.bench import Bench

_LABELS = {
    "products": "matrix products",
    "attention": "attention",
    "elementwise": "elementwise, norms, copies",
    "optimizer": "optimizer and clipping",
    "data": "data",
    "other": "other operations",
    "between": "between operations",
}


def bench(
    words: Annotated[
        list[str] | None,
        options.argument("[train|decode|ceiling] [KEY=VALUE...]", "What to measure (all), and settings."),
    ] = None,
    recipe: options.RecipeName = None,
    config: options.SettingsFile = None,
    tokenizer: options.TokenizerName = None,
    seconds: Annotated[float, typer.Option("--seconds", metavar="N", min=0.01, help="For each measurement.")] = 3.0,
    json: options.AsJson = False,
) -> None:
    """Measure this machine's ceilings, then a recipe against them: training, decoding, and where the time goes.

    Example: [bold]homespun bench train --recipe house-small train.precision=bf16[/bold]
    """
    from homespun import run
    from homespun.benchmark.bench import PARTS
    from homespun.config import nearest

    parts = [part for part in PARTS if part in (words or ())]
    unknown, given = options.split_arguments(word for word in words or () if word not in PARTS)
    if unknown:
        raise ConfigError(f"homespun bench does not measure {unknown[0]!r}", nearest(unknown[0], PARTS))
    chosen = Choices(recipe, config, given, tokenizer=tokenizer).build()
    told = not json and sys.stderr.isatty()
    measured = run.bench(
        chosen,
        parts or PARTS,
        seconds=seconds,
        say=lambda what: typer.echo(f"{what} ...", err=True) if told else None,
    )
    show.as_json(measured.to_dict()) if json else _tables(measured)


def _tables(bench: Bench) -> None:
    found, trained, written = bench.ceilings, bench.training, bench.decoding
    show.table(f"This machine's ceilings in {found.precision}, at {found.rows:,} tokens", found.table())
    if trained is not None:
        show.table(f"Training {bench.recipe}, {bench.parameters:,} parameters", trained.table())
    if written:
        columns = ("", *(f"batch {one.batch}" for one in written))
        rows = [
            (same[0][0], *(cell for _, cell in same)) for same in zip(*(one.table() for one in written), strict=True)
        ]
        first = written[0]
        show.table(f"Decoding {bench.recipe}, greedy, after a prompt of {first.prompt} tokens", rows, columns)
    wheres = {"training": trained.where} if trained is not None else {}
    wheres |= {f"decoding, batch {one.batch}": one.where for one in written}
    if wheres:
        rows = [(label, *(_bar(where[kind]) for where in wheres.values())) for kind, label in _LABELS.items()]
        show.table("Where the time goes", rows, ("", *wheres))
    _circumstances(bench)


def _circumstances(bench: Bench) -> None:
    """On what, and in what company, this was measured."""
    machine = bench.environment
    where = machine["device"] if machine["device"] != "cpu" else machine["cpu"]
    load = "" if bench.load is None else f", load average {bench.load:.2f} before"
    typer.echo(f"Measured on {where}: {_many(machine['cores'], 'core')}, {_many(machine['threads'], 'thread')}{load}.")
    if bench.plain:
        typer.echo("The fast paths are off (HOMESPUN_PLAIN).")
    if bench.busy:
        typer.secho("Warning: ", fg="yellow", bold=True, nl=False, err=True)
        typer.echo("other work keeps this machine busy, so these figures say little. Measure again alone.", err=True)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _bar(share: float, width: int = 12) -> str:
    return f"{share:4.0%} {'█' * round(share * width)}".rstrip()
