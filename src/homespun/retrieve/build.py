"""Makes an index of sources of text, or renews one: only what changed is read and embedded again."""

from __future__ import annotations

import glob
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from homespun.data.sources import File, Source, resolve, spooled
from homespun.errors import DataError
from homespun.retrieve.index import FORMAT, SCHEMA, VECTOR, about, opened, told
from homespun.retrieve.passages import passages_of
from homespun.retrieve.protocol import Meaning
from homespun.retrieve.trust import PASSAGES, trusted
from homespun.train.disk import TEMPORARY, flush, temporary

PART = 256  # passages that get their vectors at a time

_WORTHLESS = (
    "In a trial on these passages the run's vectors found less than the words do: they only add to what words find."
)


@dataclass(frozen=True)
class Built:
    """What came of it. `changed`: sources that were read, the new ones included; `removed`: that are there no more."""

    sources: int
    passages: int
    changed: int
    removed: int
    vectors: int


def build(
    data: Sequence[str | Path],
    out: Path,
    meaning: Meaning | None = None,
    say: Callable[[str], None] = lambda note: None,
) -> Built:
    """Makes the file `out` hold the passages of `data`, and with a meaning their vectors; else words alone.

    The file holds either all of the old index or all of the new one, whatever happens. Raises `DataError`.
    """
    with spooled(data) as places, _renewed(out) as base:
        sources = named_sources(places, say)
        changed, removed = _read(base, sources)
        passages = base.execute("SELECT count(*) FROM passage").fetchone()[0]
        if not passages:
            raise DataError(f"There is no text in {', '.join(map(str, data))}", "Name what holds some.")
        base.execute("INSERT INTO words (words) VALUES ('rebuild')")
        vectors = _embed(base, meaning, say)
    return Built(len(sources), passages, changed, removed, vectors)


def named_sources(places: Sequence[str | Path | File], say: Callable[[str], None]) -> dict[str, Source]:
    """The sources by their names: those of files relative to the folder that holds all that was named."""
    roots = [_root(place) for place in places if _in_folder(place)]
    top = os.path.commonpath(roots) if roots else ""
    found: dict[str, Source] = {}
    for place in places:
        for source in resolve([place], say):
            name = source.name
            if isinstance(source, File) and _in_folder(place):
                name = Path(os.path.relpath(source.path.absolute(), top)).as_posix()
            found[os.fsencode(name).decode("utf-8", "backslashreplace")] = source
    return found


def _in_folder(place: str | Path | File) -> bool:
    return not isinstance(place, File) and not str(place).startswith("stories:") and place != "python:"


def _root(place: str | Path | File) -> str:
    """The folder itself, that of a file, or the one below which a glob looks."""
    path = Path(str(place)).expanduser().absolute()
    if path.is_dir():
        return str(path)
    parents = [parent for parent in path.parents if not glob.has_magic(str(parent)) or parent.exists()]
    return str(parents[0])


def _read(base: sqlite3.Connection, sources: dict[str, Source]) -> tuple[int, int]:
    """Takes in what is new, leaves out what is gone, and counts both."""
    known = {name: (number, held) for number, name, held in base.execute("SELECT id, name, hash FROM source")}
    for name in known.keys() - sources.keys():
        _forget(base, known[name][0])
    changed = 0
    for name, source in sources.items():
        held = source.fingerprint()
        if name in known:
            if known[name][1] == held:
                continue
            _forget(base, known[name][0])
        number = base.execute("INSERT INTO source (name, hash) VALUES (?, ?)", (name, held)).lastrowid
        base.executemany(
            "INSERT INTO passage (source, place, text) VALUES (?, ?, ?)",
            ((number, place, text) for place, text in passages_of(source)),
        )
        changed += 1
    return changed, len(known.keys() - sources.keys())


def _forget(base: sqlite3.Connection, number: int) -> None:
    base.execute("DELETE FROM passage WHERE source = ?", (number,))
    base.execute("DELETE FROM source WHERE id = ?", (number,))


def _embed(base: sqlite3.Connection, meaning: Meaning | None, say: Callable[[str], None]) -> int:
    """Gives every passage its vector, or none of them; those that this model made before are kept."""
    model = meaning.identity if meaning is not None else None
    if about(base).get("model") != model:
        base.execute("UPDATE passage SET vector = NULL")
        base.execute("DELETE FROM about WHERE key IN ('model', 'weight')")
    if meaning is None:
        return 0
    base.execute("INSERT OR REPLACE INTO about VALUES ('model', ?)", (model,))
    rows = base.execute("SELECT id, text FROM passage WHERE vector IS NULL").fetchall()
    for start in range(0, len(rows), PART):
        part = rows[start : start + PART]
        vectors = np.ascontiguousarray(meaning.embed([text for _, text in part]), dtype=VECTOR)
        base.executemany(
            "UPDATE passage SET vector = ? WHERE id = ?",
            [(vector.tobytes(), number) for vector, (number, _) in zip(vectors, part, strict=True)],
        )
        if len(rows) > PART:
            say(f"{start + len(part):,} of {len(rows):,} vectors")
    count: int = base.execute("SELECT count(vector) FROM passage").fetchone()[0]
    if rows:
        _weigh(base, meaning, -(-count // PASSAGES), say)
    return count


def _weigh(base: sqlite3.Connection, meaning: Meaning, every: int, say: Callable[[str], None]) -> None:
    """Notes how much the vectors count, by a trial on one of `every` passages."""
    sample = base.execute(
        "SELECT text FROM (SELECT text, row_number() OVER (ORDER BY id) AS place FROM passage) WHERE place % ? = 0",
        (every,),
    )
    weight = trusted([text for (text,) in sample], meaning)
    base.execute("INSERT OR REPLACE INTO about VALUES ('weight', ?)", (str(weight),))
    if not weight:
        say(_WORTHLESS)


@contextmanager
def _renewed(out: Path) -> Iterator[sqlite3.Connection]:
    """A copy of the index `out`, or an empty one, which takes its place in the end."""
    if out.exists():
        opened(out).close()  # nothing else is ever replaced
    unfinished = temporary(out)
    try:
        _remove_leftovers(out)
        if out.exists():
            shutil.copyfile(out, unfinished)
        else:
            unfinished.touch(exist_ok=False)
        with told(out), _writing(out), closing(sqlite3.connect(unfinished)) as base:
            base.execute("PRAGMA journal_mode = OFF")
            base.execute("PRAGMA synchronous = OFF")
            if not out.exists():
                for statement in SCHEMA.values():
                    base.execute(statement)
                base.execute("INSERT INTO about VALUES ('format', ?)", (FORMAT,))
            yield base
            base.commit()
        flush(unfinished)
        os.replace(unfinished, out)
        flush(out.parent)
    except OSError as error:
        raise _unwritten(out, str(error.strerror)) from None
    finally:
        unfinished.unlink(missing_ok=True)


def _remove_leftovers(out: Path) -> None:
    """Removes what a killed process left a day or more ago."""
    for path in out.parent.glob(f"{TEMPORARY}{glob.escape(out.name)}-*"):
        if path.stat().st_mtime < time.time() - 86_400:
            path.unlink(missing_ok=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turns what SQLite says of a full disk into a `DataError`; what it says of a damaged file is left to `told`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _unwritten(out, str(error)) from None


def _unwritten(out: Path, why: str) -> DataError:
    return DataError(f"{out} cannot be written: {why}", "Name a file in a folder with room.")
