"""Sources give what is new, once, from wherever their cursors stand."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from homespun.errors import DataError
from homespun.learn.sources import PART, Source, open_sources
from homespun.learn.spool import folder_of, put
from homespun.learn.web import texts_of
from tests.learn.learners import sums, write_rows


class Reader:
    """Reads a source as the journal does: cursors are kept with the texts."""

    def __init__(self, spec: str, run: Path, watch: bool = False):
        self.source: Source = open_sources([spec], run, watch)[0]
        self.cursors: dict[str, Any] = {}
        self.problems: list[str] = []

    def read(self, most: int | None = None) -> list[str]:
        """What is new; of at most `most` parts, as if killed behind them."""
        texts: list[str] = []
        for number, part in enumerate(self.source.changes(self.cursors.get)):
            if number == most:
                break
            texts += part.texts
            if part.cursor is not None:
                self.cursors[part.place] = json.loads(json.dumps(part.cursor))
            self.problems += [part.problem] * (part.problem is not None)
        return texts


def test_rows_are_read_on_from_where_they_ended(tmp_path: Path) -> None:
    path, texts = tmp_path / "log.jsonl", sums(2 * PART + 9)
    write_rows(path, texts[:-1])
    reader = Reader(str(path), tmp_path, watch=True)
    assert reader.read(1) == texts[:PART]
    assert reader.read() == texts[PART:-1] and reader.read() == []
    row = json.dumps({"text": texts[-1]}) + "\n"
    with open(path, "a") as file:
        file.write(row[:20])
    assert reader.read() == []  # half a row
    with open(path, "a") as file:
        file.write(row[20:])
    assert reader.read() == texts[-1:]


def test_a_file_that_was_replaced_is_read_from_its_start(tmp_path: Path) -> None:
    path, texts = tmp_path / "log.jsonl", sums(6)
    write_rows(path, texts[:3])
    reader = Reader(str(path), tmp_path, watch=True)
    assert reader.read() == texts[:3]
    write_rows(tmp_path / "new", texts[3:])
    os.replace(tmp_path / "new", path)
    assert reader.read() == texts[3:]
    path.write_text("")  # cut, and written anew
    assert reader.read() == []
    write_rows(path, texts[:2])
    assert reader.read() == texts[:2]


def test_a_row_that_is_none_costs_only_itself(tmp_path: Path) -> None:
    path, texts = tmp_path / "log.jsonl", sums(2)
    rows = [json.dumps({"text": text}).encode() for text in texts]
    path.write_bytes(b"\n".join([rows[0], b"{broken", b"\xff\xfe", rows[1]]))
    reader = Reader(str(path), tmp_path)
    assert reader.read() == texts
    assert len(reader.problems) == 1 and "log.jsonl, byte 0" in reader.problems[0]


def test_a_folder_gives_new_and_changed_files(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    reader = Reader(str(folder), tmp_path, watch=True)
    assert reader.read() == []
    path = folder / "one.txt"
    path.write_text("first")
    assert reader.read() == []  # somebody may still be writing
    os.utime(path, (1, 1))
    assert reader.read() == ["first"] and reader.read() == []
    path.write_text("second")
    os.utime(path, (2, 2))
    (folder / ".hidden.txt").write_text("no")
    assert reader.read() == ["second"]


def test_a_long_file_is_read_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"<|endoftext|>\ntext {number}\n" for number in range(3 * PART)))
    reader = Reader(str(path), tmp_path)
    first = reader.read(1)
    assert len(first) == PART and first + reader.read() == [f"text {number}" for number in range(3 * PART)]
    assert reader.read() == []


def test_a_query_goes_on_behind_its_cursor(tmp_path: Path) -> None:
    place = tmp_path / "notes.db"
    base = sqlite3.connect(place)
    base.execute("CREATE TABLE notes (day INTEGER, title TEXT, body TEXT)")
    base.executemany("INSERT INTO notes VALUES (?, ?, ?)", [(day // 50, f"title {day}", None) for day in range(200)])
    base.commit()
    reader = Reader(f"sqlite:{place}?select * from notes where day > :cursor order by day", tmp_path)
    first = reader.read(1)
    assert len(first) == 100  # rows of one cursor are not torn apart
    assert first + reader.read() == [f"title {day}" for day in range(200)]
    base.execute("INSERT INTO notes VALUES (9, 'new', 'body')")
    base.commit()
    assert reader.read() == ["new\nbody"] and reader.read() == []
    with pytest.raises(DataError, match="no query with a cursor"):
        open_sources([f"sqlite:{place}?select * from notes"], tmp_path, False)
    with pytest.raises(DataError, match="falls from"):
        Reader(f"sqlite:{place}?select * from notes where day > :cursor order by day desc", tmp_path).read()
    with pytest.raises(DataError, match="readonly"):
        Reader(f"sqlite:{place}?delete from notes where day > :cursor", tmp_path).read()


def test_standard_input_is_cut_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = json.dumps({"text": "a row"})
    running = "\n\n".join("word " * 75 for _ in range(4))

    class Input:
        buffer = io.BytesIO(f"{row}\n{running}\n".encode())

    monkeypatch.setattr("sys.stdin", Input)
    texts = Reader("-", tmp_path).read()
    assert texts[0] == "a row" and "".join(texts[1:]) == f"{running}\n" and len(texts) == 3


def test_the_queue_gives_each_text_once(tmp_path: Path) -> None:
    (source,) = open_sources([], tmp_path, False)
    put(tmp_path, "one")
    put(tmp_path, "two")
    (folder_of(tmp_path) / ".tmp-three.txt").write_text("unfinished")
    parts = list(source.changes(lambda place: None))
    assert [part.texts for part in parts] == [("one",), ("two",)]
    assert parts[0].done is not None
    parts[0].done()
    taken = {parts[1].place: True}  # killed before the file went
    assert list(source.changes(taken.get)) == []
    assert not list(folder_of(tmp_path).glob("[!.]*"))


def test_feeds_and_pages_give_their_text(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    feed = """<?xml version="1.0"?><rss><channel><title>no</title>
      <item><title>A day</title><description>&lt;p&gt;Rain &amp;amp; wind.&lt;/p&gt;</description></item>
      <item><title>A night</title></item></channel></rss>"""
    with fsspec.open("memory://news/feed.xml", "w") as file:
        file.write(feed)
    reader = Reader("memory://news/feed.xml", tmp_path)
    assert reader.read() == ["A day\n\nRain & wind.", "A night"] and reader.read() == []
    with pytest.raises(DataError, match="cannot be read"):
        Reader("memory://news/absent.xml", tmp_path).read()
    page = b"<!doctype html><html><script>var x;</script><p>Shown &lt;here&gt;</p></html>"
    assert [text.strip() for text in texts_of(page, "page")] == ["Shown <here>"]
    with pytest.raises(DataError, match="entities"):
        texts_of(b'<!DOCTYPE x [<!ENTITY a "b">]><rss></rss>', "bomb")


def test_what_means_nothing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    for specs, told in (
        (["absent.txt"], "does not exist"),
        (["corpus=" + str(path)], "was trained on"),
        ([str(path), str(path)], "named twice"),
    ):
        with pytest.raises(DataError, match=told):
            open_sources(specs, tmp_path, False)
    assert open_sources([f"letters={path}"], tmp_path, False)[0].domain == "letters"
