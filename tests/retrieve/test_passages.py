"""Passages: how long, where they are cut, and which place they are given."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from homespun.data.sources import File, Stories
from homespun.retrieve.passages import LETTERS, MOST, passages, passages_of


def words(count: int, word: str = "word") -> str:
    return " ".join([word] * (count - 1) + [f"{word}."])


def lengths(text: str) -> list[int]:
    return [len(passage.split()) for _, passage in passages(text)]


def test_a_passage_ends_with_a_paragraph_after_sixty_words() -> None:
    assert lengths("\n\n".join([words(40), words(30), words(10)])) == [70, 10]
    assert lengths("\n\n".join([words(40), words(90)])) == [40, 90]  # together they would be too long
    assert lengths("\n\n".join([words(30)] * 3)) == [60, 30]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    assert lengths(" ".join([words(50)] * 5)) == [100, 100, 50]


def test_a_long_sentence_is_cut_between_lines_or_else_words() -> None:
    assert lengths("\n".join([words(70).rstrip(".")] * 3)) == [70, 70, 70]
    assert lengths(words(300)) == [120, 120, 60]


def test_text_without_spaces_is_cut_by_its_letters() -> None:
    found = [passage for _, passage in passages("鯨" * 3000)]
    assert "".join(found) == "鯨" * 3000
    assert max(map(len, found)) == MOST * LETTERS


@given(st.text(alphabet="ab .!\n?\u3002\t", max_size=4000))
def test_nothing_is_lost_and_nothing_is_too_long(text: str) -> None:
    found = list(passages(text))
    assert "".join("".join(passage.split()) for _, passage in found) == "".join(text.split())
    for offset, passage in found:
        assert text[offset : offset + len(passage)] == passage
        assert 0 < len(passage.split()) <= MOST


def test_the_place_in_running_text_is_the_line(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    blocks = [f"Begin {number}.\n{words(80)}\n\n\n" for number in range(400)]  # more than is read at a time
    path.write_text("\n" + "".join(blocks), encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines()
    found = list(passages_of(File(path, "long.txt")))
    assert len(found) == 400
    for number, (place, text) in enumerate(found):
        assert text.startswith(f"Begin {number}.\n") and lines[int(place) - 1] == f"Begin {number}."


def test_a_passage_never_spans_two_marked_documents(tmp_path: Path) -> None:
    path = tmp_path / "marked.txt"
    path.write_text("One.\n<|endoftext|>\nTwo.\n<|endoftext|>\n", encoding="utf-8")
    assert list(passages_of(File(path, "marked.txt"))) == [("1", "One."), ("3", "Two.")]


def test_the_place_in_rows_is_the_number_of_the_document(notes: Path) -> None:
    found = list(passages_of(File(notes / "tea.jsonl", "tea.jsonl")))
    assert [place for place, _ in found] == ["1", "2"]
    assert "What is in the cup?" in found[1][1] and found[1][1].endswith("Tea.")
    assert [place for place, _ in passages_of(Stories(2))][-1] == "2"
