"""A conversation with a model: what was said, and what is said next."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from homespun.data.conversation import ROLES, SYSTEM, USER, render
from homespun.errors import DataError
from homespun.generate.engine import Generator
from homespun.generate.records import Token
from homespun.generate.sampling import Sampling
from homespun.generate.template import Template
from homespun.train.disk import replace
from homespun.train.manifest import from_json

_LIMIT = 2**24  # bytes of a saved conversation

Messages = list[dict[str, str]]
LookUp = Callable[[Messages, Callable[[Messages], bool]], Messages]


class Dialogue:
    """Turns of a user and a model. `messages` are what was said, `{role, content}`; `system` stands before them.

    A turn is a question with what was answered. Where the turns outgrow the model's context, the oldest are left out
    of the prompt, whole: `dropped` says how many were, the last time. They stay among `messages`. Room is kept for
    `sampling.max_tokens`, but for no more than half the context.

    `look_up` puts what it finds into the last question before it is read, and is told whether that still fits; it never
    changes what was said.
    """

    def __init__(self, generator: Generator, template: Template, sampling: Sampling, system: str | None = None):
        self.generator, self.template, self.sampling, self.system = generator, template, sampling, system
        self.messages: list[dict[str, str]] = []
        self.dropped = 0
        self.look_up: LookUp | None = None
        self._tries = 0  # of the newest answer

    @property
    def turns(self) -> int:
        """How many questions were asked."""
        return len(_questions(self.messages))

    def reply(self, text: str) -> Iterator[str]:
        """Asks, and gives the answer in pieces; what was written stays when nobody waits for the rest."""
        return self._answer([*self.messages, {"role": "user", "content": text}], tries=0)

    def retry(self) -> Iterator[str]:
        """Another answer to the last question, instead of the first; a seed counts up. Raises `DataError`."""
        return self._answer(self.messages[: self._newest() + 1], self._tries + 1)

    def undo(self) -> None:
        """Takes the last question and its answer away. Raises `DataError` when there is none."""
        self.messages, self._tries = self.messages[: self._newest()], 0

    def clear(self) -> None:
        """Forgets all turns; the system prompt stays."""
        self.messages, self.dropped, self._tries = [], 0, 0

    def save(self, path: Path) -> None:
        """Writes the conversation as a row of data, `{"messages": [...]}`, which `load` reads, and training too.

        Raises `DataError` where it cannot be written, or something else would be overwritten.
        """
        if path.exists():
            _read(path)
        row = json.dumps({"messages": self._with_system(self.messages)}, ensure_ascii=False)
        try:
            replace(path, f"{row}\n".encode("utf-8", "backslashreplace"))  # half a surrogate pair is an escape in JSON
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}", "Name another file.") from None

    def load(self, path: Path) -> None:
        """Goes on with a conversation that was saved, and with its system prompt. Raises `DataError` for what is none,
        and changes nothing then."""
        messages = _read(path)
        self.clear()
        self.system = messages.pop(0)["content"] if messages and ROLES[messages[0]["role"]] == SYSTEM else None
        self.messages = messages

    def _answer(self, messages: list[dict[str, str]], tries: int) -> Iterator[str]:
        ids = self._prompt(messages)
        changes: dict[str, Any] = {"stop": [*self.sampling.stop, *self.template.stops]}
        if self.sampling.seed is not None:
            changes["seed"] = (self.sampling.seed + tries) % 2**63
        tokens = self.generator.tokens([ids], self.sampling.model_copy(update=changes))
        answer = {"role": "assistant", "content": ""}
        self.messages, self._tries = [*messages, answer], tries
        return self._write(tokens, answer)

    def _write(self, tokens: Iterator[Token], answer: dict[str, str]) -> Iterator[str]:
        for token in tokens:
            answer["content"] += token.text
            if token.text:
                yield token.text

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids, from the first turn with which they leave room for an answer, or from the last one."""
        context = self.generator.model.config.context
        most = context - min(self.sampling.max_tokens, context // 2)
        starts = [0, *_questions(messages)[1:]]
        if self.look_up is not None:
            messages = self.look_up(messages, lambda told: len(self._ids(told[starts[-1] :])) <= most)
        self.dropped = bisect_left(starts[:-1], True, key=lambda start: len(self._ids(messages[start:])) <= most)
        return self._ids(messages[starts[self.dropped] :])

    def _ids(self, messages: list[dict[str, str]]) -> list[int]:
        return self.template.prompt(self._with_system(messages))

    def _with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *messages]

    def _newest(self) -> int:
        """Where the last question stands."""
        if not (starts := _questions(self.messages)):
            raise DataError("Nothing was asked yet", "Ask something first.")
        return starts[-1]


def _questions(messages: list[dict[str, str]]) -> list[int]:
    return [place for place, message in enumerate(messages) if ROLES[message["role"]] == USER]


def _read(path: Path) -> list[dict[str, str]]:
    """The messages of a saved conversation."""
    try:
        if path.stat().st_size > _LIMIT:
            raise ValueError(f"it is larger than {_LIMIT:,} bytes")
        messages: Any = from_json(path.read_bytes()).get("messages")
        if messages != []:
            render({"messages": messages})
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "Name a conversation that was saved.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} holds no conversation: {error}", "Name another file.") from None
    except DataError as error:
        raise DataError(f"{path} holds no conversation: {error.problem}", "Name another file.") from None
    return [{"role": message["role"], "content": message["content"]} for message in messages]
