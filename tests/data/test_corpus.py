"""A prepared corpus: split by content, verified, made once, and never half made."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homespun.config import parse
from homespun.data import corpus as corpus_file
from homespun.data import shards
from homespun.data.corpus import Corpus, DataConfig, cache_folder, is_corpus, prepare
from homespun.data.shards import Survey, content_hash
from homespun.data.vocabulary import Bpe, Bytes, Chars
from homespun.errors import ConfigError, DataError

STORY = "There was a {} who lived near the {} sea.\n\nIt was kind, said “{}”.\n\n"


def passage(number: int) -> str:
    return "".join(STORY.format(number * 7 + n, "wide" if n % 2 else "small", n) for n in range(4))


def rows(folder: Path, numbers: list[int], name: str = "rows.jsonl") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_text("".join(json.dumps({"text": passage(n)}) + "\n" for n in numbers), encoding="utf-8")
    return path


def texts(corpus: Corpus, side: str) -> list[str]:
    """The documents of a side, decoded."""
    tokens, end = getattr(corpus, side).tokens, corpus.tokenizer.end
    assert tokens[-1] == end if len(tokens) else True
    places = np.flatnonzero(tokens == end)
    starts = [0, *(places[:-1] + 1)] if len(places) else []
    return [corpus.tokenizer.decode(tokens[a:b].tolist()) for a, b in zip(starts, places, strict=True)]


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMESPUN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("tokenizer", [Bytes(), Chars(), Bpe(size=300)])
def test_every_document_is_on_one_side_and_comes_back_exactly(tokenizer: Any, tmp_path: Path) -> None:
    source = rows(tmp_path, list(range(60)))
    corpus = prepare([source], tokenizer, DataConfig(validation_fraction=0.2))
    found = texts(corpus, "train") + texts(corpus, "valid")
    assert sorted(found) == sorted(passage(n) for n in range(60))
    assert corpus.train.tokens.dtype == np.uint16 and isinstance(corpus.train.tokens, np.memmap)
    for side in ("train", "valid"):
        split, held = getattr(corpus, side), texts(corpus, side)
        assert split.documents == len(held) and split.count == len(split.tokens)
        assert split.characters == sum(map(len, held))
        assert split.bytes == sum(len(text.encode()) for text in held)
        assert corpus.tokenizer.token_bytes()[split.tokens].sum() == split.bytes
    assert 4 <= corpus.valid.documents <= 22


def test_a_real_text_is_split_between_documents(shared: Path) -> None:
    corpus = prepare([shared / "tinyshakespeare.txt"], Bytes(), DataConfig())
    whole = (shared / "tinyshakespeare.txt").read_text(encoding="utf-8")
    train, valid = texts(corpus, "train"), texts(corpus, "valid")
    assert sorted(train + valid, key=whole.index) and "".join(sorted(train + valid, key=whole.index)) == whole
    assert 0.04 < corpus.valid.bytes / len(whole.encode()) < 0.2


def test_a_documents_side_depends_on_its_content_alone(tmp_path: Path) -> None:
    some = prepare([rows(tmp_path / "a", list(range(40)))], Bytes(), DataConfig())
    more = prepare([rows(tmp_path / "b", [*range(90, 60, -1), *range(40)])], Bytes(), DataConfig())
    renamed = prepare([rows(tmp_path / "c", list(range(39, -1, -1)), "other.jsonl")], Bytes(), DataConfig())
    assert set(texts(some, "valid")) == set(texts(renamed, "valid"))
    assert set(texts(some, "valid")) <= set(texts(more, "valid"))
    assert set(texts(some, "train")) <= set(texts(more, "train"))


def test_equal_documents_fall_on_the_same_side(tmp_path: Path) -> None:
    corpus = prepare([rows(tmp_path, [*range(30), *range(30)])], Bytes(), DataConfig(validation_fraction=0.3))
    assert corpus.valid.documents and not set(texts(corpus, "train")) & set(texts(corpus, "valid"))


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=40), fraction=st.sampled_from([0.0, 0.001, 0.1, 0.5]))
@settings(max_examples=100, deadline=None)
def test_two_different_documents_give_two_sides_unless_one_is_nearly_all(sizes: list[int], fraction: float) -> None:
    found = Survey(1, declared=False)
    for number, size in enumerate(sizes):
        found.hashes.append(content_hash([f"{number}"]))
        found.sizes.append(size)
        found.bytes += size
    valid = [size for size, hashed in zip(sizes, found.hashes, strict=True) if hashed < found.threshold(fraction)]
    assert len(valid) < len(sizes)
    lowest = min(zip(found.hashes, sizes, strict=True))[1]
    assert bool(valid) == (len(sizes) > 1 and fraction > 0 and lowest <= 0.75 * sum(sizes))
    assert len(valid) <= 1 or sum(valid) <= sum(sizes) / 2


@pytest.mark.parametrize("line", ["again and again", "so it goes", "la la la"])
def test_a_line_repeated_a_thousand_times_is_trained_on(tmp_path: Path, line: str) -> None:
    (tmp_path / "text.txt").write_text((line + "\n\n") * 3000 + "And something else, once.\n\n")
    corpus = prepare([tmp_path / "text.txt"], Bytes(), DataConfig())
    assert corpus.train.bytes > 0.9 * 3000 * len(line)


def test_validation_of_a_huge_corpus_is_bounded() -> None:
    found = Survey(1, declared=False)
    for number in range(20_000):
        found.hashes.append(content_hash([f"{number}"]))
        found.sizes.append(100_000)
        found.bytes += 100_000
    threshold = found.threshold(0.1)
    valid = sum(hashed < threshold for hashed in found.hashes)
    assert shards.VALIDATION / 4 < valid * 100_000 < 2 * shards.VALIDATION


def test_even_a_short_text_has_a_validation_side(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("".join(passage(n) for n in range(4)), encoding="utf-8")
    corpus = prepare([tmp_path / "short.txt"], Chars(), DataConfig())
    assert corpus.valid.count and corpus.train.count > corpus.valid.count
    (tmp_path / "one.txt").write_text("Hi there.")
    corpus = prepare([tmp_path / "one.txt"], Chars(), DataConfig())
    assert corpus.valid.count == 0 and "nothing is left for validation" in corpus.notes[-1]


def test_train_and_valid_files_are_taken_as_they_are(tmp_path: Path) -> None:
    rows(tmp_path, list(range(5)), "train.jsonl")
    rows(tmp_path, [2, 77], "valid.jsonl")
    corpus = prepare([tmp_path, "stories:3"], Bytes(), DataConfig(validation_fraction=0.0))
    assert texts(corpus, "valid") == [passage(2), passage(77)]
    assert corpus.train.documents == 8
    assert "by the names of the files" in corpus.notes[-1]


def test_chats_are_written_with_their_special_tokens_and_spellings_stay_text(tmp_path: Path) -> None:
    rows_of = [{"prompt": "Say <|endoftext|>", "completion": "<|endoftext|>"}, {"text": "plain <|user|>"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows_of)))
    (tmp_path / "valid.jsonl").write_text(json.dumps(rows_of[0]))
    corpus = prepare([tmp_path], Bytes(), DataConfig())
    special, valid = corpus.tokenizer.special, corpus.valid.tokens.tolist()
    assert valid[0] == special["<|user|>"] and valid[-1] == special["<|endoftext|>"]
    assert valid.count(special["<|assistant|>"]) == 1 and valid.count(special["<|endoftext|>"]) == 1
    assert texts(corpus, "train")[1] == "plain <|user|>"


def test_a_second_call_uses_the_first_ones_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare([rows(tmp_path / "a", list(range(20)))], Bpe(size=300), DataConfig())
    moved = rows(tmp_path / "b", list(range(20)), "moved.jsonl")
    monkeypatch.setattr(corpus_file, "write", lambda *_: pytest.fail("encoded again"))
    said: list[str] = []
    second = prepare([moved], Bpe(size=300), DataConfig(), say=said.append)
    assert second.folder == first.folder and second.identity == first.identity
    assert "used again" in said[0]


@pytest.mark.parametrize("change", ["text", "tokenizer", "fraction", "suffix"])
def test_anything_that_matters_makes_another_corpus(change: str, tmp_path: Path) -> None:
    first = prepare([rows(tmp_path / "a", list(range(20)))], Bpe(size=300), DataConfig())
    source = rows(tmp_path / "b", list(range(21 if change == "text" else 20)))
    if change == "suffix":
        source = source.rename(source.with_suffix(".txt"))
    size = 301 if change == "tokenizer" else 300
    fraction = 0.2 if change == "fraction" else 0.1
    second = prepare([source], Bpe(size=size), DataConfig(validation_fraction=fraction))
    assert second.folder != first.folder


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    source = rows(tmp_path, list(range(20)))
    one = prepare([source], Bpe(size=400), DataConfig(), out=tmp_path / "one")
    two = prepare([source], Bpe(size=400), DataConfig(), out=tmp_path / "two")
    assert one.identity == two.identity


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flip": damage_bit,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "grow": lambda path: path.write_bytes(path.read_bytes() + b"xx"),
    "delete": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "tokenizer.json", "manifest.json"])
def test_a_damaged_cache_is_made_again_with_a_notice(name: str, damage: str, tmp_path: Path) -> None:
    source = rows(tmp_path, list(range(20)))
    first = prepare([source], Bytes(), DataConfig())
    if name == "manifest.json" and damage in ("flip", "grow", "cut"):
        (first.folder / name).write_text((first.folder / name).read_text()[:-20])
    else:
        DAMAGES[damage](first.folder / name)
    said: list[str] = []
    again = prepare([source], Bytes(), DataConfig(), say=said.append)
    assert "It is made again." in said[0]
    assert again.identity == first.identity
    again.verify()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(damage: str, tmp_path: Path) -> None:
    prepare([rows(tmp_path, list(range(20)))], Bytes(), DataConfig(), out=tmp_path / "out")
    DAMAGES[damage](tmp_path / "out" / "train.bin")
    with pytest.raises(DataError, match=r"damaged: train.bin"):
        Corpus.open(tmp_path / "out").verify()
    if damage != "flip":  # sizes are checked before anything is mapped
        with pytest.raises(DataError, match=r"train.bin has [\d,]+ bytes instead of"):
            Corpus.open(tmp_path / "out")


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda m: m | {"version": 99}, "format 99"),
        (lambda m: m | {"format": "other"}, "no prepared corpus"),
        (lambda m: m | {"type": "object"}, "contradicts itself"),
        (lambda m: m | {"type": "uint32"}, "contradicts itself"),
        (lambda m: {k: v for k, v in m.items() if k != "files"}, "incomplete"),
        (lambda m: [m], "no prepared corpus"),
    ],
)
def test_a_manifest_is_checked_before_anything_is_mapped(edit: Any, words: str, tmp_path: Path) -> None:
    prepare([rows(tmp_path, list(range(20)))], Bytes(), DataConfig(), out=tmp_path / "out")
    place = tmp_path / "out" / "manifest.json"
    place.write_text(json.dumps(edit(json.loads(place.read_text()))))
    with pytest.raises(DataError, match=words):
        Corpus.open(tmp_path / "out")


def test_a_prepared_folder_is_a_source(tmp_path: Path) -> None:
    source = rows(tmp_path, list(range(20)))
    made = prepare([source], Chars(), DataConfig(), out=tmp_path / "out")
    assert is_corpus(made.folder) and not is_corpus(tmp_path)
    said: list[str] = []
    given = prepare([tmp_path / "out"], Bytes(), DataConfig(), say=said.append)
    assert given.identity == made.identity and "its own vocabulary" in said[0]
    with pytest.raises(DataError, match="Give it alone"):
        prepare([tmp_path / "out", source], Bytes(), DataConfig())


def test_a_named_folder_is_never_overwritten(tmp_path: Path) -> None:
    source = rows(tmp_path, list(range(20)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(DataError, match="no prepared corpus"):
        prepare([source], Bytes(), DataConfig(), out=tmp_path / "mine")
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    made = prepare([source], Bytes(), DataConfig(), out=tmp_path / "empty")
    assert prepare([source], Bytes(), DataConfig(), out=tmp_path / "empty").identity == made.identity
    with pytest.raises(DataError, match="holds another corpus"):
        prepare([source], Chars(), DataConfig(), out=tmp_path / "empty")
    assert not cache_folder().exists()


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(DataError, match=r"a.jsonl, line 2"):
        prepare([tmp_path / "a.jsonl"], Bytes(), DataConfig())
    assert list(cache_folder().iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(passage(n) for n in range(2000)), encoding="utf-8")
    code = (
        "import resource, sys; from homespun.data.corpus import *; from homespun.data.vocabulary import Bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))\n"
        "prepare([sys.argv[1]], Bytes(), DataConfig())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.txt")]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert "DataError: The disk is full at" in done.stderr and "HOMESPUN_CACHE" in done.stderr
    assert list(cache_folder().iterdir()) == []


def test_a_race_of_two_makers_leaves_one_good_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = rows(tmp_path, list(range(20)))
    finish = corpus_file.save_manifest

    def second_maker_is_faster(folder: Path, manifest: dict[str, Any]) -> None:
        finish(folder, manifest)
        shutil.copytree(folder, cache_folder() / manifest["key"][:32])

    monkeypatch.setattr(corpus_file, "save_manifest", second_maker_is_faster)
    prepare([source], Bytes(), DataConfig()).verify()
    assert len(list(cache_folder().iterdir())) == 1


def test_standard_input_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "".join(passage(n) for n in range(50))
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
        corpus = prepare(["-"], Bytes(), DataConfig())
    assert corpus.train.characters + corpus.valid.characters == len(data)
    assert len(list(cache_folder().iterdir())) == 1


@pytest.mark.parametrize("content, words", [("", "There is no text in"), ("x", "too little text")])
def test_too_little_text_is_an_error(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=words):
        prepare([tmp_path / "a.txt"], Bytes(), DataConfig())


def test_large_vocabularies_get_wide_shards_and_ids_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rows(tmp_path, list(range(20)))
    made = Bytes().build([], 0)[0]
    monkeypatch.setattr(made, "vocab_size", 2**16)
    monkeypatch.setattr(Bytes, "build", lambda *_: (made, "Made."))
    monkeypatch.setattr(made, "end", 2**16 - 1)
    assert prepare([source], Bytes(), DataConfig(), out=tmp_path / "a").train.tokens.dtype == np.dtype("<u2")
    monkeypatch.setattr(made, "vocab_size", 2**16 + 1)
    monkeypatch.setattr(made, "end", 2**16)
    wide = prepare([source], Bytes(), DataConfig(), out=tmp_path / "b").train.tokens
    assert wide.dtype == np.dtype("<u4") and wide.max() == 2**16
    monkeypatch.setattr(made, "end", 2**16 + 1)
    with pytest.raises(DataError, match="the id 65537, past its vocabulary of 65,537"):
        prepare([source], Bytes(), DataConfig(), out=tmp_path / "c")


def test_the_vocabulary_is_learnt_from_a_bounded_sample_of_the_training_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    build = Chars.build

    def watched(self: Chars, sample: Any, total: int) -> Any:
        seen.append(list(sample))
        return build(self, seen[-1], total)

    monkeypatch.setattr(Chars, "build", watched)
    source = rows(tmp_path, list(range(200)))
    corpus = prepare([source], Chars(), DataConfig())
    assert sorted(seen[0]) == sorted(texts(corpus, "train"))
    assert not any("sample" in note for note in corpus.notes)
    monkeypatch.setattr(shards, "SAMPLE", 5000)
    corpus = prepare([source], Chars(), DataConfig(), out=tmp_path / "out")
    assert 3000 < sum(map(len, seen[1])) <= 5000 and set(seen[1]) <= set(texts(corpus, "train"))
    assert any("a sample of" in note for note in corpus.notes)


def test_progress_is_told_in_order_and_reaches_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(passage(n) for n in range(9000)), encoding="utf-8")
    told: list[tuple[str, int, int | None, int]] = []
    corpus = prepare([tmp_path / "a.txt"], Bytes(), DataConfig(), progress=lambda *row: told.append(row))
    size = (tmp_path / "a.txt").stat().st_size
    assert list(dict.fromkeys(row[0] for row in told)) == ["checking", "reading", "learning", "encoding"]
    reading = [row[1] for row in told if row[0] == "reading"]
    assert reading == sorted(reading) and len(reading) >= 3 and reading[-1] == size
    assert told[-1] == ("encoding", size, size, corpus.train.count + corpus.valid.count)


def test_impossible_fractions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"validation_fraction = 0\.9"):
        parse(DataConfig, {"validation_fraction": 0.9})
    with pytest.raises(ConfigError, match="validation_fraction"):
        parse(DataConfig, {"validation_fractoin": 0.1})
