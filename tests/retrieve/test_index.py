"""The index: what it finds and in which order, what renewing it does, and what it refuses."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sqlite3
import threading
from pathlib import Path

import pytest

import homespun as hs
from homespun.errors import DataError
from homespun.retrieve.build import Built, build
from homespun.retrieve.index import Index
from homespun.retrieve.ranking import fused
from homespun.retrieve.trust import trusted
from tests.retrieve.conftest import Numbers, Pairs, Topics

LATE = [f"N{number} came home late, N{number} came home late" for number in range(200)]
"""Texts that words tell apart."""
MEANT = [f"we saw q{number} we saw a{number}" for number in range(12)]
"""Texts whose halves only their meaning joins."""


def cited(index: Index, query: str, count: int = 3) -> list[str]:
    return [passage.cited for passage in index.retrieve(query, count)]


def test_ranks_are_fused_as_by_hand() -> None:
    found = dict(fused([[7, 3, 9], [3, 8]], [1.0, 0.5]))
    assert found == {7: 1 / 61, 3: 1 / 62 + 0.5 / 61, 9: 1 / 63, 8: 0.5 / 62}
    assert [number for number, _ in fused([[7, 3, 9], [3, 8]], [1.0, 1.0])] == [3, 7, 8, 9]
    assert [number for number, _ in fused([[5], [2]], [1.0, 1.0])] == [5, 2]  # equal scores: the first ranking
    assert [number for number, _ in fused([[5, 4], [2, 4]], [1.0, 0.0])] == [5, 4, 2]  # meaning only adds


def test_meaning_counts_as_much_as_it_finds() -> None:
    assert trusted(MEANT, Pairs()) > 0
    assert trusted(LATE, Numbers()) == 0.0
    assert trusted(MEANT[:1], Pairs()) == trusted([], Pairs()) == 0.0  # nothing can be tried


def test_what_meaning_counts_is_kept_with_the_vectors(notes: Path, tmp_path: Path) -> None:
    out, heard = tmp_path / "i", []
    (tmp_path / "names.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in LATE))
    build([tmp_path / "names.jsonl"], out, Numbers(), heard.append)
    index = Index(out, Numbers())
    assert index.weight == 0.0 and any("found less" in each for each in heard)
    assert cited(index, "N18", 1) == ["names.jsonl:19"] and len(index.retrieve("Sue", 20)) == 20
    build([tmp_path / "names.jsonl"], out)
    (notes / "meant.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in MEANT))
    build([notes / "meant.jsonl"], tmp_path / "j", Pairs())
    known = Index(tmp_path / "j", Pairs())
    assert Index(out).weight == 0.0 and known.weight == trusted(MEANT, Pairs())
    best = known.retrieve("q7 or a7", 1)[0]
    assert best.cited == "meant.jsonl:8" and best.score == 1 / 61 + known.weight / 61  # the first of both rankings


def test_words_are_ranked_with_their_source_and_place(notes: Path, tmp_path: Path) -> None:
    (notes / "more.md").write_text("\n\nThe fox and the whale drink tea.\n", encoding="utf-8")
    index = Index.build(notes, tmp_path / "i")
    assert len(index) == 5
    first, second = index.retrieve("Where does the FOX sleep? In the barn?", 2)
    assert (first.source, first.place, first.score) == ("fox.md", "1", 1 / 61)
    assert first.text == "# Foxes\n\nThe fox sleeps in the old barn."
    assert (second.source, second.place, second.score) == ("more.md", "3", 1 / 62)
    assert cited(index, "zebra") == []


def test_meaning_finds_what_words_do_not(notes: Path, tmp_path: Path) -> None:
    build([notes], tmp_path / "i", Topics())
    assert cited(Index(tmp_path / "i"), "vixen") == []
    index = Index(tmp_path / "i", Topics())
    assert cited(index, "vixen", 1) == ["fox.md:1"] and not index.notes


@pytest.mark.parametrize(
    "query",
    ['"', '"fox', "fox AND", "NOT fox", "NEAR(fox barn)", "text:fox", "fox*", "^fox", "(fox", "fox OR OR", "-fox",
     "'; DROP TABLE passage; --", "fox\x00", "{fox}", "a" * 5000 + " fox", "fox " * 3000],
)  # fmt: skip
def test_nothing_in_a_query_is_a_command(notes: Path, tmp_path: Path, query: str) -> None:
    index = Index.build(notes, tmp_path / "i")
    assert cited(index, query) == (["fox.md:1"] if "fox" in query else [])


def test_a_query_without_words_finds_nothing(notes: Path, tmp_path: Path) -> None:
    build([notes], tmp_path / "i", Topics())
    assert cited(Index(tmp_path / "i", Topics()), " \n") == []
    assert cited(Index(tmp_path / "i"), "?!") == []


def test_another_model_is_refused_for_meaning_and_said_once(notes: Path, tmp_path: Path) -> None:
    build([notes], tmp_path / "i", Topics("one"))
    other = Topics("two")
    index = Index(tmp_path / "i", other)
    assert cited(index, "vixen") == [] and cited(index, "fox") == ["fox.md:1"]
    assert other.embedded == 0
    assert len(index.notes) == 1 and "another model" in index.notes[0]
    build([notes], tmp_path / "i")
    assert Index(tmp_path / "i", other).notes == []  # without vectors there is nothing to refuse


def test_renewing_reads_only_what_changed(notes: Path, tmp_path: Path) -> None:
    out, meaning = tmp_path / "i", Topics()
    assert build([notes], out, meaning) == Built(sources=3, passages=4, changed=3, removed=0, vectors=4)
    assert meaning.embedded == 12  # and halves of all of them in a trial
    assert build([notes], out, meaning) == Built(sources=3, passages=4, changed=0, removed=0, vectors=4)
    (notes / "fox.md").write_text("The vixen runs.\n", encoding="utf-8")
    (notes / "tea.jsonl").unlink()
    (notes / "new.txt").write_text("A cup.\n", encoding="utf-8")
    assert build([notes], out, meaning) == Built(sources=3, passages=3, changed=2, removed=1, vectors=3)
    assert meaning.embedded == 12 + 2 + 6
    index = Index(out, meaning)
    assert cited(index, "kettle", 1) == ["new.txt:1"]  # by its meaning: the word is gone
    assert cited(Index(out), "barn") == [] and cited(Index(out), "vixen") == ["fox.md:1"]


def test_a_renewed_index_is_as_a_new_one(notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "i"
    build([notes], out, Topics("one"))
    assert build([notes], out, Numbers("two")).vectors == 4  # other vectors of the same passages
    assert not Index(out, Numbers("two")).notes
    build([notes], tmp_path / "fresh", Numbers("two"))
    asked = ("fox", "cup", "whale in the ocean")
    for query in asked:
        renewed, fresh = (Index(path, Numbers("two")).retrieve(query) for path in (out, tmp_path / "fresh"))
        assert renewed == fresh
    assert build([notes], out).vectors == 0
    assert Index(out).retrieve("fox") == Index.build(notes, tmp_path / "words").retrieve("fox")


def test_names_are_relative_to_what_was_named(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(notes)

    def names(*data: str | Path) -> set[str]:
        (tmp_path / "i").unlink(missing_ok=True)
        build(data, tmp_path / "i")
        base = sqlite3.connect(tmp_path / "i")
        return {name for (name,) in base.execute("SELECT name FROM source")}

    assert names(notes) == names(".") == names("sea/..") == {"fox.md", "sea/whales.txt", "tea.jsonl"}
    assert names("sea") == {"whales.txt"}
    assert names("sea", "fox.md") == {"fox.md", "sea/whales.txt"}
    assert names("*.md", "stories:3") == {"fox.md", "stories:3"}
    (tmp_path / "link").symlink_to(notes)
    assert names(tmp_path / "link") == {"fox.md", "sea/whales.txt", "tea.jsonl"}


def test_a_name_that_is_no_text_can_be_indexed(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "notes") + b"/w\xffhale.txt")).write_text("A whale.\n")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert cited(Index.build(tmp_path / "notes", tmp_path / "i"), "whale") == ["w\\xffhale.txt:1"]


def test_a_failure_leaves_the_old_index(notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "i"
    build([notes], out)
    before = out.read_bytes()
    (notes / "bad.txt").write_bytes(b"\xff\x00\x01 no text")
    with pytest.raises(DataError, match=r"bad\.txt"):
        build([notes], out)
    assert out.read_bytes() == before and list(tmp_path.glob(".tmp-*")) == []


def test_an_open_index_answers_while_it_is_renewed(notes: Path, tmp_path: Path) -> None:
    index = Index.build(notes, tmp_path / "i")
    (notes / "fox.md").unlink()
    build([notes], tmp_path / "i")
    assert cited(index, "fox") == ["fox.md:1"] and cited(Index(tmp_path / "i"), "fox") == []


def test_several_threads_may_ask(notes: Path, tmp_path: Path) -> None:
    build([notes], tmp_path / "i", Topics())
    index, found = Index(tmp_path / "i", Topics()), []

    def ask() -> None:
        found.extend(tuple(cited(index, "a fox with tea")) for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and len(set(found)) == 1


def test_only_an_index_is_opened_or_replaced(notes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no index"):
        Index(tmp_path / "none")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE passage (id)")
    other.commit()
    (tmp_path / "words.txt").write_text("words")
    for path in (tmp_path / "other.db", tmp_path / "words.txt", notes):
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(DataError, match="is no index"):
            Index(path)
        with pytest.raises(DataError, match="is no index"):
            build([notes], path)
        assert path.is_dir() or path.read_bytes() == before


@pytest.mark.parametrize(
    "schema", ["CREATE VIEW v AS SELECT 1", "CREATE TRIGGER t AFTER INSERT ON about BEGIN SELECT 1; END"]
)
def test_an_index_holds_nothing_but_its_tables(notes: Path, tmp_path: Path, schema: str) -> None:
    Index.build(notes, tmp_path / "i")
    base = sqlite3.connect(tmp_path / "i")
    base.execute(schema)
    base.commit()
    with pytest.raises(DataError, match="is no index"):
        Index(tmp_path / "i")


def test_a_damaged_index_is_one_sentence(notes: Path, tmp_path: Path) -> None:
    for number in range(200):
        (notes / f"{number}.txt").write_text(f"The fox has {number} cups of tea.\n" * 30, encoding="utf-8")
    build([notes], tmp_path / "i", Topics())
    whole = (tmp_path / "i").read_bytes()
    raised = 0
    for place in range(len(whole) // 40, len(whole), len(whole) // 40):
        (tmp_path / "i").write_bytes(whole[:place] + b"\xa5" * 4096 + whole[place + 4096 :])
        try:
            Index(tmp_path / "i", Topics()).retrieve("fox with tea", 200)
        except DataError as error:
            raised += 1
            assert str(tmp_path / "i") in error.problem and "\n" not in error.problem
    assert raised > 3
    (tmp_path / "i").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        Index(tmp_path / "i", Topics()).retrieve("fox with tea")


@pytest.mark.parametrize("vector", ["x'00'", "x'0000c07f0000c07f0000c07f'", "'words'", "x'00000000'"])
def test_a_vector_that_is_none_is_refused(notes: Path, tmp_path: Path, vector: str) -> None:
    build([notes], tmp_path / "i", Topics())
    base = sqlite3.connect(tmp_path / "i")
    base.execute(f"UPDATE passage SET vector = {vector} WHERE id = 1")
    base.commit()
    with pytest.raises(DataError, match="damaged"):
        Index(tmp_path / "i", Topics()).retrieve("fox")


def test_an_index_can_be_read_where_nothing_can_be_written(notes: Path, tmp_path: Path) -> None:
    place = tmp_path / "closed"
    place.mkdir()
    Index.build(notes, place / "i")
    shutil.copyfile(place / "i", place / "j")
    place.chmod(0o500)
    try:
        assert cited(Index(place / "j"), "fox") == ["fox.md:1"]
        assert sorted(path.name for path in place.iterdir()) == ["i", "j"]
    finally:
        place.chmod(0o700)


def test_text_is_needed(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match="There is no text"):
        build([tmp_path / "empty.txt"], tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_the_index_is_a_public_name() -> None:
    assert hs.Index is Index


def test_what_cannot_be_written_is_no_damage(notes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="i cannot be written: No such file"):
        build([notes], tmp_path / "nowhere" / "i")
    build([notes], tmp_path / "i")
    before = (tmp_path / "i").read_bytes()
    (notes / "long.txt").write_text("word " * 200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(DataError, match="i cannot be written"):
            build([notes], tmp_path / "i")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "i").read_bytes() == before and not list(tmp_path.glob(".tmp*"))


def test_old_leftovers_of_a_killed_process_go(notes: Path, tmp_path: Path) -> None:
    old, new = tmp_path / ".tmp-i-12345678", tmp_path / ".tmp-i-87654321"
    for each in (old, new):
        each.write_text("half")
    os.utime(old, (1, 1))
    build([notes], tmp_path / "i")
    assert not old.exists() and new.exists()


def test_names_that_are_no_text_stay_apart(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)
    for name, word in ((b"\xff.txt", "fox"), (b"\xfe.txt", "whale"), (b"two\nlines.txt", "kettle")):
        Path(os.fsdecode(os.path.join(folder, name))).write_text(f"The {word} is here.")
    index = Index.build(tmp_path / "odd", tmp_path / "i")
    assert cited(index, "fox") == ["\\xff.txt:1"] and cited(index, "whale") == ["\\xfe.txt:1"]
    assert cited(index, "kettle") == ["two lines.txt:1"]
