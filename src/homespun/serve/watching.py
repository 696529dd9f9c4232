"""Runs while they are trained: their rows of metrics and samples, as far as they are written."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from homespun.serve.errors import Refusal
from homespun.serve.learning import has_journal
from homespun.serve.served import Served

LIVELY = 60.0  # seconds since the last row in which a run counts as being trained
PART = 2**20  # bytes of a file that are told at a time

FILES = {"metrics": "metrics.jsonl", "samples": "samples.jsonl"}


def overview(served: Served) -> dict[str, Any]:
    """A run in a few figures."""
    metrics = served.folder / FILES["metrics"]
    run = served.run
    return {
        "name": served.name,
        "model": run is not None,
        "step": run.step if run is not None else None,
        "parameters": sum(p.numel() for p in run.model.parameters()) if run is not None else None,
        "context": run.recipe.model.context if run is not None else None,
        "training": metrics.is_file() and time.time() - metrics.stat().st_mtime < LIVELY,
        "learning": has_journal(served),
        "experts": served.experts,
        "chat": served.template is not None and served.template.conversational,
        "stops": served.template.stops if served.template is not None else [],
    }


def rows_after(path: Path, after: int) -> dict[str, Any]:
    """The whole rows of a file from a byte on, and the byte to ask from next.

    `start`: where the rows begin: at `after`, or at 0 when the file has become shorter, as it does when a run is
    resumed from an earlier step. Lines that hold no JSON object are left out.
    """
    if not path.is_file():
        return {"rows": [], "start": 0, "next": 0}
    with path.open("rb") as file:
        start = after if after <= path.stat().st_size else 0
        file.seek(start)
        data = file.read(PART)
    data = data[: data.rfind(b"\n") + 1]
    rows = [row for line in data.split(b"\n") if isinstance(row := _parsed(line), dict)]
    return {"rows": rows, "start": start, "next": start + len(data)}


def byte_of(text: str) -> int:
    """The place in a file that a query names. Raises a `Refusal`."""
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Refusal(400, "after should be a number of bytes", "invalid_value", "after")
    return int(text)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line, parse_constant=lambda word: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def _finite(word: str) -> float | None:
    number = float(word)
    return number if math.isfinite(number) else None
