"""Reads what embeddings are tried on: questions with passages, and pairs of sentences with scores."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from homespun.data.text import ROW
from homespun.errors import DataError
from homespun.evaluate.embeddings import Retrieval, Similarity

_QUESTION, _PASSAGE = ("query", "question"), ("passage", "answer", "text")


def read_retrieval(place: str | Path) -> Retrieval:
    """From a folder as BEIR has them (corpus.jsonl, queries.jsonl, qrels.tsv or qrels/test.tsv), or from JSON lines
    with `query` and `passage`; equal passages, and equal questions, are one. Raises `DataError` for others."""
    path = Path(place)
    pairs = list(_beir(path) if path.is_dir() else _pairs(path))
    if not pairs:
        raise DataError(f"{path} holds no question", 'Give lines such as {"query": "...", "passage": "..."}.')
    passages = [] if not path.is_dir() else [text for _, text in _texts(path / "corpus.jsonl")]
    number = {text: index for index, text in enumerate(dict.fromkeys([*passages, *(right for _, right in pairs)]))}
    answers: dict[str, set[int]] = {}
    for question, passage in pairs:
        answers.setdefault(question, set()).add(number[passage])
    return Retrieval(list(answers), list(number), list(answers.values()))


def read_similarity(place: str | Path) -> Similarity:
    """From rows with `sentence1`, `sentence2` and `score` (a larger one: more alike), as JSON lines or, with a header,
    separated by tabs or commas; `source` names the set of a row. Raises `DataError` for anything else."""
    path = Path(place)
    rows = list(_lines(path) if path.suffix.lower() in (".jsonl", ".ndjson", ".json") else _table(path))
    if len(rows) < 2:
        raise DataError(f"{path} holds no two pairs of sentences", "Give rows with sentence1, sentence2 and score.")
    first, second = ([_one_of(row, (name,), path, line) for line, row in rows] for name in ("sentence1", "sentence2"))
    scores = np.array([_score(row, path, line) for line, row in rows])
    return Similarity(first, second, scores, [str(row.get("source") or "all") for _, row in rows])


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for number, row in _lines(path):
        yield _one_of(row, _QUESTION, path, number), _one_of(row, _PASSAGE, path, number)


def _beir(folder: Path) -> Iterator[tuple[str, str]]:
    passages, questions = dict(_texts(folder / "corpus.jsonl")), dict(_texts(folder / "queries.jsonl"))
    judged = folder / "qrels.tsv"
    if not judged.exists():
        judged = folder / "qrels" / "test.tsv"
    for number, row in _table(judged):
        try:
            if float(row["score"]) > 0:
                yield questions[row["query-id"]], passages[row["corpus-id"]]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{judged}, line {number}, is not valid: {error}", "Mend it.") from None


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    for number, row in _lines(path):
        told = [str(row[name]) for name in ("title", "text") if isinstance(row.get(name), str) and row[name].strip()]
        yield _one_of(row, ("_id",), path, number), "\n".join(told) or _one_of(row, ("text",), path, number)


def _one_of(row: dict[str, Any], names: tuple[str, ...], path: Path, number: int) -> str:
    for name in names:
        if isinstance(row.get(name), str) and row[name].strip():
            return str(row[name])
    raise DataError(f"{path}, line {number}, has no text under {names[0]!r}", "Give each line one.")


def _score(row: dict[str, Any], path: Path, number: int) -> float:
    found = row.get("score")
    try:
        score = math.nan if found is None or isinstance(found, bool) else float(found)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{path}, line {number}, has no score: {found!r:.60}", "Give each line a number.")
    return score


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}, is no JSON object", "Write one on each line.")
        yield number, row


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = io.StringIO(_read(path))
    csv.field_size_limit(ROW)
    quoted = path.suffix.lower() == ".csv"
    table = csv.DictReader(lines) if quoted else csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        for row in table:
            yield table.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}, is no row: {error}", "Mend that line.") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "Give a file of UTF-8 text.") from None
