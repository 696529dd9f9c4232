"""A grammar of texts that both writes and recognises: rules choose sentences, variables fill their slots.

A *variable* is a thing of the story (the hero, the toy). It has entries, and an entry gives every form under which a
sentence may speak of it: `{"hero": "Mia", "he": "she", "his": "her"}`. One entry is drawn per text, so all slots of a
variable agree by construction. A *rule* is a list of alternatives, each made of whole sentences and `<rules>`.

The recogniser reads the same sentences. While it walks along a template, each variable keeps the set of its entries
that still fit what was read (a bit mask), so agreement inside a sentence is checked exactly, not approximately.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log2
from string import Formatter

Entry = Mapping[str, str]  # slot -> the words that fill it
BREAK = "¶"  # an alternative that is only this sign starts a new paragraph


@dataclass(frozen=True)
class Slot:
    """A place for one form of a variable: the strings that may stand there, each with the mask of its entries."""

    variable: str
    options: tuple[tuple[str, int], ...]


Template = tuple[str | Slot, ...]


class Grammar:
    """The texts that `rules` can write from `start`, with slots filled from `variables`.

    variables: name -> entries, all with the same slots, no slot in two variables.
    rules: name -> alternatives; `<name>` in an alternative stands for a rule, `{slot}` for a form of a variable.
    Every reference must exist; no rule may reach itself.
    """

    def __init__(self, variables: Mapping[str, Sequence[Entry]], rules: Mapping[str, Sequence[str]], start: str):
        self.start = start
        self.variables = {name: tuple(entries) for name, entries in variables.items()}
        self.variable_of = {slot: name for name, entries in variables.items() for slot in entries[0]}
        self.rules = {
            name: tuple(tuple(re.findall(r"<\w+>|[^<\s][^<]*[^<\s]|\S", alternative)) for alternative in alternatives)
            for name, alternatives in rules.items()
        }

    def draw(self, uniform: Callable[[], float]) -> tuple[str, Entry, float]:
        """Choose one text with numbers from `uniform` (in [0, 1)).

        Returns the text with its slots open, the words for every slot, and the bits that the choices of alternatives
        are worth: minus the base-2 logarithm of their probability.
        """
        parts: list[str] = []
        bits = self._expand(self.start, uniform, parts)
        words: dict[str, str] = {}
        for entries in self.variables.values():
            words.update(entries[int(uniform() * len(entries))])
        return " ".join(parts).replace(f" {BREAK} ", "\n\n"), words, bits

    def _expand(self, rule: str, uniform: Callable[[], float], parts: list[str]) -> float:
        alternatives = self.rules[rule]
        bits = log2(len(alternatives))
        for part in alternatives[int(uniform() * len(alternatives))]:
            if part[0] == "<":
                bits += self._expand(part[1:-1], uniform, parts)
            else:
                parts.append(part)
        return bits

    def bits_of_slots(self, text: str) -> float:
        """The bits needed to fill the open slots of a text: each variable it names counts once."""
        named = {self.variable_of[slot] for _, slot, _, _ in Formatter().parse(text) if slot}
        return sum(log2(len(self.variables[name])) for name in named)

    @cached_property
    def templates(self) -> tuple[Template, ...]:
        """Every sentence of every rule, with its slots resolved; compiled at the first use."""
        found = {
            sentence: None
            for alternatives in self.rules.values()
            for alternative in alternatives
            for part in alternative
            if part[0] != "<" and part != BREAK
            for sentence in sentences(part)
        }
        return tuple(tuple(self._resolve(sentence)) for sentence in found)

    def _resolve(self, sentence: str) -> Iterator[str | Slot]:
        for literal, slot, _, _ in Formatter().parse(sentence):
            if literal:
                yield literal
            if slot:
                masks: dict[str, int] = {}
                for number, entry in enumerate(self.variables[self.variable_of[slot]]):
                    masks[entry[slot]] = masks.get(entry[slot], 0) | 1 << number
                yield Slot(self.variable_of[slot], tuple(masks.items()))

    def parses(self, sentence: str) -> bool:
        """Whether the grammar can write exactly this sentence."""
        return any(_fits(template, sentence, 0, {}) for template in self.templates)


def _fits(template: Template, text: str, start: int, possible: Mapping[str, int]) -> bool:
    """Whether the whole of text[start:] fits the template, given the entries still `possible` for each variable."""
    if not template:
        return start == len(text)
    piece, rest = template[0], template[1:]
    if isinstance(piece, str):
        return text.startswith(piece, start) and _fits(rest, text, start + len(piece), possible)
    allowed = possible.get(piece.variable, -1)  # all bits: nothing was read about it yet
    return any(
        _fits(rest, text, start + len(words), {**possible, piece.variable: allowed & mask})
        for words, mask in piece.options
        if allowed & mask and text.startswith(words, start)
    )


def sentences(text: str, complete: bool = False) -> list[str]:
    """Split a text into sentences; a mark inside quotes, or before a lower-case word, ends none.

    `"Why?" asked Tom.` is one sentence, `"Wait," said Tom. "I am here."` is two. The end of a paragraph always ends a
    sentence. `complete` leaves out the last one where the text stops before its end.
    """
    found: list[str] = []
    for paragraph in text.split("\n"):
        start, quoted = 0, False
        for mark in re.finditer(r'["]|[.!?](?=("?)(\s+(?![a-z\s])|$))', paragraph):
            if mark[0] == '"':
                quoted = not quoted
                ended = False
            else:
                ended = quoted == bool(mark[1])
            if ended:
                end = mark.end() + len(mark[1])
                found.append(paragraph[start:end].strip())
                start = end
        found.append(paragraph[start:].strip())
    if complete:
        found.pop()  # what follows the last finished sentence; nothing where the text ends with one
    return [sentence for sentence in found if sentence]
