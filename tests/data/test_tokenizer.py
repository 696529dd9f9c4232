"""Promises of any tokenizer: nothing is lost, nothing is injected, nothing breaks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from homespun.data.tokenizer import SPECIAL_TOKENS, Tokenizer, byte_alphabet
from homespun.data.vocabulary import Bpe, File, Gpt2
from homespun.errors import DataError
from tests.data.vocabularies import HARD, TEXTS, TRAINED, assert_exact, assert_streams, trained


@pytest.fixture(scope="module")
def gpt2(shared: Path) -> Tokenizer:
    return Gpt2(file=str(shared / "gpt2_bpe")).build([], 0)[0]


# --- exactness


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back_exactly(name: str, text: str) -> None:
    assert_exact(trained(name), text)


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_any_text_comes_back_exactly_and_its_bytes_add_up(name: str, text: str) -> None:
    assert_exact(trained(name), text)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_any_text_comes_back_exactly_from_gpt2(gpt2: Tokenizer, text: str) -> None:
    assert_exact(gpt2, text)


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(-5, 1000), max_size=40))
def test_decoding_never_raises_and_streams_the_same_text(name: str, ids: list[int]) -> None:
    assert_streams(trained(name), ids)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=12))
def test_bytes_that_are_no_utf8_decode_as_python_replaces_them(data: bytes) -> None:
    assert trained("bytes").decode(list(data)) == data.decode("utf-8", "replace")
    assert_streams(trained("bytes"), list(data))


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=50, deadline=None)
@given(before=TEXTS, after=TEXTS)
def test_a_newline_before_a_word_is_always_a_boundary(name: str, before: str, after: str) -> None:
    before, after, tokenizer = before + "\n", after.lstrip() or "x", trained(name)
    assert tokenizer.encode(before) + tokenizer.encode(after) == tokenizer.encode(before + after)


@pytest.mark.parametrize("name", TRAINED)
def test_the_library_itself_decodes_the_same_from_the_saved_file(name: str, tmp_path: Path) -> None:
    trained(name).save(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in HARD:
        ids = trained(name).encode(text)
        assert library.decode(ids) == text


@pytest.mark.parametrize("name", TRAINED)
def test_a_batch_is_encoded_as_its_texts_are(name: str) -> None:
    assert trained(name).encode_batch(HARD) == [trained(name).encode(text) for text in HARD]
    assert trained(name).encode_batch([]) == []


def test_half_a_character_waits_in_the_stream() -> None:
    stream = trained("bytes").decoder()
    assert [stream.push(byte) for byte in "a🙂b".encode()] == ["a", "", "", "", "🙂", "b"]
    assert stream.push(0xF0) == "" and stream.flush() == "\ufffd"


@pytest.mark.parametrize("name", TRAINED)
def test_a_lone_surrogate_is_refused_with_its_place(name: str) -> None:
    with pytest.raises(DataError, match="surrogate.*character 2"):
        trained(name).encode("ok\ud83d")
    with pytest.raises(DataError, match="surrogate"):
        Bpe().build(["fine", "ok\ud83d"], 10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_encodes_without_a_warning_or_a_deadlock() -> None:
    code = (
        "import os; from homespun.data.vocabulary import Bytes\n"
        "t = Bytes().build([], 0)[0]; t.encode_batch(['ab' * 2000] * 50)\n"
        "child = os.fork()\n"
        "if child == 0: t.encode_batch(['ab' * 2000] * 50); os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    assert (run.stdout.split(), run.stderr) == (["7"], "")


# --- special tokens


@pytest.mark.parametrize("name", TRAINED)
def test_special_tokens_stand_last_and_are_decoded_only_on_request(name: str) -> None:
    tokenizer = trained(name)
    last = range(tokenizer.vocab_size - 4, tokenizer.vocab_size)
    assert tokenizer.special == dict(zip(SPECIAL_TOKENS, last, strict=True))
    assert tokenizer.end == tokenizer.special["<|endoftext|>"]
    assert tokenizer.decode([*tokenizer.encode("hé"), *last]) == "hé"
    assert tokenizer.decode([tokenizer.end, *tokenizer.encode("hé")], special=True) == "<|endoftext|>hé"


def test_gpt2_golden_encodings_are_reproduced(gpt2: Tokenizer, shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "gpt2_bpe/golden.jsonl").open(encoding="utf-8")]
    assert len(rows) > 20
    for row in rows:
        assert gpt2.encode(row["text"]) == row["ids"]
        assert gpt2.decode(row["ids_special"], special=True) == row["text"]


def test_gpt2_keeps_its_50257_ids_and_its_one_special_token(gpt2: Tokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.special, gpt2.end) == (50257, {"<|endoftext|>": 50256}, 50256)


# --- files of other people


def definition(**changes: Any) -> dict[str, Any]:
    vocabulary = {name: byte for byte, name in enumerate(byte_alphabet())}
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    base = {"version": "1.0", "added_tokens": [], "pre_tokenizer": step, "decoder": step, "model": model}
    return base | {"normalizer": None, "post_processor": None, "truncation": None, "padding": None} | changes


def wordpiece(**changes: Any) -> dict[str, Any]:
    model = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "max_input_chars_per_word": 100}
    return definition(model=model | {"continuing_subword_prefix": "##"} | changes)


def bpe(vocabulary: dict[str, int], merges: list[str], **changes: Any) -> dict[str, Any]:
    return definition(model={"type": "BPE", "vocab": vocabulary, "merges": merges} | changes)


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
BROKEN = {
    "empty": "",
    "not json": "{",
    "a list": "[]",
    "no model": "{}",
    "deep": "[" * 100_000,
    "unknown model": json.dumps(definition(model={"type": "Magic"})),
    "merge of unknown tokens": json.dumps(bpe({"a": 0}, ["b c"])),
    "no unknown token": json.dumps(wordpiece()),
    "negative id": json.dumps(bpe({"a": -1}, [])),
    "huge id": json.dumps(bpe({"a": 0, "b": 2**31}, [])),
    "gap without an end": json.dumps(bpe({"a": 0, "b": 2}, [])),
    "bad pattern": json.dumps(definition(pre_tokenizer=SPLIT | {"pattern": {"Regex": "(("}})),
    "panic at loading": json.dumps(bpe({"a": 0, "b": 1, "ab": 2}, ["a b"], continuing_subword_prefix="#####")),
    "panic at encoding": json.dumps(definition(pre_tokenizer={"type": "FixedLength", "length": 0})),
    "panic at decoding": json.dumps(definition(decoder={"type": "Strip", "content": "a", "start": 9, "stop": 9})),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_a_data_error_and_never_a_panic(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_file_that_is_no_text_or_not_there_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "weights.json").write_bytes(b"\xff\xfe\x00")
    for place in (tmp_path / "weights.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError):
            File(file=str(place)).build([], 0)


def test_truncation_padding_and_dropout_of_a_file_are_off(tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    pad["pad_to_multiple_of"] = None
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "dropout": 0.9}
    text = json.dumps(definition(truncation=cut, padding=pad, model=model))
    assert Tokenizer(text).encode("ab" * 8) == [2] * 8


def test_a_file_without_an_end_of_document_gets_one(tmp_path: Path) -> None:
    tokenizer = Tokenizer(json.dumps(definition()))
    assert (tokenizer.vocab_size, tokenizer.end, tokenizer.special) == (257, 256, {"<|endoftext|>": 256})
    assert_exact(tokenizer, "<|endoftext|>")


def test_a_sentencepiece_like_file_round_trips_and_streams(shared: Path) -> None:
    tokenizer, sentence = File(file=str(shared / "stories260k/hf")).build(["Once upon a time, there was a girl."], 9)
    assert "exactly" not in sentence
    assert (tokenizer.vocab_size, tokenizer.end) == (512, 2)
    library = tokenizers.Tokenizer.from_file(str(shared / "stories260k/hf/tokenizer.json"))
    for text in ["Once upon a time", " leading", "naïve 🙂 日本", "two  spaces\n\nlines", "<s></s>"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == library.decode(ids)
        assert tokenizer.end not in ids and 1 not in ids
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode()) + 1  # it puts a space before a text
        assert_streams(tokenizer, ids)


def test_a_lossy_file_is_announced(tmp_path: Path) -> None:
    vocabulary = {"[UNK]": 0, "hello": 1, "world": 2, "##s": 3}
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.decoder = tokenizers.decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer, sentence = File(file=str(tmp_path)).build(["hello  strange world"], 9)
    assert "approximate" in sentence
    ids = tokenizer.encode("hello worlds")
    assert tokenizer.decode(ids) == "hello worlds"
    assert_streams(tokenizer, ids)


def test_token_bytes_are_whole_numbers_for_every_id() -> None:
    lengths = trained("bpe:700").token_bytes()
    assert lengths.dtype == np.int64 and lengths.shape == (trained("bpe:700").vocab_size,)
    assert lengths[:-4].min() >= 1 and not lengths[-4:].any()
