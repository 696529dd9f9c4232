"""Decoding and cutting: every character once, wherever the blocks end, and errors that name the offset."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homespun.data import text
from homespun.data.text import cut, cut_marked, decode, lines
from homespun.errors import DataError

TEXTS = st.text(alphabet="ab \n\t\r\u2028é漢😀", max_size=300)


def blocks(whole: str, size: int) -> list[str]:
    return [whole[start : start + size] for start in range(0, len(whole), size)]


@given(whole=TEXTS, piece=st.integers(1, 40), size=st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_cutting_keeps_every_character_and_does_not_depend_on_the_blocks(whole: str, piece: int, size: int) -> None:
    pieces = list(cut(blocks(whole, size), piece))
    assert "".join(pieces) == whole
    assert pieces == list(cut([whole], piece))
    assert all(0 < len(part) <= 4 * piece for part in pieces)


def test_text_is_cut_at_blank_lines_before_anything_else() -> None:
    paragraphs = [f"A line of {n}.\nAnother line of {n}.\n\n" for n in range(100)]
    pieces = list(cut(["".join(paragraphs)], 200))
    assert len(pieces) > 10
    assert all(part.startswith("A line of") and part.endswith(".\n\n") and len(part) >= 200 for part in pieces[:-1])


def test_a_giant_line_is_cut_at_spaces_and_one_without_spaces_anywhere() -> None:
    words = "word " * 10_000
    pieces = list(cut(blocks(words, 999), 100))
    assert all(part.endswith(" ") and len(part) <= 400 for part in pieces) and "".join(pieces) == words
    assert max(map(len, cut(blocks("x" * 10_000, 999), 100))) == 400


@given(stories=st.lists(st.text(alphabet="ab \n", min_size=1, max_size=30), max_size=8), size=st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_end_of_text_lines_separate_documents(stories: list[str], size: int) -> None:
    dump = "\n<|endoftext|>\n".join(stories)
    expected = [story.strip("\n") for story in stories if story.strip("\n")]
    assert list(cut_marked(blocks(dump, size))) == expected


def test_an_endless_document_between_marks_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONGEST", 1000)
    pieces = list(cut_marked(blocks("word " * 2000, 300)))
    assert max(map(len, pieces)) <= 1300 and "".join(pieces) == "word " * 2000


@given(whole=TEXTS.map(lambda t: t.replace("\r", "")), size=st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_only_a_newline_ends_a_line(whole: str, size: int) -> None:
    found = list(lines(blocks(whole, size), "it"))
    assert "".join(found) == whole
    assert all("\n" not in line[:-1] for line in found)


def test_a_row_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "ROW", 100)
    with pytest.raises(DataError, match="a row of more than 100 characters"):
        list(lines(["x" * 60, "y" * 60], "rows.jsonl"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_each_encoding_with_its_mark_gives_the_text(encoding: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK", max(block, 4))  # the mark is looked for in the first block
    whole = "Grüße, 漢字 😀\nline\u2028two\n" * 3
    assert "".join(decode(io.BytesIO(whole.encode(encoding)), "it")) == whole


@pytest.mark.parametrize("mark, encoding", [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")])
def test_utf16_of_either_byte_order_is_read(mark: bytes, encoding: str) -> None:
    assert "".join(decode(io.BytesIO(mark + "Zwölf\n".encode(encoding)), "it")) == "Zwölf\n"


@pytest.mark.parametrize("block", [4, 5, 6, 1 << 20])
def test_windows_line_ends_become_newlines_and_lone_returns_stay(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK", block)
    assert "".join(decode(io.BytesIO(b"one\r\ntwo\rthree\r\r\nfour\r"), "it")) == "one\ntwo\rthree\r\nfour\r"


@pytest.mark.parametrize("block", [4, 64, 1 << 20])
@pytest.mark.parametrize("mark, place", [(b"", 100), (b"\xef\xbb\xbf", 103)])
def test_an_undecodable_byte_is_named_with_its_offset(
    block: int, mark: bytes, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK", block)
    data = mark + "é".encode() * 50 + b"\xe9 caf\xe9" * 20
    with pytest.raises(DataError, match=f"old.txt is not UTF-8 text: the byte 0xe9 at offset {place} "):
        list(decode(io.BytesIO(data), "old.txt"))


def test_text_cut_inside_its_last_character_is_named() -> None:
    with pytest.raises(DataError, match="offset 2 "):
        list(decode(io.BytesIO("ab漢".encode()[:-1]), "it"))


def test_binary_files_are_called_binary() -> None:
    with pytest.raises(DataError, match="full of zero bytes, the first at offset 1"):
        list(decode(io.BytesIO("UTF-16 without mark".encode("utf-16-le")), "it"))
    with pytest.raises(DataError, match="is a binary file: the byte 0x89 at offset 0"):
        list(decode(io.BytesIO(b"\x89PNG\r\n\x1a\n\x00" + b"data" * 50), "picture.txt"))


def test_nothing_gives_no_text() -> None:
    assert list(decode(io.BytesIO(b""), "it")) == []
    assert list(decode(io.BytesIO(b"\xef\xbb\xbf"), "it")) == []
    assert list(cut([], 10)) == list(cut([""], 10)) == list(cut_marked([])) == list(lines([], "it")) == []
