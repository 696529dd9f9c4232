"""How results look: tables, samples, figures, JSON."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer


def write(text: str, end: str = "\n") -> None:
    """Prints text that a model wrote: as it is into a pipe, without control characters on a terminal."""
    if sys.stdout.isatty():
        from homespun.train.log import visible

        text = visible(text)
    sys.stdout.write(text + end)
    sys.stdout.flush()


def as_json(value: Any, indent: int | None = 2) -> None:
    """Prints JSON, of many lines for people or of one for a stream of records."""
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=str))


def table(title: str, rows: Iterable[Sequence[Any]], columns: Sequence[str] = ("", "")) -> None:
    """A table: names to the left, numbers to the right. Without a terminal, one plain line per row."""
    rows = [[str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        typer.echo(title)
        widths = [max(len(row[i]) for row in [*rows, list(columns)]) for i in range(len(columns))]
        for row in [list(columns)] * any(columns) + rows:
            typer.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=any(columns))
    for number, column in enumerate(columns):
        shown.add_column(column, no_wrap=number == 0, overflow="fold")
    for row in rows:
        shown.add_row(*map(escape, row))
    Console(highlight=False).print(shown)


def next_commands(commands: Mapping[str, str]) -> None:
    """What to try next: command lines with what each does."""
    typer.echo("\nNext:")
    width = max(map(len, commands))
    for command, meaning in commands.items():
        typer.echo(f"  {command.ljust(width)}   {meaning}")


def command(*words: object) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(["homespun", *map(str, words)])


def figure(number: float | None, digits: int = 3) -> str:
    """A measured number, or `-` where there is none."""
    return "-" if number is None or not math.isfinite(number) else f"{number:.{digits}f}"
