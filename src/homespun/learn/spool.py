"""A queue that other processes fill: one file for each text, in a folder of the run, renamed into place when whole."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from homespun.train.disk import TEMPORARY, flush, write

SUFFIX = ".txt"


def folder_of(run: str | Path) -> Path:
    """Where the queue of a run lies."""
    return Path(run) / "learn" / "queue"


def put(run: str | Path, text: str) -> Path:
    """Leaves a text for the learner of a run, which may be at work or not; it is on the disk when this returns."""
    folder = folder_of(run)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{time.time_ns():020d}-{secrets.token_hex(8)}{SUFFIX}"  # a name that is never given twice
    unfinished = folder / f"{TEMPORARY}{place.name}"
    write(unfinished, text.encode("utf-8", "replace"))
    os.replace(unfinished, place)
    flush(folder)
    return place
