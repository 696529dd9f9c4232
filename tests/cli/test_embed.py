"""`homespun embed` and `homespun evaluate`: the same figures by every way of asking."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import homespun as hs
from tests.cli.conftest import Command


def test_vectors_are_the_same_in_every_form(
    homespun: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a red fox", "the crimson vixen"]
    expected = hs.load(trained).embed(texts)
    plain = homespun("embed", trained, *texts)
    assert plain.code == 0
    np.testing.assert_allclose([list(map(float, line.split())) for line in plain.out.splitlines()], expected, atol=1e-5)
    (tmp_path / "texts.txt").write_text("a red fox\n\nthe crimson vixen\n", encoding="utf-8")
    rows = [
        json.loads(line)
        for line in homespun("embed", trained, "--file", tmp_path / "texts.txt", "--json").out.splitlines()
    ]
    assert [row["text"] for row in rows] == texts
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], dtype=np.float32), expected)
    for words in ((), ("-",)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a red fox\r\nthe crimson vixen\n")))
        assert homespun("embed", trained, *words, "--npy", tmp_path / "v.npy").out == ""
        np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)


def test_what_cannot_be_embedded_is_said(
    homespun: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    for words, said in (
        ((), "no text to embed"),
        (("a", "--json", "--npy", tmp_path / "v.npy"), "--json and --npy"),
        (("a", "--npy", tmp_path / "absent" / "v.npy"), "cannot be written"),
        (("--file", tmp_path / "absent.txt"), "cannot be read"),
        (("",), "Text 1 is empty"),
    ):
        ended = homespun("embed", trained, *words)
        assert ended.code == 2 and said in ended.err, said


def test_text_is_measured_as_in_training(homespun: Command, trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "valid.txt"  # a name that training would take for a side of the split
    text.write_text("Once upon a time there was a fox.\n" * 20, encoding="utf-8")
    ended = homespun("evaluate", trained, text, "--json")
    found = json.loads(ended.out)["text"]
    run = hs.load(trained)
    ids = run.tokenizer.encode(text.read_text(encoding="utf-8")) + [run.tokenizer.end]
    assert found["tokens"] == len(ids) - 1 and found["bytes"] == len(text.read_bytes()) - 1
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * found["tokens"] / np.log(2) / found["bytes"])
    assert found == run.evaluate([text])["text"]
    assert f"{found['bits_per_byte']:.3f}" in homespun("evaluate", trained, text).out


def test_vectors_are_measured_beside_words(homespun: Command, trained: Path, tmp_path: Path) -> None:
    questions, pairs = tmp_path / "questions.jsonl", tmp_path / "pairs.tsv"
    questions.write_text('{"query": "red fox", "passage": "a red fox"}\n{"query": "b", "passage": "blue"}\n')
    pairs.write_text("sentence1\tsentence2\tscore\na fox\ta fox\t5\na fox\tno\t1\n")
    words = ("evaluate", trained, "--retrieval", questions, "--similarity", pairs)
    found = json.loads(homespun(*words, "--json").out)
    assert list(found) == [str(questions), str(pairs)]
    assert list(found[str(questions)]) == ["model", "bm25", "bag of words"]
    assert found[str(pairs)]["bag of words"]["spearman"] == pytest.approx(1.0)
    table = homespun(*words)
    assert table.code == 0 and "recall@10" in table.out and "bag of words" in table.out
    pairs.write_text("sentence1\tsentence2\tscore\na\tb\t5\nc\td\t1\n")  # to words, all are equally unlike
    found = json.loads(homespun("evaluate", trained, "--similarity", pairs, "--json").out)
    assert found[str(pairs)]["bag of words"] == {"spearman": None, "mean of sets": None}
    nothing = homespun("evaluate", trained)
    assert nothing.code == 2 and "nothing to evaluate" in nothing.err
