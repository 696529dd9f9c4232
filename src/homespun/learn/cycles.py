"""The life of a cycle in the journal: opened, then kept or refused, or undone.

A cycle is kept when the checkpoint that names it stands, and at no other moment. What the journal says of it is brought
in line with the newest good checkpoint at every start: a cycle that was killed before goes back to the queue with all
its texts, one that was killed behind is closed as kept, and the cycles of a checkpoint that was lost are undone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from homespun.errors import DataError
from homespun.learn.journal import Item, Journal
from homespun.learn.replay import CORPUS, add_span, domains, trim

CALM, MOST_CAUTION = 4, 3


def open_cycle(
    journal: Journal,
    items: Sequence[Item],
    novelty: Mapping[int, float],
    base_step: int,
    learning_rate: float,
    caution: int,
) -> int:
    """Puts texts that wait into a new cycle; returns its number. Called inside a transaction."""
    number = journal.run(
        "INSERT INTO cycles (state, opened, base_step, new_tokens, learning_rate, caution) "
        "VALUES ('open', ?, ?, ?, ?, ?)",
        time.time(), base_step, sum(item.tokens for item in items), learning_rate, caution,
    )  # fmt: skip
    for item in items:
        journal.run(
            "UPDATE items SET state = 'learning', cycle = ?, novelty = ? WHERE id = ?",
            number, novelty.get(item.id), item.id,
        )  # fmt: skip
    return number


def keep(journal: Journal, number: int, told: Mapping[str, Any], reservoir: int, oldest: int) -> None:
    """Closes a cycle whose checkpoint stands. `told`: what that says of it. `oldest`: the step of the oldest checkpoint
    that is left: no text from before it is needed again."""
    with journal.transaction():
        _close(journal, number, "kept", told["figures"], told["reason"])
        journal.run("UPDATE cycles SET step = ? WHERE id = ?", told["step"], number)
        for domain, value in told["drift"].items():
            journal.run("INSERT OR REPLACE INTO drift VALUES (?, ?, ?)", domain, number, value)
        journal.run("UPDATE items SET state = 'learned' WHERE cycle = ? AND state = 'learning'", number)
        journal.run("UPDATE spans SET side = 'replay' WHERE cycle = ? AND side = 'new'", number)
        for domain in domains(journal, "replay"):
            trim(journal, domain, reservoir)
        journal.run(
            "UPDATE items SET text = NULL WHERE state = 'learned' AND text IS NOT NULL AND cycle IN "
            "(SELECT id FROM cycles WHERE step <= ?)", oldest,
        )  # fmt: skip


def refuse(journal: Journal, number: int, figures: Mapping[str, Any], reason: str, tries: int) -> None:
    """Closes a cycle that the gate did not let through; its texts are tried again, `tries` times in all."""
    with journal.transaction():
        _close(journal, number, "refused", figures, reason)
        journal.run("DELETE FROM spans WHERE cycle = ? AND side = 'new'", number)
        journal.run(
            "UPDATE items SET tries = tries + 1, state = CASE WHEN tries + 1 < ? THEN 'waiting' ELSE 'refused' END "
            "WHERE cycle = ? AND state = 'learning'", tries, number,
        )  # fmt: skip


def _close(journal: Journal, number: int, state: str, figures: Mapping[str, Any], reason: str) -> None:
    now = time.time()
    journal.run(
        "UPDATE cycles SET state = ?, closed = ?, seconds = max(0, ? - opened), figures = ?, reason = ? WHERE id = ?",
        state, now, now, json.dumps(figures), reason, number,
    )  # fmt: skip


def unfinished(journal: Journal, told: Mapping[str, Any]) -> bool:
    """Whether a checkpoint stands whose cycle the journal does not know as kept."""
    state = journal.value("SELECT state FROM cycles WHERE id = ?", int(told["cycle"]))
    return bool(told["journal"] == journal.id and state == "open")


def settle(journal: Journal, step: int, told: Mapping[str, Any] | None, reservoir: int, oldest: int) -> list[str]:
    """Brings the journal in line with the newest good checkpoint, of `step`; `told`: what it says of the cycle that
    made it. Returns what was done, in sentences."""
    said = []
    with journal.transaction():
        if told is not None and unfinished(journal, told):
            keep(journal, int(told["cycle"]), told, reservoir, oldest)
            said.append(f"Cycle {told['cycle']} was saved before the learner was stopped: it is kept.")
        elif told is not None and told["journal"] != journal.id:
            said += _follow(journal, told)
        for row in journal.rows("SELECT id FROM cycles WHERE state = 'open'"):
            _put_back(journal, row["id"], "stopped", "It was stopped before its end.")
            said.append(f"Cycle {row['id']} was stopped before its end: its texts wait again.")
        for row in journal.rows("SELECT id FROM cycles WHERE state = 'kept' AND step > ?", step):
            _put_back(journal, row["id"], "undone", f"The checkpoint it made is gone; step {step} is the newest.")
            said.append(f"Cycle {row['id']} is undone, since its checkpoint is gone: its texts wait again.")
    return said


def _follow(journal: Journal, told: Mapping[str, Any]) -> list[str]:
    """Lets a new journal stand for one that is gone: how far the domains had drifted is in the checkpoint, too."""
    before = journal.value("SELECT value FROM meta WHERE key = 'before'")
    if before == told["journal"]:
        return []
    if journal.value("SELECT 1 FROM meta WHERE key = 'old'"):
        problem = f"{journal.path} is not the journal that this run was learned with"
        raise DataError(problem, "Put the run's own back; without one, move this away.")
    journal.run("INSERT INTO meta VALUES ('before', ?)", told["journal"])
    for domain, value in told["drift"].items():
        journal.run("INSERT INTO drift VALUES (?, 0, ?)", domain, value)
    return ["The journal of earlier cycles is gone: what they learned may be learned again."]


def _put_back(journal: Journal, number: int, state: str, reason: str) -> None:
    journal.run("UPDATE cycles SET state = ?, closed = ?, reason = ? WHERE id = ?", state, time.time(), reason, number)
    journal.run("DELETE FROM drift WHERE cycle = ?", number)
    journal.run("DELETE FROM spans WHERE cycle = ? AND side IN ('new', 'replay')", number)
    journal.run(
        "UPDATE items SET state = 'waiting', cycle = NULL WHERE cycle = ? AND state IN ('learning', 'learned') "
        "AND text IS NOT NULL", number,
    )  # fmt: skip
    journal.run("UPDATE items SET state = 'lost' WHERE cycle = ? AND state = 'learned'", number)  # text is gone, too


def caution(journal: Journal) -> int:
    """How carefully the next cycle goes: one step more than a refused one, one less than `CALM` kept ones in a row."""
    query = "SELECT state, caution FROM cycles WHERE state IN ('kept', 'refused') ORDER BY id DESC LIMIT ?"
    before = [(str(row["state"]), int(row["caution"])) for row in journal.rows(query, CALM)]
    if not before:
        return 0
    state, last = before[0]
    if state == "refused":
        return min(last + 1, MOST_CAUTION)
    return max(0, last - 1) if before == [("kept", last)] * CALM else last


def add_new(journal: Journal, number: int, item: Item, ids: Sequence[int]) -> None:
    """Keeps the tokens of a text in an open cycle; they are replayed once the cycle is kept."""
    add_span(journal, item.domain, "new", ids, number, item.id)


def drift(journal: Journal) -> dict[str, float]:
    """How far each domain stands above the lowest loss it has had."""
    query = "SELECT domain, value FROM drift ORDER BY cycle"
    return {str(row["domain"]): float(row["value"]) for row in journal.rows(query)}


def learned(journal: Journal) -> set[str]:
    """The domains that the model knows: of the text it was trained on, and of all kept cycles."""
    found = "SELECT DISTINCT domain FROM items WHERE state = 'learned'"
    first = "SELECT DISTINCT domain FROM spans WHERE cycle IS NULL AND item IS NULL"
    return {CORPUS, *(str(row[0]) for query in (found, first) for row in journal.rows(query))}
