"""Clean text, and texts that were seen before."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from homespun.learn.dedup import bands, clean, content_key, passages, shared, signature, similarity, unreadable
from homespun.learn.journal import CROWD, Journal, Prepared


def words(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randrange(2, 9))) for _ in range(count)]


def test_clean_text_has_one_form() -> None:
    assert clean("  e\u0301tude \r\n\r\n\r\n\r\nline\x00\x07 \t\nend\n\n") == "\u00e9tude\n\nline\nend"
    assert clean(clean("a  b\n")) == clean("a  b\n") == "a  b"
    assert clean("half \ud800 a pair") == "half ? a pair"
    assert unreadable("ab\ufffd") and not unreadable("a" * 100 + "\ufffd")


def test_white_space_makes_no_other_text() -> None:
    assert content_key("a b\n c") == content_key("a  b c") != content_key("a bc")


def test_texts_nearly_alike_are_found_and_others_are_not() -> None:
    found = 0
    for seed in range(20):
        text = words(300, seed)
        edited = [*text]
        edited[100] = "edited"
        one, near, far = (signature(" ".join(each)) for each in (text, edited, words(300, seed + 1000)))
        assert similarity(one, near) > 0.85 and similarity(one, far) < 0.2
        found += bool(set(bands(one)) & set(bands(near)))
        assert not set(bands(one)) & set(bands(far))
    assert found == 20


def test_the_estimate_is_the_jaccard_similarity() -> None:
    text = words(400, 3)
    half = " ".join(text[:200]), " ".join(text[100:300])  # a third of all shingles in both
    assert abs(similarity(signature(half[0]), signature(half[1])) - 1 / 3) < 0.15


def test_short_and_empty_texts_have_signatures() -> None:
    assert similarity(signature("a"), signature("a")) == 1
    assert signature("").shape == signature("some longer text").shape


def test_forms_that_are_filled_in_do_not_crowd_the_index(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    source = journal.source("forms", "forms")
    form = " ".join(words(40, 0))
    texts = [f"{form} {' '.join(words(9, 1 + number))}" for number in range(8 * CROWD)]
    other = words(300, 7)
    texts += [" ".join(other), " ".join([*other[:-1], "edited"])]
    journal.take(source, "", [Prepared.of(text, 1) for text in texts], None)
    assert max(row[0] for row in journal.rows("SELECT count(*) FROM bands GROUP BY band")) == CROWD
    states = [row[0] for row in journal.rows("SELECT state FROM items ORDER BY id")]
    assert states.count("waiting") > CROWD and states[-2:] == ["waiting", "alike"]
    journal.close()


def test_passages_are_found_wherever_a_text_was_cut() -> None:
    text = words(400, 3)
    held, other = passages(" ".join(text[:200])), passages(" ".join(words(200, 4)))
    assert shared(passages(" ".join(text[150:250]).upper()), held) == pytest.approx(0.5, abs=0.1)
    assert shared(other, held) == 0 and shared(other, other) == 1 and shared(other, other[:0]) == 0
