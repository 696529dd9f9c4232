"""A vocabulary of bytes that grows with what is read: byte-pair encoding, a pair at a time, on top of what is there."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from homespun.data.tokenizer import Tokenizer, byte_alphabet
from homespun.errors import ConfigError

_WORD = re.compile(r" ?\w{1,24}| ?[^\w\s]{1,24}|\s{1,16}")  # tokens stay within a word and the space before it


@dataclass(frozen=True)
class Grown:
    """A tokenizer, and of each of its new ids the two that it is made of."""

    tokenizer: Tokenizer
    parts: dict[int, tuple[int, int]] = field(default_factory=dict)


def grow(tokenizer: Tokenizer, text: str, limit: int) -> Grown:
    """Adds the pair of tokens that occurs most often in the words of `text`, again and again, while it occurs twice.

    At most `limit` ids are made; no id changes its meaning. Raises `ConfigError` unless the vocabulary is one over
    bytes.
    """
    definition = json.loads(tokenizer.to_json())
    model = definition["model"]
    split = json.dumps(definition["pre_tokenizer"])
    if model["type"] != "BPE" or '"ByteLevel"' not in split or not set(byte_alphabet()) <= model["vocab"].keys():
        raise ConfigError("Only a vocabulary over bytes can grow", "Use tokenizer.kind=bytes.")
    words = Counter(tuple(tokenizer.encode(word)) for word in _WORD.findall(text))
    names = {number: name for name, number in model["vocab"].items()}
    names |= {token["id"]: token["content"] for token in definition["added_tokens"]}
    merges, parts = list(model["merges"]), {}
    while len(names) < limit:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], [-id for id in pair]), default=None)
        if best is None or pairs[best] < 2:
            break
        new = max(names) + 1
        names[new], parts[new] = names[best[0]] + names[best[1]], best
        merges.append([names[best[0]], names[best[1]]])
        words = Counter({_joined(word, best, new): count for word, count in words.items()})
    if not parts:
        return Grown(tokenizer)
    model["vocab"] = {name: number for number, name in sorted(names.items())}  # special tokens too: they keep their ids
    model["merges"] = merges
    definition["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": _WORD.pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    return Grown(Tokenizer(json.dumps(definition)), parts)


def _joined(word: tuple[int, ...], pair: tuple[int, int], new: int) -> tuple[int, ...]:
    found: list[int] = []
    for token in word:
        if found and (found[-1], token) == pair:
            found[-1] = new
        else:
            found.append(token)
    return tuple(found)
