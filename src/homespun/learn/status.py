"""What a journal tells, for people and programs. It is only read, while a learner may be at work."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from homespun.errors import CheckpointError, DataError
from homespun.learn.journal import JOURNAL

STATES = {
    "waiting": "wait",
    "learning": "in the cycle at work",
    "learned": "learned",
    "held": "held out",
    "known": "known before",
    "alike": "nearly the same as another",
    "refused": "refused by the gate",
    "lost": "lost with a checkpoint",
}
"""What may become of a text, and how it is told."""


def status(folder: Path, last: int = 10) -> dict[str, Any]:
    """The story of a learner: `sources`, how many `texts` of each state, `domains` with their losses, the `last` cycles
    and events. Raises `CheckpointError` where nothing was learned yet."""
    place = folder / JOURNAL
    if not place.is_file():
        raise CheckpointError(f"The run in {folder} has no journal", f"Let it learn: homespun learn {folder} SOURCE.")
    log = place.with_name(f"{place.name}-wal")
    writable = os.access(place.parent, os.W_OK) or (log.exists() and log.stat().st_size)
    mode = "mode=ro" if writable else "immutable=1"  # SQLite makes a file beside it to read what others write
    try:
        with closing(sqlite3.connect(f"{place.absolute().as_uri()}?{mode}", uri=True, timeout=10)) as base:
            base.row_factory = sqlite3.Row
            return _story(base, last) | {"run": str(folder), "journal_bytes": place.stat().st_size}
    except sqlite3.Error as error:
        raise DataError(f"{place} cannot be read: {error}", "Restore it from a copy.") from None


def _story(base: sqlite3.Connection, last: int) -> dict[str, Any]:
    def rows(query: str, *values: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in base.execute(query, values)]

    taken = dict(base.execute("SELECT source, count(*) FROM items WHERE state != 'alike' GROUP BY source").fetchall())
    sources = rows("SELECT id, name, domain, repeated, unclean, problem FROM sources ORDER BY id")
    cycles = rows("SELECT * FROM cycles ORDER BY id DESC LIMIT ?", last)[::-1]
    for cycle in cycles:
        cycle["figures"] = json.loads(cycle["figures"] or "{}")
    return {
        "sources": [source | {"texts": taken.get(source.pop("id"), 0)} for source in sources],
        "texts": {row["state"]: row["n"] for row in rows("SELECT state, count(*) AS n FROM items GROUP BY state")},
        "domains": _domains(rows),
        "decisions": {row["state"]: row["n"] for row in rows("SELECT state, count(*) AS n FROM cycles GROUP BY state")},
        "cycles": cycles,
        "events": rows("SELECT time, kind, text FROM events ORDER BY id DESC LIMIT ?", last)[::-1],
    }


def _domains(rows: Any) -> list[dict[str, Any]]:
    """Each domain's tokens to replay, how it stands, and how it stood when it was first measured."""
    kept = [json.loads(row["figures"]) for row in rows("SELECT figures FROM cycles WHERE state = 'kept' ORDER BY id")]
    sizes = rows("SELECT domain, side, sum(tokens) AS n FROM spans WHERE side IN ('replay', 'held') GROUP BY 1, 2")
    found = []
    for name in sorted({row["domain"] for row in sizes}):
        first: dict[str, Any] = next((each["before"][name] for each in kept if name in each["before"]), {})
        now: dict[str, Any] = next((each["after"][name] for each in reversed(kept) if name in each["after"]), {})
        held = {row["side"]: row["n"] for row in sizes if row["domain"] == name}
        found.append(
            {
                "domain": name,
                "replay_tokens": held.get("replay", 0),
                "held_tokens": held.get("held", 0),
                "first": first.get("bits_per_byte"),
                "now": now.get("bits_per_byte"),
            }
        )
    return found
