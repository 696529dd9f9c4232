"""The kinds of vocabulary: frozen settings, each of which builds a `Tokenizer` from a sample of the text.

Every kind that is trained here loses nothing: all characters are kept, and what the vocabulary does not know is
spelled in bytes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tokenizers
from pydantic import BeforeValidator, Field, field_validator
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from homespun.config import Config, human_number, nearest, parse
from homespun.data.tokenizer import (
    END,
    SPECIAL_TOKENS,
    Tokenizer,
    byte_alphabet,
    library_errors,
    refuse_surrogates,
)
from homespun.errors import ConfigError, DataError

AUTOMATIC = ((200e3, None), (1e6, 512), (10e6, 1024), (100e6, 4096), (1e9, 8192), (float("inf"), 16384))
"""Below so many bytes of text, so many BPE tokens (None: characters). Each token should occur hundreds of times."""

# What BPE and WordPiece may join: an English contraction, a word with the sign or space before it, one or two digits,
# a run of signs, an empty line, a run of spaces without the last one (which belongs to the word after it). The bounds
# keep a text without spaces (DNA, base64) from becoming one endless word. Every character falls under one of these.
PIECES = (
    r"'(?:[sdmt]|ll|re|ve)\b"
    r"|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]{1,24}"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{M}\p{N}]{1,24}"
    r"|\s{0,16}[\r\n]"
    r"|\s{1,16}(?!\S)"
    r"|\s{1,16}"
)
CONTINUES = "\u2040"  # marks a WordPiece inside a word; no byte is written with this character, so nothing is ambiguous
CHARACTER_LIMIT = 16_384  # Chinese, Japanese and Korean together use fewer in ordinary text

Size = Annotated[int, BeforeValidator(human_number), Field(le=1_000_000)]
"""Tokens of a vocabulary, special tokens included; may be written `8k`."""

Place = Annotated[str, Field(min_length=1)]


class Auto(Config):
    """Chooses by the size of the corpus: characters for a tiny one, else BPE that grows with it."""

    kind: Literal["auto"] = "auto"

    def build(self, sample: Iterable[str], total_bytes: int) -> tuple[Tokenizer, str]:
        """Trains on `sample` (texts of a corpus of `total_bytes`); returns the tokenizer and a sentence about it."""
        size = next(size for limit, size in AUTOMATIC if total_bytes < limit)
        choice = Chars() if size is None else Bpe(size=size)
        tokenizer, sentence = choice.build(sample, total_bytes)
        reason = "too little for longer tokens" if size is None else "enough to see each token many times"
        return tokenizer, f"{sentence} Chosen because the corpus has {total_bytes:,} bytes: {reason}."


class Bytes(Config):
    """One token per byte: 256 and the special ones, for any text; the longest sequences."""

    kind: Literal["bytes"] = "bytes"

    def build(self, sample: Iterable[str], total_bytes: int) -> tuple[Tokenizer, str]:
        """Needs no training; returns the tokenizer and a sentence about it."""
        library = tokenizers.Tokenizer(models.BPE({name: byte for byte, name in enumerate(byte_alphabet())}, []))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.decoder = decoders.ByteLevel()
        return _finish(library, "Vocabulary bytes")


class Chars(Config):
    """One token per character seen in the sample; every other character is spelled in bytes."""

    kind: Literal["chars"] = "chars"

    def build(self, sample: Iterable[str], total_bytes: int) -> tuple[Tokenizer, str]:
        """Counts the characters of `sample`; returns the tokenizer and a sentence about it."""
        counts: Counter[str] = Counter()
        for text in _checked(sample):
            counts.update(text)
        ascii_characters = [chr(code) for code in range(128)]  # each is its own byte
        bytes_beyond = [f"<0x{byte:02X}>" for byte in range(0x80, 0xF5) if byte not in (0xC0, 0xC1)]  # all UTF-8 has
        seen = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        others = sorted([character for character, _ in seen if not character.isascii()][:CHARACTER_LIMIT])
        names = [*ascii_characters, *bytes_beyond, *others]
        model = models.BPE({name: number for number, name in enumerate(names)}, [], byte_fallback=True)
        library = tokenizers.Tokenizer(model)
        library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        return _finish(library, "Vocabulary chars")


class Bpe(Config):
    """Byte-pair encoding over bytes: common words become one token, and any text can still be spelled."""

    kind: Literal["bpe"] = "bpe"
    size: Size = 4096

    @field_validator("size")
    @classmethod
    def _holds_all_bytes(cls, size: int) -> int:
        return _at_least(256 + len(SPECIAL_TOKENS), size, "bpe")

    def build(self, sample: Iterable[str], total_bytes: int) -> tuple[Tokenizer, str]:
        """Trains on `sample`, the same way each time; returns the tokenizer and a sentence about it."""
        library = tokenizers.Tokenizer(models.BPE())
        library.pre_tokenizer = _byte_pieces()
        library.decoder = decoders.ByteLevel()
        _train(library, trainers.BpeTrainer, self.size, sample)
        return _finish(library, "Vocabulary bpe", self.size)


class WordPiece(Config):
    """The longest known piece first (as in BERT), but over bytes, so that any text comes back exactly."""

    kind: Literal["wordpiece"] = "wordpiece"
    size: Size = 4096

    @field_validator("size")
    @classmethod
    def _holds_all_bytes(cls, size: int) -> int:
        return _at_least(2 * 256 + len(SPECIAL_TOKENS), size, "wordpiece")

    def build(self, sample: Iterable[str], total_bytes: int) -> tuple[Tokenizer, str]:
        """Trains on `sample`, the same way each time; returns the tokenizer and a sentence about it."""
        learner = tokenizers.Tokenizer(models.WordPiece(continuing_subword_prefix=CONTINUES))
        learner.pre_tokenizer = _byte_pieces()
        inner = [CONTINUES + byte for byte in byte_alphabet()]
        _train(learner, trainers.WordPieceTrainer, self.size, sample, inner, continuing_subword_prefix=CONTINUES)
        vocabulary = learner.get_vocab()
        model = models.WordPiece(vocabulary, max_input_chars_per_word=1000, continuing_subword_prefix=CONTINUES)
        library = tokenizers.Tokenizer(model)
        library.pre_tokenizer = _byte_pieces()
        library.decoder = decoders.Sequence([decoders.Replace(CONTINUES, ""), decoders.ByteLevel()])
        return _finish(library, "Vocabulary wordpiece", self.size)


class Gpt2(Config):
    """GPT-2's own vocabulary of 50,257 tokens, from its two files; its one special token is `<|endoftext|>`."""

    kind: Literal["gpt2"] = "gpt2"
    file: Place | None = None

    def build(self, sample: Iterable[str], total_bytes: int) -> tuple[Tokenizer, str]:
        """Reads `encoder.json` and `vocab.bpe` (or `vocab.json` and `merges.txt`) from the folder `file`."""
        if self.file is None:
            raise ConfigError(
                "The vocabulary gpt2 needs its files, and nothing is fetched from a network",
                "Put encoder.json and vocab.bpe (or vocab.json and merges.txt) of GPT-2 in a folder and write "
                "gpt2:FOLDER, or tokenizer.file=FOLDER.",
            )
        ids, merges = _read_gpt2(Path(self.file))
        with library_errors(f"The vocabulary in {self.file}"):
            library = tokenizers.Tokenizer(models.BPE(ids, merges))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        library.add_special_tokens([AddedToken(END, special=True, normalized=False)])
        tokenizer = Tokenizer(library.to_str(), self.file)
        return tokenizer, f"Vocabulary gpt2: {tokenizer.vocab_size:,} tokens from {self.file}."


class File(Config):
    """Any `tokenizer.json`, one of ours or a third party's."""

    kind: Literal["file"] = "file"
    file: Place | None = None

    def build(self, sample: Iterable[str], total_bytes: int) -> tuple[Tokenizer, str]:
        """Reads the file; the sentence says when the first texts of `sample` do not come back from it exactly."""
        if self.file is None:
            raise ConfigError("The vocabulary file needs a path", "Write tokenizer.file=PATH of a tokenizer.json.")
        tokenizer = Tokenizer.load(self.file)
        sentence = f"Vocabulary from {self.file}: {tokenizer.vocab_size:,} tokens."
        texts = [text[:10_000] for text in islice(_checked(sample), 8)]
        if any(tokenizer.decode(tokenizer.encode(text)) != text for text in texts):
            sentence += " It does not bring back every text exactly, so bits per byte are approximate."
        return tokenizer, sentence


Vocabulary = Auto | Bytes | Chars | Bpe | WordPiece | Gpt2 | File

TokenizerConfig = Annotated[Vocabulary, Field(discriminator="kind")]
"""The settings under `tokenizer`; each kind has `build(sample, total_bytes) -> (Tokenizer, sentence)`."""

_KINDS = {kind.model_fields["kind"].default: kind for kind in get_args(Vocabulary)}


def parse_tokenizer(text: str) -> Vocabulary:
    """The command line's way to name a kind: `auto`, `bytes`, `chars`, `bpe:4096`, `wordpiece:8k`, `gpt2:FOLDER`, or
    the path of a tokenizer.json. Raises `ConfigError`, naming the nearest known kind."""
    name, colon, value = text.partition(":")
    kind = _KINDS.get(name)
    if kind is None and (text.endswith(".json") or os.path.exists(text)):
        return File(file=text)
    if kind is None:
        raise ConfigError(f"{text!r} is no vocabulary", nearest(name, _KINDS) + " Or give a tokenizer.json.")
    key = next((key for key in ("size", "file") if key in kind.model_fields), None)
    if colon and key is None:
        raise ConfigError(f"{text!r} is no vocabulary", f"Write {name} alone.")
    return parse(kind, {key: value} if colon else {}, "the tokenizer")


def _at_least(least: int, size: int, name: str) -> int:
    if size < least:
        raise ConfigError(
            f"A {name} vocabulary of {size:,} is too small to spell every byte",
            f"Ask for at least {least}, the bytes and the special tokens.",
        )
    return size


def _byte_pieces() -> Any:
    cut = pre_tokenizers.Split(Regex(PIECES), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _train(
    library: Any, trainer: Any, size: int, sample: Iterable[str], first: Sequence[str] = (), **settings: str
) -> None:
    """Leaves room for the special tokens. The tokens `first` and the bytes are given their ids before any text is
    seen: the library breaks ties by id, and in its own order of words the result would differ from run to run."""
    learner = trainer(
        vocab_size=size - len(SPECIAL_TOKENS),
        min_frequency=2,  # a token that occurs once teaches nothing
        show_progress=False,
        special_tokens=list(first),
        initial_alphabet=byte_alphabet(),
        **settings,
    )
    library.train_from_iterator(_checked(sample), learner)


def _checked(sample: Iterable[str]) -> Iterator[str]:
    for text in sample:
        refuse_surrogates([text])
        yield text


def _finish(library: Any, name: str, asked: int | None = None) -> tuple[Tokenizer, str]:
    """Appends the special tokens."""
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = Tokenizer(library.to_str())
    sentence = f"{name}: {tokenizer.vocab_size:,} tokens"
    if asked is not None and tokenizer.vocab_size < asked:
        sentence += f", not the {asked:,} asked for, since the text holds no more pieces that occur twice"
    return tokenizer, sentence + "."


def _read_gpt2(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The ids of the tokens and the merges in order."""
    pairs = [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")]
    found = [(folder / ids, folder / merges) for ids, merges in pairs if (folder / ids).is_file()]
    if not found or not found[0][1].is_file():
        raise DataError(
            f"{folder} holds no GPT-2 vocabulary",
            "Put encoder.json and vocab.bpe, or vocab.json and merges.txt, there.",
        )
    ids_file, merges_file = found[0]
    try:
        ids = json.loads(ids_file.read_text(encoding="utf-8"))
        lines = merges_file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds a broken GPT-2 vocabulary: {error}", "Fetch both files again.") from None
    if not isinstance(ids, dict) or not all(isinstance(number, int) for number in ids.values()):
        raise DataError(f"{ids_file} does not map tokens to ids", "Fetch it again.")
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise DataError(f"{merges_file} holds the line {' '.join(wrong)!r:.60}, no pair", "Fetch it again.")
    return ids, merges  # type: ignore[return-value]  # each has two parts
