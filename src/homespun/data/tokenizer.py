"""Text to token ids and back, exactly: a thin, safe face over the `tokenizers` library.

A `Tokenizer` is its `tokenizer.json` and nothing more. Special tokens never come from text: text that spells
`<|endoftext|>` is ordinary text, and the ids in `Tokenizer.special` are put only by a template or a document's end.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from homespun.errors import DataError

END, USER, ASSISTANT, SYSTEM = SPECIAL_TOKENS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>")
"""The special tokens at the end of every vocabulary trained here, in the order of their ids."""

# How others spell a document's end.
ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]", "[EOS]", "<｜end▁of▁sentence｜>")
SIZE_LIMIT = 256 * 2**20  # bytes of a tokenizer.json; the largest public ones have 35 million
VOCABULARY_LIMIT = 2**22  # ids; the largest public vocabularies have 256 thousand

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Encodes any Unicode text to ids and decodes ids to text; made by a `TokenizerConfig` or `Tokenizer.load`.

    `special` maps the spelling of each special token to its id; `end` is the id that separates documents. Trained
    vocabularies and GPT-2's bring back every text exactly. They also have a boundary after each newline that is
    followed by something other than white space, so that encoding the two halves apart gives the same ids.

    A third-party file is taken as it is, except that its truncation, padding and dropout are switched off, and that
    `<|endoftext|>` is appended when it has no special token for the end of a document. Whether it brings back a text
    exactly is its own affair.
    """

    def __init__(self, definition: str, source: str = "the tokenizer"):
        """`definition` is the text of a `tokenizer.json`. Raises `DataError` when it is none."""
        data = _parse(definition, source)
        with library_errors(source):
            self._library: Any = tokenizers.Tokenizer.from_str(json.dumps(data))
            self._library.encode_special_tokens = True  # text that spells a special token is ordinary text
            ids = set(self._library.get_vocab(with_added_tokens=True).values())
            self.special = _special_tokens(self._library)
            if not set(ENDS) & set(self.special):
                self.special[END] = _append_end(self._library, ids, source)
                ids.add(self.special[END])
            self._library.encode("A trial: 12 é\n", add_special_tokens=False)
            self._spelled, self._drops_space = _piece_table(self._library, data.get("decoder"))
        self.vocab_size = max(ids) + 1
        if self.vocab_size > VOCABULARY_LIMIT:
            raise DataError(f"{source} has the id {max(ids):,}", f"At most {VOCABULARY_LIMIT:,} ids are possible.")
        self.end = next(self.special[name] for name in ENDS if name in self.special)
        self._silent = self._spelled | dict.fromkeys(self.special.values(), b"")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads a `tokenizer.json`, or the one in a folder. Raises `DataError` when it is missing or broken."""
        place = Path(path)
        place = place / "tokenizer.json" if place.is_dir() else place
        try:
            if place.stat().st_size > SIZE_LIMIT:
                raise DataError(f"{place} is larger than {SIZE_LIMIT:,} bytes", "Give a tokenizer.json.")
            return cls(place.read_text(encoding="utf-8"), str(place))
        except OSError as error:
            raise DataError(f"{place} cannot be read: {error.strerror}", "Give the path of a tokenizer.json.") from None
        except UnicodeDecodeError:
            raise DataError(f"{place} is not UTF-8 text", "Give the path of a tokenizer.json.") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the `tokenizer.json` that `Tokenizer.load`, the `tokenizers` library and Hugging Face read."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """What `save` writes."""
        return str(self._library.to_str(pretty=True))

    @cached_property
    def identity(self) -> str:
        """sha256 (hexadecimal) of the canonical JSON: two tokenizers with the same identity do the same."""
        canonical = json.dumps(json.loads(self._library.to_str()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without any special token. Raises `DataError` on a lone surrogate (no Unicode text)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, computed by the library's own threads (by one thread in a forked child)."""
        try:
            with library_errors("the tokenizer"):
                encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            refuse_surrogates(texts)
            raise
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of `ids`; never raises.

        Bytes that are no UTF-8 become U+FFFD. Special tokens are left out, or spelled when `special`; ids outside the
        vocabulary (a model may be padded) have no text.
        """
        stream = self.decoder(special)
        return stream.extend(ids) + stream.flush()

    def decoder(self, special: bool = False) -> TextStream:
        """A stream whose pieces, joined, are exactly `decode(ids, special)`."""
        return TextStream(self._spelled if special else self._silent, self._drops_space)

    def piece(self, token: int) -> bytes:
        """The bytes that an id stands for within a text, a special token's spelling; none for an id that is unknown."""
        return self._spelled.get(token, b"")

    def token_bytes(self) -> np.ndarray:
        """Bytes of text that each id stands for: int64 (vocab_size,), 0 for special tokens.

        Over the encoding of a text they sum to its UTF-8 length: exactly for trained vocabularies and GPT-2's; a
        third-party file may be off by what it adds or drops itself (a leading space, say).
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, piece in self._silent.items():
            lengths[token] = len(piece)
        return lengths

    def pieces(self) -> list[bytes]:
        """The bytes of text that each id stands for, (vocab_size,): none for special tokens."""
        return [self._silent.get(token, b"") for token in range(self.vocab_size)]


class TextStream:
    """Turns ids into text while they arrive: what is shown is never half a character."""

    def __init__(self, pieces: dict[int, bytes], drops_space: bool):
        self._pieces = pieces
        self._drops_space = drops_space  # of the very first piece
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is certain once the id has arrived; bytes of an unfinished character wait for the next one."""
        return self.extend([token])

    def extend(self, ids: Iterable[int]) -> str:
        """`push` for several ids at once."""
        data = b"".join([self._pieces.get(int(token), b"") for token in ids])
        if data and self._drops_space:
            data = data.removeprefix(b" ")
            self._drops_space = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """The rest at the end: nothing, or U+FFFD for a character that was never finished."""
        return self._utf8.decode(b"", final=True)


def byte_alphabet() -> list[str]:
    """The printable character that stands for each of the 256 bytes in byte-level vocabularies (GPT-2's choice)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


@contextmanager
def library_errors(source: str) -> Iterator[None]:
    """Turns the library's errors, and its panics (which are no `Exception`), into `DataError`s."""
    try:
        yield
    except (DataError, TypeError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        message = " ".join(str(error).split())
        raise DataError(f"{source} does not work: {message:.200}", "Give an intact tokenizer.json.") from None


def _parse(definition: str, source: str) -> dict[str, Any]:
    """The JSON object, with everything off that would cut, pad or vary an encoding."""
    try:
        data = json.loads(definition)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not JSON: {error}", "Give an intact tokenizer.json.") from None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise DataError(f"{source} holds no tokenizer", "Give a tokenizer.json as the `tokenizers` library writes it.")
    data["truncation"] = data["padding"] = None
    if "dropout" in data["model"]:
        data["model"]["dropout"] = None
    return data


def _special_tokens(library: Any) -> dict[str, int]:
    added = sorted(library.get_added_tokens_decoder().items())
    return {token.content: number for number, token in added if token.special}


def _append_end(library: Any, ids: set[int], source: str) -> int:
    library.add_special_tokens([tokenizers.AddedToken(END, special=True, normalized=False)])
    end: int = library.token_to_id(END)
    if end in ids and library.get_vocab_size() > len(ids):
        raise DataError(f"{source} has gaps in its ids and no end of document", f"Add {END} to it as a special token.")
    return end


def refuse_surrogates(texts: Iterable[str]) -> None:
    """Raises `DataError` where a text holds a lone surrogate, which is no Unicode and cannot be written as UTF-8."""
    for text in texts:
        if isinstance(text, str) and (found := re.search("[\ud800-\udfff]", text)):
            raise DataError(
                f"The text holds the lone surrogate {found[0]!r} at character {found.start():,}",
                "That is no Unicode text: read it in its true encoding, or replace such characters.",
            )


def _piece_table(library: Any, decoder: dict[str, Any] | None) -> tuple[dict[int, bytes], bool]:
    """The bytes of each id within a text, and whether the first piece of a text loses its leading space."""
    names = {number: token for token, number in library.get_vocab(with_added_tokens=True).items()}
    added = {number: token.content.encode() for number, token in library.get_added_tokens_decoder().items()}
    steps = _decoder_steps(decoder)
    *before, last = steps or [{"type": None}]
    plain = all(step["type"] == "Replace" and "String" in step["pattern"] for step in before)
    if plain and last["type"] == "ByteLevel":
        replacements = [(step["pattern"]["String"], step["content"]) for step in before]
        return {number: _byte_level(token, replacements) for number, token in names.items()} | added, False
    pieces, drops_space = _probe(library, sorted(names))
    if any(step["type"] == "ByteFallback" for step in steps):
        fallback = {number: _FALLBACK.fullmatch(token) for number, token in names.items()}
        pieces |= {number: bytes([int(match[1], 16)]) for number, match in fallback.items() if match}
    return pieces | added, drops_space


def _decoder_steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _byte_level(token: str, replacements: list[tuple[str, str]]) -> bytes:
    for old, new in replacements:
        token = token.replace(old, new)
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return token.encode()


def _probe(library: Any, ids: list[int]) -> tuple[dict[int, bytes], bool]:
    """Asks a decoder of any sort what each id adds after a plain letter, and what it gives at the start of a text."""
    alone = dict(zip(ids, library.decode_batch([[number] for number in ids], skip_special_tokens=False), strict=True))
    anchor = next((number for number in ids if alone[number].isalpha() and alone[number].isascii()), None)
    if anchor is None:
        return {number: text.encode() for number, text in alone.items()}, False
    after = library.decode_batch([[anchor, number] for number in ids], skip_special_tokens=False)
    pieces = {number: text[len(alone[anchor]) :] for number, text in zip(ids, after, strict=True)}
    spaced = [number for number in ids if pieces[number].startswith(" ") and len(pieces[number]) > 1]
    drops_space = bool(spaced) and all(alone[number] == pieces[number][1:] for number in spaced[:100])
    return {number: text.encode() for number, text in pieces.items()}, drops_space


_BYTE_OF = {character: byte for byte, character in enumerate(byte_alphabet())}
