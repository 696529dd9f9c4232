"""Sources give what is new, once, from wherever their cursors stand."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from homespun.errors import DataError
from homespun.learn.parts import PART, Source
from homespun.learn.sources import open_sources
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
    assert len(reader.problems) == 1
    assert f"log.jsonl, byte {len(rows[0]) + 1} is no JSON" in reader.problems[0]


def test_a_long_row_comes_in_parts_and_is_read_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    pieces = [f"{number} " * 500 + "\n\n" for number in range(1000, 1000 + 3 * PART)]  # longer than a piece
    write_rows(path, ["".join(pieces), "last"])
    reader = Reader(str(path), tmp_path, watch=True)
    first = reader.read(1)
    assert len(first) == PART and first + reader.read() == [*pieces, "last"] and reader.read() == []


def test_a_row_without_bound_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homespun.learn.files.ROW", 1000)
    path = tmp_path / "log.jsonl"
    write_rows(path, ["x" * 10_000, "good"])
    reader = Reader(str(path), tmp_path, watch=True)
    assert reader.read() == ["good"] and "more than 1,000 bytes" in reader.problems[0]


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


def test_a_folder_gives_nothing_from_outside_and_nothing_hidden(tmp_path: Path) -> None:
    folder, outside = tmp_path / "notes", tmp_path / "secret.txt"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "log.txt").write_text("hidden")
    outside.write_text("secret")
    (folder / "one.txt").write_text("first")
    (folder / "out.txt").symlink_to(outside)
    (folder / "in.txt").symlink_to(folder / "one.txt")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    os.mkfifo(folder / "pipe.txt")
    assert Reader(str(folder), tmp_path).read() == ["first", "first"]


def test_a_file_that_cannot_be_read_now_hides_no_other_and_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.jsonl", "c.txt"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
        os.utime(tmp_path / name, (1, 1))
    reader = Reader(str(tmp_path), tmp_path, watch=True)
    with monkeypatch.context() as patch:
        opened = open

        def forbid(path: Any, *rest: Any, **more: Any) -> Any:
            if str(path).endswith(("a.txt", "b.jsonl")):
                raise PermissionError(13, "Permission denied")
            return opened(path, *rest, **more)

        patch.setattr("builtins.open", forbid)
        patch.setattr(Path, "open", forbid)
        assert len(reader.read()) == 1
        assert [problem.endswith("cannot be read: Permission denied") for problem in reader.problems] == [True, True]
    assert len(reader.read()) == 2 and reader.read() == []


def test_a_file_from_the_future_is_read(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("first")
    os.utime(tmp_path / "one.txt", (1e11, 1e11))
    assert Reader(str(tmp_path), tmp_path, watch=True).read() == ["first"]


def test_a_folder_that_was_away_gives_only_what_is_new(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "one.txt").write_text("first")
    os.utime(folder / "one.txt", (1, 1))
    reader = Reader(str(folder), tmp_path, watch=True)
    assert reader.read() == ["first"]
    folder.rename(tmp_path / "away")
    with pytest.raises(DataError, match="does not exist"):
        reader.read()
    folder.mkdir()  # the point of a mount
    assert reader.read() == []
    folder.rmdir()
    (tmp_path / "away").rename(folder)
    (folder / "two.txt").write_text("second")
    os.utime(folder / "two.txt", (1, 1))
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
    with pytest.raises(DataError, match="again, which is not behind"):
        Reader(f"sqlite:{place}?select * from notes where day >= :cursor order by day", tmp_path).read()


def test_a_query_only_reads(tmp_path: Path) -> None:
    place, other = tmp_path / "notes.db", tmp_path / "other.db"
    base = sqlite3.connect(place)
    base.execute("CREATE TABLE notes (id INTEGER, body TEXT)")
    base.execute("INSERT INTO notes VALUES (1, 'one')")
    base.commit()
    for query in (
        "delete from notes where id > :cursor",
        f"attach '{other}' as x -- :cursor",
        "pragma user_version = 3 -- :cursor",
        "create temp table x as select :cursor",
        f"vacuum into '{other}' -- :cursor",
        "select load_extension('x', :cursor)",
    ):
        with pytest.raises(DataError, match="not authorized|prohibited|denied"):
            Reader(f"sqlite:{place}?{query}", tmp_path).read()
    assert not other.exists() and base.execute("SELECT count(*) FROM notes").fetchone() == (1,)


def test_a_query_takes_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homespun.learn.database.SECONDS", 0.05)
    sqlite3.connect(tmp_path / "empty.db").execute("CREATE TABLE a (b)")
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n where i < :cursor"
    with pytest.raises(DataError, match="more than 0 seconds"):
        Reader(f"sqlite:{tmp_path / 'empty.db'}?{endless}", tmp_path).read()


@pytest.mark.skipif(not hasattr(sqlite3.Connection, "setlimit"), reason="needs Python 3.11")
def test_a_row_of_a_query_has_limited_length(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "empty.db").execute("CREATE TABLE a (b)")
    query = "select 1, zeroblob(100000000) where 1 > :cursor"
    with pytest.raises(DataError, match="too big"):
        Reader(f"sqlite:{tmp_path / 'empty.db'}?{query}", tmp_path).read()


def test_a_reader_that_waits_locks_no_writer_out(tmp_path: Path) -> None:
    place = tmp_path / "notes.db"
    base = sqlite3.connect(place, timeout=0)
    base.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, body BLOB)")
    base.executemany("INSERT INTO notes (body) VALUES (?)", [(f"note {n}\xff".encode(),) for n in range(3 * PART)])
    base.execute("UPDATE notes SET body = CAST(x'ff41' AS TEXT) WHERE id = 1")  # no UTF-8
    base.commit()
    reader = Reader(f"sqlite:{place}?select id, body from notes where id > :cursor order by id", tmp_path)
    parts = reader.source.changes(lambda place: None)
    texts = list(next(parts).texts)
    base.execute("INSERT INTO notes (body) VALUES ('while it waits')")
    base.commit()
    found: list[str] = []
    other = threading.Thread(target=lambda: found.extend(text for part in parts for text in part.texts))
    other.start()  # the learner reads each part from another thread
    other.join()
    assert [*texts, *found] == ["\ufffdA", *(f"note {n}\xff" for n in range(1, 3 * PART)), "while it waits"]
    base.execute("BEGIN EXCLUSIVE")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="locked"):
        patch.setattr("homespun.learn.database.PATIENCE", 0.01)
        reader.read()


def test_a_cursor_must_be_a_number_or_text(tmp_path: Path) -> None:
    place = tmp_path / "notes.db"
    base = sqlite3.connect(place)
    base.execute("CREATE TABLE notes (id, body)")
    base.executemany("INSERT INTO notes VALUES (?, ?)", [(1, "one"), (2.5, "two"), ("x", "three")])
    base.commit()
    query = f"sqlite:{place}?select id, body from notes where id > :cursor order by id"
    assert Reader(query, tmp_path).read() == ["one", "two", "three"]
    with pytest.raises(DataError, match="is None"):
        Reader(f"sqlite:{place}?select null, body from notes where id > :cursor", tmp_path).read()


def test_standard_input_is_cut_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = json.dumps({"text": "a row"})
    running = "\n\n".join("word " * 75 for _ in range(4))

    class Input:
        buffer = io.BytesIO(f"{row}\n{running}\n".encode())

    monkeypatch.setattr("sys.stdin", Input)
    texts = Reader("-", tmp_path).read()
    assert texts[0] == "a row" and "".join(texts[1:]) == f"{running}\n" and len(texts) == 3


def test_a_row_without_bound_of_standard_input_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homespun.learn.sources.ROW", 1000)
    monkeypatch.setattr("homespun.learn.files.ROW", 1000)
    rows = (json.dumps({"text": text}) for text in ("word " * 1000, "good"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(rows).encode())))
    assert Reader("-", tmp_path).read() == ["good"]


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


def test_an_entry_is_never_inside_another() -> None:
    inside = "<item><title>in</title>"  # a text for each of these once took a time squared
    feed = f"<rss><channel><item><title>out</title>{inside * 50_000}{'</item>' * 50_000}</item></channel></rss>"
    assert texts_of(feed.encode(), "feed") == ["out"]
    assert texts_of(b"<feed xmlns='http://www.w3.org/2005/Atom'><entry><title>an entry</title></entry></feed>", "f")
    assert texts_of(b"<rdf:RDF xmlns:rdf='r'><channel/><item><title>an item</title></item></rdf:RDF>", "f")


def test_an_open_page_costs_no_more_than_its_length() -> None:
    for page in ("<script>" * 100_000, "<!--" * 200_000, "<" * 800_000):  # each once took a time squared
        assert not "".join(texts_of(b"<html>" + page.encode(), "page")).replace("<", "").strip()
    assert texts_of(
        "<?xml version='1.0' encoding='latin-1'?><rss><item><title>\u00e9</title></item></rss>".encode("latin-1"), "f"
    ) == ["\u00e9"]


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """An HTTP server on this machine; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_an_address_is_read_whole_and_leads_nowhere_else(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    asked: list[str] = []
    moved = {"/file": "file:///etc/hostname", "/other": "http://localhost:9/", "/here": "/page", "/round": "/round"}

    def answer(to: BaseHTTPRequestHandler) -> None:
        asked.append(to.path)
        if place := moved.get(to.path):
            to.send_response(302)
            to.send_header("Location", place)
            to.end_headers()
            return
        to.send_response(200 if to.path == "/page" else 500)
        to.end_headers()  # no length is told
        for number in range(5):
            to.wfile.write(f"part {number}\n\n".encode())
            to.wfile.flush()
            time.sleep(0.02)

    with server(answer) as address:
        whole = "".join(f"part {number}\n\n" for number in range(5))
        assert Reader(f"{address}/page", tmp_path).read() == [whole] == Reader(f"{address}/here", tmp_path).read()
        for path, told in (("/file", "leads to file:"), ("/other", "leads to http://localhost:9/")):
            with pytest.raises(DataError, match=told):
                Reader(address + path, tmp_path).read()
        for path in ("/round", "/broken"):
            with pytest.raises(DataError, match="cannot be read"):
                Reader(address + path, tmp_path).read()
    with pytest.raises(DataError, match="cannot be read"):
        Reader(address, tmp_path).read()  # nobody listens


def test_no_source_is_taken_for_the_text_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    for spec in (str(tmp_path / "corpus.txt"), f"corpus={tmp_path}"):
        with pytest.raises(DataError, match="`corpus` is the text"):
            open_sources([spec], tmp_path, False)
    assert open_sources([f"mine={tmp_path / 'corpus.txt'}"], tmp_path, False)[0].domain == "mine"


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
