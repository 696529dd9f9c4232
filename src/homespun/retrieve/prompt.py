"""Puts passages into prompts, as far as the context has room.

Before a text that is to be continued they stand as paragraphs of it. In a conversation they stand in the last question,
behind it, as the context of a question stands in training (`data/conversation.py`): so no template has to know them.
What is written in a passage is ordinary text, whatever it spells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from homespun.data.conversation import ROLES, USER
from homespun.errors import ConfigError
from homespun.generate.engine import Generator
from homespun.retrieve.protocol import Passage, Retriever

T = TypeVar("T")


@dataclass(frozen=True)
class Grounded(Generic[T]):
    """A prompt with the `passages` that stand in it, none at all where nothing was looked for. `note`: why there are
    none, where people should know."""

    prompt: T
    passages: tuple[Passage, ...] | None = None
    note: str | None = None

    def to_dicts(self) -> list[dict[str, Any]]:
        """The passages as plain data for JSON."""
        return [passage.to_dict() for passage in self.passages or ()]


class Grounding:
    """A retriever, and how many of its passages a prompt gets at most."""

    def __init__(self, retriever: Retriever, passages: int = 3):
        if passages < 1:
            raise ConfigError(f"passages = {passages} leaves none", "Ask for one at least.")
        self.retriever, self.count = retriever, passages

    def prompt(self, text: str, generator: Generator, max_tokens: int, limit: int | None = None) -> Grounded[str]:
        """A text to be continued, behind its passages. `max_tokens`: that are going to be written; `limit`: tokens that
        the prompt may have, where that is fewer than the context has room for."""
        most = min(room(generator, max_tokens), limit or math.inf)

        def fits(prompt: str) -> bool:
            return len(generator.begin) + len(generator.tokenizer.encode(prompt)) <= most

        return self._ground(text, text, lambda texts: "\n\n".join([*texts, text]), fits)

    def messages(
        self, messages: Sequence[Mapping[str, str]], fits: Callable[[list[dict[str, str]]], bool]
    ) -> Grounded[list[dict[str, str]]]:
        """A conversation, with passages behind its last question; `fits` says whether the model can read it."""
        plain = [dict(message) for message in messages]
        asked = [place for place, message in enumerate(plain) if ROLES.get(message["role"]) == USER]
        if not asked:
            return Grounded(plain)
        question = plain[asked[-1]]["content"]

        def put(texts: list[str]) -> list[dict[str, str]]:
            told = {**plain[asked[-1]], "content": "\n\n".join([question, *texts])}
            return [*plain[: asked[-1]], told, *plain[asked[-1] + 1 :]]

        return self._ground(question, plain, put, fits)

    def _ground(self, query: str, bare: T, put: Callable[[list[str]], T], fits: Callable[[T], bool]) -> Grounded[T]:
        """The best passages that fit together, whole; one that does not fit is passed over."""
        if not query.strip():
            return Grounded(bare)
        found = self.retriever.retrieve(query, self.count)
        prompt = bare
        taken: list[Passage] = []
        for passage in found:
            longer = put([*(each.text for each in taken), passage.text])
            if fits(longer):
                prompt, taken = longer, [*taken, passage]
        if taken:
            return Grounded(prompt, tuple(taken))
        none_fits = f"{len(found)} found, but the context has room for none beside the prompt and its answer"
        return Grounded(bare, (), f"no passage is used: {none_fits if found else 'none was found'}")


def room(generator: Generator, max_tokens: int) -> int:
    """How many tokens a prompt may have, so that the answer fits, too: half the context at least, as in a chat."""
    context = generator.model.config.context
    return context - min(max_tokens, context // 2)
