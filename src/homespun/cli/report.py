"""`homespun report`: one self-contained page about a run, or about several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from homespun.cli import options, show


def report(
    runs: Annotated[list[Path], options.argument("RUN...", "Folders of runs.")],
    out: Annotated[
        Path | None,
        options.option("--out -o", "FILE", "RUN/report.html, or comparison.html for several, if not given."),
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Write one HTML page with curves, samples, settings and environment; it opens without a network."""
    from homespun.evaluate.report import write_report

    page = write_report(runs, out)
    show.as_json({"report": str(page)}) if json else typer.echo(f"Report: {page}")
