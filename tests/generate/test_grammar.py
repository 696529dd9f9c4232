"""What is bound by a grammar matches it, whatever the model would rather write."""

from __future__ import annotations

import copy
import json
import re
import sys
from typing import Any

import pytest
import torch

from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import Bpe
from homespun.errors import ConfigError, DataError, MissingExtraError
from homespun.generate.beam import beam_search
from homespun.generate.engine import Generator
from homespun.generate.grammar import constraint
from homespun.generate.sampling import Sampling
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from tests.generate.test_beam import BYTES, generator

TEXT = 'the cat sat on the mat, 12 34 {"name": "é", "age": 5} true false [1, 2] ' * 20
WORDS = Bpe(size=340).build([TEXT], len(TEXT))[0]


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        pytest.importorskip("llguidance")


def untrained(tokenizer: Tokenizer) -> Generator:
    """Nearly uniform: whatever is allowed comes up."""
    torch.manual_seed(1)
    settings = ModelConfig(
        vocab=tokenizer.vocab_size + 7, width=16, layers=1, context=64, attention=GroupedAttention(heads=2)
    )
    return Generator(Decoder(settings).eval(), tokenizer)


EXPRESSIONS = [
    r"yes|no|perhaps",
    r"\d{3}-\d{4}",
    r"(foo|bar)+ [a-c]{2,5}\.(é|ü)?",
    r"the (cat|dog) sat on the mat",
    r"[^a-z\n]{0,8}!",
    r"a/b\\c\"?",
    r"",
]


@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["bytes", "bpe"])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_ends_matches_the_expression(tokenizer: Tokenizer, expression: str) -> None:
    texts = set()
    sampling = Sampling(regex=expression, temperature=1.0, max_tokens=60, seed=1)
    for done in untrained(tokenizer).complete(["x", "the ca"], sampling, count=4):
        if done.finish == "stop":
            assert re.fullmatch(expression, done.text)
            texts.add(done.text)
    assert texts and (len(texts) > 1 or expression in ("", EXPRESSIONS[3]))


def test_a_text_that_cannot_end_yet_says_so() -> None:
    (done,) = untrained(BYTES).complete(["x"], Sampling(regex="[ab]{50}", max_tokens=20))
    assert done.finish == "length" and re.fullmatch("[ab]{20}", done.text)


def test_where_nothing_may_follow_the_text_ends_without_the_end_token() -> None:
    (done,) = untrained(BYTES).complete(["x"], Sampling(regex="abc", max_tokens=20))
    assert (done.text, done.finish, len(done.tokens)) == ("abc", "stop", 3)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ann", "Bob é"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 5}]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["bytes", "bpe"])
def test_what_ends_is_json_of_the_schema(tokenizer: Tokenizer) -> None:
    found = untrained(tokenizer).complete(["x"], Sampling(json_schema=SCHEMA, temperature=1.0, seed=3), count=12)
    assert {done.finish for done in found} == {"stop"}
    for done in found:
        data = json.loads(done.text)
        assert {"name", "age", "tags"} <= set(data) <= set(SCHEMA["properties"])
        assert data["name"] in ("Ann", "Bob é") and type(data["age"]) is int and 0 <= data["age"] <= 120
        assert len(data["tags"]) <= 3 and all(type(tag) is bool for tag in data["tags"])
        assert data.get("more") is None or len(data["more"]) <= 5
        assert done.text == json.dumps(data, ensure_ascii=False) or "\\" in done.text  # on one line


def test_the_empty_schema_is_any_object() -> None:
    found = untrained(BYTES).complete(
        ["x"], Sampling(json_schema={}, temperature=1.0, max_tokens=400, seed=1), count=12
    )
    ended = [json.loads(done.text) for done in found if done.finish == "stop"]
    assert ended and all(type(data) is dict for data in ended)


def test_a_controlled_text_is_bound_too() -> None:
    sampling = Sampling(
        regex="[ab]{6}", temperature=0, logit_bias={99: 100.0, 97: 1.0}, frequency_penalty=2.0, top_k=1, max_tokens=9
    )
    assert untrained(BYTES).generate("c", sampling).count("a") in (3, 4)


def test_beams_are_each_bound() -> None:
    writer = generator()
    sampling = Sampling(regex="(aa|ab|bc)?[xy]{1,3}", beams=40, max_tokens=8)
    found = beam_search(writer, BYTES.encode("the"), sampling, 40)
    texts = [BYTES.decode(beam.ids) for beam in found]
    assert len(set(texts)) == 40
    assert all(re.fullmatch("(aa|ab|bc)?[xy]{1,3}", text) for text in texts)
    for beam in found:
        row = writer.row("the", sampling)
        finish = [row.take(*pair).finish for pair in zip(beam.ids, beam.log_probabilities, strict=True)]
        assert finish == [None] * (len(beam.ids) - 1) + ["stop"]
    one = sampling.model_copy(update={"beams": 1, "temperature": 0.0})
    greedy = [token.id for token in writer.tokens([BYTES.encode("the")], one)]
    assert list(beam_search(writer, BYTES.encode("the"), one)[0].ids) == greedy


def test_the_end_is_allowed_only_where_the_text_may_end() -> None:
    bound = constraint(BYTES, Sampling(regex="ab+"), BYTES.vocab_size + 9)
    assert bound is not None and len(bound.allowed()) == BYTES.vocab_size + 9
    states = []
    for letter in b"abb":
        states.append(bound.allowed().nonzero().flatten().tolist())
        bound.accept(letter)
    assert states == [[97], [98], [98, BYTES.end]] and not bound.done


def test_a_digit_is_one_of_ten() -> None:
    bound = constraint(BYTES, Sampling(regex=r"\d"))
    assert bound is not None and bytes(bound.allowed().nonzero().flatten().tolist()) == b"0123456789"


def test_a_copy_goes_its_own_way() -> None:
    one = constraint(BYTES, Sampling(regex="ax|by"))
    assert one is not None
    other = copy.copy(one)
    one.accept(97)
    other.accept(98)
    assert one.allowed().nonzero().flatten().tolist() == [ord("x")]
    assert other.allowed().nonzero().flatten().tolist() == [ord("y")]
    other.accept(ord("y"))
    assert other.done and not one.done


def test_where_no_token_fits_the_end_alone_is_left_and_the_reason_is_told() -> None:
    data = json.loads(BYTES.to_json())
    data["model"]["vocab"]["zz"] = data["model"]["vocab"].pop("z")  # a vocabulary without a single z
    bound = constraint(Tokenizer(json.dumps(data)), Sampling(regex="xyz|xzzz"))
    assert bound is not None
    for letter in b"xy":
        bound.accept(letter)
    assert bound.allowed().nonzero().flatten().tolist() == [BYTES.end]
    assert bound.failed == "no token of this vocabulary fits" and not bound.done


def test_nothing_asked_for_binds_nothing() -> None:
    assert constraint(BYTES, Sampling()) is None


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"regex": "(x"}, "regex cannot be used: unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences are not supported"),
        ({"regex": r"[^\x00-\U0010FFFF]"}, "regex cannot be used: no token of this vocabulary fits"),
        ({"json_schema": {"type": "nonsense"}}, "json_schema cannot be used: Invalid type: nonsense"),
        ({"json_schema": {"not": {}}}, "Unimplemented keys"),
        ({"json_schema": {"enum": []}}, "Unsatisfiable"),
        ({"json_schema": {"$ref": "http://example.com/x"}}, "json_schema cannot be used"),
    ],
)
def test_what_cannot_bind_is_one_clear_error(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)) as told:
        untrained(BYTES).generate("x", Sampling(**settings))
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_what_is_no_unicode_is_an_error() -> None:
    for settings in ({"regex": "\ud800"}, {"json_schema": {"enum": ["\ud800"]}}):
        with pytest.raises(DataError, match="surrogate"):
            constraint(BYTES, Sampling(**settings))


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for settings in ({"regex": "a"}, {"json_schema": {}}):
        with pytest.raises(MissingExtraError, match=r"pip install 'homespun\[grammar\]'"):
            constraint(BYTES, Sampling(**settings))


def test_a_tokenizer_that_drops_spaces_is_bound_by_its_own_pieces() -> None:
    pieces = {
        "<unk>": 0,
        "</s>": 1,
        "▁the": 2,
        "▁": 3,
        "the": 4,
        "cat": 5,
        "▁cat": 6,
        "a": 7,
        "c": 8,
        "t": 9,
        "h": 10,
        "e": 11,
    }
    definition = {
        "added_tokens": [
            {"id": 1, "content": "</s>", "special": True, "normalized": False, "lstrip": False, "rstrip": False,
             "single_word": False},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                       {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": pieces, "merges": []},
    }  # fmt: skip
    tokenizer = Tokenizer(json.dumps(definition))
    assert tokenizer.pieces()[2] == b" the" and tokenizer.pieces()[4] == b"the"
    prompt = [4]
    texts = {
        untrained(tokenizer).generate(prompt, Sampling(regex=" the cat| cat|cat the", temperature=1.0, seed=seed))
        for seed in range(20)
    }
    assert texts == {" the cat", " cat", "cat the"}


def test_a_text_does_not_depend_on_those_that_were_bound_before_it() -> None:
    writer = untrained(BYTES)
    sampling = Sampling(max_tokens=40, temperature=1.5, regex=r"(\p{L}|😀)*")
    texts = writer.complete(["x"], sampling.model_copy(update={"seed": 0}), count=12)
    assert len({text.text for text in texts}) > 6
    for number in reversed(range(12)):
        again = writer.complete(["x"], sampling.model_copy(update={"seed": number}))[0]
        assert [token.id for token in again.tokens] == [token.id for token in texts[number].tokens]


@pytest.mark.parametrize("expression", ["a{100000}b{100000}", "(ab){1, 2001}", "[{]{3000,}"])
def test_an_expression_that_repeats_too_often_is_refused(expression: str) -> None:
    with pytest.raises(ConfigError, match="repeats something"):
        constraint(BYTES, Sampling(regex=expression))
    assert constraint(BYTES, Sampling(regex="[{]{2000}x*")) is not None
    text = {"type": "string", "pattern": expression}
    schemas: list[dict[str, Any]] = [
        text, {"type": "array", "items": text}, {"anyOf": [{"type": "null"}, {"properties": {"pattern": text}}]},
        {"type": "object", "patternProperties": {expression: {}}},
    ]  # fmt: skip
    for schema in schemas:
        with pytest.raises(ConfigError, match="json_schema repeats something"):
            constraint(BYTES, Sampling(json_schema=schema))
    named = {"type": "object", "properties": {"pattern": {"type": "string", "pattern": "^a{2000}$"}}}
    assert constraint(BYTES, Sampling(json_schema=named)) is not None
