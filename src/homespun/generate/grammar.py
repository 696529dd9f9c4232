"""Text that matches a regular expression or a JSON schema, by the optional library llguidance. V vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homespun.data.tokenizer import Tokenizer, refuse_surrogates
from homespun.errors import ConfigError, MissingExtraError
from homespun.generate.sampling import Sampling

# JSON on one line: a model may not write white space for ever
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# What one text may cost, below the library's own limits: it must not hold up those beside it.
LIMITS = {"initial_lexer_fuel": 200_000, "step_lexer_fuel": 50_000, "max_lexer_states": 50_000,
          "max_grammar_size": 50_000}  # fmt: skip
REPEATS = 2_000  # the most times that an expression may repeat a part: each counts as one of its own


def constraint(tokenizer: Tokenizer, sampling: Sampling, vocab: int | None = None) -> Constraint | None:
    """What binds a text with these settings, at its beginning; none if nothing does.

    `vocab`: how many ids the model knows, if more than the tokenizer. Raises `ConfigError` where the expression or the
    schema is wrong or not supported, or no text of these tokens matches it, and `MissingExtraError` without llguidance.
    """
    if sampling.regex is not None:
        refuse_surrogates([sampling.regex])
        _refuse_repeats("regex", sampling.regex)
        start = _start(tokenizer, "regex", f"start: /{_library().regex_to_lark(sampling.regex, 'd')}/")
    elif sampling.json_schema is not None:
        schema = json.dumps(sampling.json_schema or {"type": "object"}, ensure_ascii=False)
        refuse_surrogates([schema])
        for pattern in _patterns(sampling.json_schema):
            _refuse_repeats("json_schema", pattern)
        start = _start(tokenizer, "json_schema", _library().LLMatcher.grammar_from_json_schema(schema, JSON_STYLE))
    else:
        return None
    return Constraint(start, tokenizer.vocab_size, vocab or tokenizer.vocab_size)


class Constraint:
    """What may come next in a text that is bound. Ask `allowed`, choose among these tokens, tell `accept` the choice.

    The end token is allowed only where the text may end; it need not be accepted. `done`: nothing may follow but it, so
    the text ends here. `failed`: why the text cannot go on although it is no match yet: a limit of the library was
    reached, or no token fits; the end token alone is allowed then. `copy.copy` branches.
    """

    def __init__(self, matcher: Any, known: int, vocab: int):
        self._matcher, self._known, self._vocab = matcher, known, vocab
        self.done = False
        self.failed: str | None = None

    def allowed(self) -> Tensor:
        """True for the tokens that may come next, (V,), on the CPU. At least one is."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = torch.zeros(self._vocab, dtype=torch.bool)
        allowed[: self._known] = torch.from_numpy(np.unpackbits(bits, count=self._known, bitorder="little")).bool()
        self._note()
        return allowed

    def accept(self, token: int) -> None:
        """Goes on with this token, which was allowed."""
        self._matcher.consume_token(token)
        self._note()
        self.done = self.failed is None and self._matcher.is_stopped()

    def _note(self) -> None:
        if self._matcher.is_error():
            self.failed = _reason(self._matcher)

    def __copy__(self) -> Constraint:
        other = Constraint(self._matcher.deep_copy(), self._known, self._vocab)
        other.done, other.failed = self.done, self.failed
        return other


def _start(tokenizer: Tokenizer, name: str, grammar: str) -> Any:
    """The library's matcher at the beginning of a text. Each text has its own: what a matcher and its copies have found
    out counts for their limits together, and no text may depend on others."""
    library = _library()
    limits = library.LLParserLimits(verbose_errors=False, **LIMITS)
    matcher = library.LLMatcher(_vocabulary(tokenizer), grammar, log_level=0, limits=limits)
    matcher.compute_bitmask()
    if matcher.is_error():
        raise ConfigError(f"{name} cannot be used: {_reason(matcher)}", "docs/generation.md says what is possible.")
    return matcher


@lru_cache(maxsize=16)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    """The tokenizer as the library wants it."""
    library = _library()
    return library.LLTokenizer(library.TokenizerWrapper(_Table(tokenizer)))


class _Table:
    """The bytes of each token under the names that the library asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.end
        self.tokens = tokenizer.pieces()
        self.special_token_ids = [number for number, piece in enumerate(self.tokens) if not piece]
        self._number = {piece: number for number, piece in enumerate(self.tokens) if piece}
        self._longest = max(map(len, self._number))

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text: as the tokenizer has them, if these are its bytes, or the longest pieces from the left."""
        data = text.encode() if isinstance(text, str) else text
        ids = self._tokenizer.encode(data.decode(errors="replace"))
        if b"".join(self.tokens[number] for number in ids) == data:
            return ids
        ids, start = [], 0
        while start < len(data):
            sizes = range(min(self._longest, len(data) - start), 0, -1)
            size = next((size for size in sizes if data[start : start + size] in self._number), 0)
            if not size:
                break
            ids.append(self._number[data[start : start + size]])
            start += size
        return ids


def _patterns(schema: Any) -> Iterator[str]:
    """The regular expressions in a schema."""
    inside = [schema]
    while inside:
        part = inside.pop()
        if isinstance(part, dict):
            yield from (each for each in (part.get("pattern"),) if isinstance(each, str))
            named = part.get("patternProperties")
            yield from named if isinstance(named, dict) else ()
        inside += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def _refuse_repeats(name: str, expression: str) -> None:
    counts = [int(digits[-9:]) for digits in re.findall(r"[{,]\s*([0-9]+)\s*(?=[},])", expression)]
    if max(counts, default=0) > REPEATS:
        raise ConfigError(
            f"{name} repeats something {max(counts):,} times",
            f"At most {REPEATS:,} are possible; * and + have no limit.",
        )


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtraError("Text that is bound by regex or json_schema", "llguidance", "grammar") from None
    return llguidance


def _reason(matcher: Any) -> str:
    """The sentence in the library's message, which may draw the place of a fault in several lines."""
    first, *others = matcher.get_error().strip().splitlines()
    if first == "NoExtensionBias":
        return "no token of this vocabulary fits"
    told = next((line.removeprefix("error: ") for line in others if line.startswith("error: ")), first)
    return f"{told:.200}"
