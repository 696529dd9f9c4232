"""Figures of embeddings against values by hand, and the files that they are measured on."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from homespun.errors import DataError
from homespun.evaluate.embeddings import Retrieval, Similarity, ranking_figures, retrieval, similarity, spearman
from homespun.evaluate.lexical import bag_of_words, bm25
from homespun.evaluate.tasks import read_retrieval, read_similarity


def test_figures_of_a_ranking_by_hand():
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    found = ranking_figures(scores, [{0}, {1, 2}])  # at rank 1; at ranks 2 and 3
    assert found["recall@1"] == 0.5 and found["recall@10"] == 1.0
    assert found["mrr"] == pytest.approx((1 + 1 / 2) / 2)
    second = (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert found["ndcg@10"] == pytest.approx((1 + second) / 2)


def test_recall_at_10_ends_at_rank_10():
    scores = -np.arange(12.0)[None]
    assert ranking_figures(scores, [{9}])["recall@10"] == 1.0
    beyond = ranking_figures(scores, [{10}])
    assert beyond["recall@10"] == 0.0 and beyond["ndcg@10"] == 0.0 and beyond["mrr"] == pytest.approx(1 / 11)


def test_a_tie_is_no_success():
    for scores in (np.zeros((1, 50)), np.full((1, 50), np.nan)):
        found = ranking_figures(scores, [{0}])
        assert found["recall@10"] == 0.0 and found["mrr"] == pytest.approx(1 / 50)


def test_spearman_by_hand():
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 1000])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1.0)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman(np.ones(3), np.arange(3.0)))


def test_bm25_by_hand():
    passages = ["the cat sat", "the dog", "the the the"]
    (scores,) = bm25(["cat"], passages)
    rarity = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    assert scores[0] == pytest.approx(rarity * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / (8 / 3)))) and not scores[1:].any()
    common, rare = bm25(["the", "dog"], passages)
    assert 0 < common[1] < rare[1] and common[2] > common[0]  # more of a word counts more, a rare one most
    assert next(bm25(["cat cat"], passages))[0] == pytest.approx(2 * scores[0])


def test_bags_of_words_are_cosines_of_counts():
    scores = [*bag_of_words(["A b, b!", "..."], ["a B", "c", "a b b"])]
    assert scores[0] == pytest.approx([3 / math.sqrt(5 * 2), 0, 1]) and scores[1].tolist() == [0, 0, 0]


def embed(texts) -> np.ndarray:
    """Directions by the first letter: a and b alike."""
    angles = np.array([{"a": 0.0, "b": 0.2, "c": 1.5, "d": 1.6}[text[0]] for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_a_model_stands_beside_words():
    found = retrieval(Retrieval(["a one", "c two"], ["b three", "d four"], [{0}, {1}]), embed)
    assert list(found) == ["model", "bm25", "bag of words"]
    assert found["model"]["recall@1"] == 1.0 and found["bm25"]["recall@1"] == 0.0
    pairs = Similarity(["a x", "a y", "c z"], ["b x", "d y", "d q"], np.array([5.0, 0.0, 4.9]), ["s", "s", "t"])
    found = similarity(pairs, embed)
    assert list(found) == ["model", "bag of words"] and found["model"]["spearman"] > found["bag of words"]["spearman"]


def test_questions_and_pairs_are_read_from_files(tmp_path: Path):
    lines = [{"query": "q", "passage": "p"}, {"question": "r", "answer": "s"}, {"query": "q", "passage": "s"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read_retrieval(tmp_path / "pairs.jsonl") == Retrieval(["q", "r"], ["p", "s"], [{0, 1}, {1}])
    rows = 'sentence1\tsentence2\tscore\tsource\nA "b\tC\t3.5\tnews\nD\tE\t1\tnews\n'
    (tmp_path / "pairs.tsv").write_text(rows, encoding="utf-8")
    read = read_similarity(tmp_path / "pairs.tsv")
    assert (read.first, read.second, read.scores.tolist(), read.sets) == (
        ['A "b', "D"], ["C", "E"], [3.5, 1.0], ["news", "news"],
    )  # fmt: skip


def test_beir_folders_are_read(tmp_path: Path):
    passages = [{"_id": "1", "title": "T", "text": "x"}, {"_id": "2", "title": "", "text": "y"}]
    for name, rows in (("corpus", passages), ("queries", [{"_id": "a", "text": "ask"}])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    judged = tmp_path / "qrels.tsv"
    judged.write_text("query-id\tcorpus-id\tscore\na\t2\t1\na\t1\t0\n", encoding="utf-8")
    assert read_retrieval(tmp_path) == Retrieval(["ask"], ["T\nx", "y"], [{1}])
    (tmp_path / "qrels").mkdir()
    judged.rename(tmp_path / "qrels" / "test.tsv")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "title": "T", "text": ""}\n{"_id": "2", "text": "y"}\n')
    assert read_retrieval(tmp_path) == Retrieval(["ask"], ["T", "y"], [{1}])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "", "no question"),
        ("a.jsonl", '{"query": "q"}', "line 1"),
        ("a.jsonl", '{"query": "q", "passage": "p"}\n[1]', "line 2"),
        ("a.jsonl", '{"query": 1, "passage": "p"}', "query"),
        ("b.tsv", "sentence1\tsentence2\na\tb\nc\td\n", "score"),
        ("b.tsv", "sentence1\tsentence2\tscore\na\tb\tx\nc\td\t1\n", "score"),
        ("b.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\nc\td\t1\n", "line 2, has no score"),
        ("b.tsv", "sentence1\tsentence2\tscore\na\tb\t1\n\tb\t1\n", "line 3, has no text under 'sentence1'"),
        ("b.tsv", "sentence1\tsentence2\tscore\na\tb\nc\td\t1\n", "line 2, has no score"),
        ("b.jsonl", '{"sentence1": null, "sentence2": "b", "score": 1}\n' * 2, "line 1, has no text"),
        ("b.jsonl", '{"sentence1": "a", "sentence2": "b", "score": true}\n' * 2, "line 1, has no score"),
        ("b.tsv", "sentence1\tsentence2\tscore\na\tb\t1\n", "two pairs"),
        ("b.csv", "", "two pairs"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path: Path, name: str, text: str, said: str):
    (tmp_path / name).write_text(text, encoding="utf-8")
    reader = read_retrieval if name == "a.jsonl" else read_similarity
    with pytest.raises(DataError, match=said):
        reader(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        reader(tmp_path / "absent.jsonl")


def test_a_field_of_a_table_may_be_long_and_have_lines(tmp_path: Path):
    long = "word " * 40_000
    (tmp_path / "a.csv").write_text(f'sentence1,sentence2,score\n{long},b,1\n"two\nlines",d,2\n', encoding="utf-8")
    assert read_similarity(tmp_path / "a.csv").first == [long, "two\nlines"]


def test_a_set_in_which_people_say_nothing_is_not_among_the_mean():
    pairs = Similarity(["a", "a", "a"], ["a", "b", "c"], np.array([2.0, 1.0, 3.0]), ["s", "s", "alone"])
    assert similarity(pairs)["bag of words"]["mean of sets"] == pytest.approx(1.0)
    assert np.isnan(spearman(np.array([1.0, np.nan, 3.0]), np.array([1.0, 2.0, 3.0])))


def test_words_of_many_texts_need_no_table_of_all_words():
    questions, passages = [f"q{number}" for number in range(300)], [f"w{number} x{number}" for number in range(3000)]
    tracemalloc.start()
    retrieval(Retrieval(questions, passages, [{0} for _ in questions]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # a table of passages and words alone has 72 MB


def test_the_shared_tasks_are_read(shared: Path):
    task = read_retrieval(shared / "retrieval_boolq_dev")
    assert len(task.passages) >= 490 and len(task.questions) >= 480
    pairs = read_similarity(shared / "sts" / "sts12-14.tsv")
    assert len(set(pairs.sets)) > 5 and pairs.scores.min() >= 0 and pairs.scores.max() == 5
