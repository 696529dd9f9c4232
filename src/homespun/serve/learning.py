"""GET /v1/runs/NAME/learning: what a learner's journal tells. It is only read, while the learner may write."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from homespun.errors import CheckpointError, DataError
from homespun.learn.autonomous import JOURNAL
from homespun.learn.status import STATES, status
from homespun.serve.errors import Refusal
from homespun.serve.served import Served

LAST = 200  # cycles and events that are told
CLOSING = 5.0  # seconds that a learner may take from its farewell until the journal is closed


def has_journal(served: Served) -> bool:
    """Whether a learner has ever been at work."""
    return (served.folder / JOURNAL).is_file()


def learning(served: Served) -> dict[str, Any]:
    """The story of a run's learner, as `homespun learn --status --json` has it; `states`: what the states of texts
    mean; `quiet`: seconds since the journal was written, `ended`: whether its learner said farewell and wrote no more.

    Raises a `Refusal` where there is no journal, or one that cannot be read.
    """
    try:
        story = status(served.folder, LAST)
        told = json.loads(json.dumps(story), parse_constant=lambda word: None)
        written = _written(served.folder)
        ended = any(last["kind"] == "end" and written - last["time"] < CLOSING for last in told["events"][-1:])
    except CheckpointError:
        message = "This run has learned nothing since its training. To let it: homespun learn RUN SOURCE... --watch"
        raise Refusal(404, message, "no_journal") from None
    except (DataError, LookupError, ValueError, TypeError, AttributeError, OSError, RecursionError):
        message = "The journal of this run cannot be read. Restore it from a copy, or move it away"
        raise Refusal(409, message, "journal_damaged") from None
    del told["run"]  # where it lies is nobody's business
    return told | {"states": STATES, "quiet": max(0.0, time.time() - written), "ended": ended}


def _written(folder: Path) -> float:
    """When the journal was written to last. Beside it stands its log while a learner is at work; whoever only reads
    makes one that is empty."""
    journal = folder / JOURNAL
    found = [each.stat() for each in (journal, journal.with_name(f"{journal.name}-wal")) if each.is_file()]
    return max(each.st_mtime for each in found if each.st_size)
