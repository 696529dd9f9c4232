"""Promises of the kinds: the same text gives the same vocabulary, and what is impossible is said clearly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from homespun.config import Config, parse
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import Bpe, Bytes, File, Gpt2, TokenizerConfig, Vocabulary, WordPiece, parse_tokenizer
from homespun.errors import ConfigError, DataError
from tests.data.vocabularies import HARD, SAMPLE, TRAINED, assert_exact, trained

# --- training


@pytest.mark.parametrize("name", TRAINED)
def test_saving_and_loading_changes_nothing(name: str, tmp_path: Path) -> None:
    tokenizer = trained(name)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path)
    assert (again.identity, again.special, again.end) == (tokenizer.identity, tokenizer.special, tokenizer.end)
    assert again.vocab_size == tokenizer.vocab_size == len(again.token_bytes())
    assert again.encode_batch(SAMPLE) == tokenizer.encode_batch(SAMPLE)


@pytest.mark.parametrize("name", TRAINED)
def test_training_twice_gives_the_same_vocabulary_in_every_process(name: str) -> None:
    assert parse_tokenizer(name).build(iter(SAMPLE), 10_000)[0].identity == trained(name).identity
    code = (
        "import json, sys; from homespun.data.vocabulary import parse_tokenizer\n"
        "print(parse_tokenizer(sys.argv[1]).build(json.load(sys.stdin), 10_000)[0].identity)"
    )
    run = subprocess.run([sys.executable, "-c", code, name], input=json.dumps(SAMPLE), capture_output=True, text=True)
    assert run.stdout.strip() == trained(name).identity, run.stderr


@pytest.mark.parametrize("name", ["bpe:700", "wordpiece:900"])
def test_training_joins_what_occurs_often(name: str) -> None:
    assert len(trained(name).encode("Elephant")) == 1
    assert len(trained(name).encode(SAMPLE[0])) < len(SAMPLE[0]) / 2


@pytest.mark.parametrize("name", ["bpe:5000", "wordpiece:5000"])
def test_a_small_text_gives_a_smaller_vocabulary_and_says_so(name: str) -> None:
    tokenizer, sentence = parse_tokenizer(name).build(SAMPLE[:3], 10_000)
    assert tokenizer.vocab_size < 5000
    assert f"{tokenizer.vocab_size:,} tokens, not the 5,000 asked for" in sentence


@pytest.mark.parametrize("kind", [Bpe, WordPiece])
def test_the_smallest_size_holds_every_byte_and_nothing_smaller_is_taken(kind: type[Bpe] | type[WordPiece]) -> None:
    least = {Bpe: 260, WordPiece: 516}[kind]
    tokenizer, _ = kind(size=least).build([], 0)
    assert tokenizer.vocab_size == least
    for text in HARD:
        assert_exact(tokenizer, text)
    with pytest.raises(ConfigError, match=f"at least {least}"):
        kind(size=least - 1)


def test_characters_seen_are_one_token_and_the_others_are_bytes() -> None:
    tokenizer = parse_tokenizer("chars").build(["aé猫"], 6)[0]
    assert [len(tokenizer.encode(text)) for text in ("aé猫", "a", "犬", "👩")] == [3, 1, 3, 4]


@pytest.mark.parametrize(
    ("total", "size"), [(1_000, None), (300_000, 512), (5e6, 1024), (50e6, 4096), (5e8, 8192), (5e9, 16384)]
)
def test_the_automatic_choice_grows_with_the_corpus_and_says_why(total: float, size: int | None) -> None:
    tokenizer, sentence = parse_tokenizer("auto").build(SAMPLE, int(total))
    chosen, _ = parse_tokenizer(f"bpe:{size}" if size else "chars").build(SAMPLE, 0)
    assert tokenizer.identity == chosen.identity
    assert f"{int(total):,} bytes" in sentence


def test_a_text_without_spaces_is_cut_into_pieces_of_bounded_length() -> None:
    endless = "ACGT" * 100_000 + " " * 100_000 + "\n" * 100_000 + "=" * 100_000 + "7" * 100_000
    tokenizer, _ = WordPiece(size=600).build([endless], len(endless))
    assert_exact(tokenizer, endless)  # hangs if a piece were as long as the text: the search is cubic in a piece


# --- settings and files


def test_gpt2_reads_the_other_spelling_of_its_files(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_bytes((shared / "gpt2_bpe/encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((shared / "gpt2_bpe/vocab.bpe").read_bytes())
    assert (
        Gpt2(file=str(tmp_path)).build([], 0)[0].identity
        == Gpt2(file=str(shared / "gpt2_bpe")).build([], 0)[0].identity
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bpe:8k", Bpe(size=8000)),
        ("bpe", Bpe()),
        ("wordpiece:4096", WordPiece(size=4096)),
        ("gpt2:some/folder", Gpt2(file="some/folder")),
        ("path/to/tokenizer.json", File(file="path/to/tokenizer.json")),
        ("file:own", File(file="own")),
    ],
)
def test_the_command_line_names_every_kind(text: str, expected: Vocabulary) -> None:
    assert parse_tokenizer(text) == expected


@pytest.mark.parametrize(
    "text", ["bp:4096", "bpe:many", "bpe:", "bpe:100", "bpe:-5", "bpe:1e12", "chars:3", "gpt2:", ""]
)
def test_an_impossible_name_is_a_clear_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_tokenizer(text)


def test_a_misspelt_kind_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="wordpiece"):
        parse_tokenizer("wordpieces:4096")


def test_gpt2_without_its_files_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gpt2:FOLDER"):
        Gpt2().build([], 0)
    with pytest.raises(DataError, match=r"encoder\.json and vocab\.bpe"):
        Gpt2(file=str(tmp_path)).build([], 0)
    (tmp_path / "encoder.json").write_text('{"a": 0}')
    for merges in ("b c\n", "a b c\n"):
        (tmp_path / "vocab.bpe").write_text(merges)
        with pytest.raises(DataError):
            Gpt2(file=str(tmp_path)).build([], 0)


def test_a_recipe_holds_any_kind_by_its_name() -> None:
    class Recipe(Config):
        tokenizer: TokenizerConfig = Bytes()

    assert parse(Recipe, {"tokenizer": {"kind": "bpe", "size": "1k"}}).tokenizer == Bpe(size=1000)
    with pytest.raises(ConfigError, match="too small"):
        parse(Recipe, {"tokenizer": {"kind": "bpe", "size": 12}})
    with pytest.raises(ConfigError, match="wordpiece"):
        parse(Recipe, {"tokenizer": {"kind": "words"}})
