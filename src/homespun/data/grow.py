"""A vocabulary of bytes that grows with what is read: byte-pair encoding, a pair at a time, on top of what is there."""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from homespun.data.tokenizer import Tokenizer, byte_alphabet
from homespun.errors import ConfigError

_WORD = re.compile(r" ?\w{1,24}| ?[^\w\s]{1,24}|\s{1,16}")  # tokens stay within a word and the space before it

Pair = tuple[int, int]


@dataclass(frozen=True)
class Grown:
    """A tokenizer, and of each of its new ids the two that it is made of."""

    tokenizer: Tokenizer
    parts: dict[int, Pair] = field(default_factory=dict)


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
    spelled = Counter(match[0] for match in _WORD.finditer(text))
    words = _Words(zip(tokenizer.encode_batch(list(spelled)), spelled.values(), strict=True))
    names = {number: name for name, number in model["vocab"].items()}
    names |= {token["id"]: token["content"] for token in definition["added_tokens"]}
    merges, parts = list(model["merges"]), dict[int, Pair]()
    first = max(names) + 1
    while len(names) < limit and (best := words.best()) is not None:
        new = first + len(parts)
        names[new], parts[new] = names[best[0]] + names[best[1]], best
        merges.append([names[best[0]], names[best[1]]])
        words.join(best, new)
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


class _Words:
    """The words of a text as ids, and how often each pair of neighbours occurs in all of them.

    A pair's number only falls once its tokens are there, so what the heap says of it is never too little.
    """

    def __init__(self, words: Iterable[tuple[list[int], int]]):
        self._words = list(words)
        self._pairs: Counter[Pair] = Counter()
        self._places: defaultdict[Pair, set[int]] = defaultdict(set)  # the words in which it is, or was
        for place, (word, count) in enumerate(self._words):
            self._count(place, word, count)
        self._heap = [(-count, pair) for pair, count in self._pairs.items()]
        heapq.heapify(self._heap)

    def best(self) -> Pair | None:
        """The pair that occurs most often, of several the one of the lowest ids; none where none occurs twice."""
        while self._heap:
            told, pair = self._heap[0]
            count = self._pairs[pair]
            if count == -told:
                return pair if count > 1 else None
            heapq.heapreplace(self._heap, (-count, pair))
        return None

    def join(self, pair: Pair, new: int) -> None:
        """Makes one token of a pair wherever it is."""
        touched = set()
        for place in sorted(self._places.pop(pair)):
            word, count = self._words[place]
            joined = _joined(word, pair, new)
            if len(joined) < len(word):
                self._count(place, word, -count)
                touched |= self._count(place, joined, count)
                self._words[place] = (joined, count)
        for found in touched:
            if new in found:
                heapq.heappush(self._heap, (-self._pairs[found], found))

    def _count(self, place: int, word: Sequence[int], count: int) -> set[Pair]:
        pairs = list(pairwise(word))
        for pair in pairs:
            self._pairs[pair] += count
            if count > 0:
                self._places[pair].add(place)
        return set(pairs)


def _joined(word: Sequence[int], pair: Pair, new: int) -> list[int]:
    found: list[int] = []
    for token in word:
        if found and (found[-1], token) == pair:
            found[-1] = new
        else:
            found.append(token)
    return found
