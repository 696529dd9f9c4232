"""How a conversation becomes the prompt of an answer.

Messages are `{role, content}` with the roles of `data/conversation.py`. Special tokens stand only where a template puts
them: what is said in a message is ordinary text, whatever it spells.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from homespun.data import conversation
from homespun.data.conversation import ASSISTANT, ROLES, SYSTEM, USER, Special
from homespun.data.tokenizer import Tokenizer
from homespun.generate.engine import Generator
from homespun.generate.sandbox import Sandbox
from homespun.train.folder import environment_of
from homespun.train.manifest import from_json
from homespun.train.recipe import Recipe

Messages = Sequence[Mapping[str, str]]

_NAMES = {SYSTEM: "system", USER: "user", ASSISTANT: "assistant"}


class Template(Protocol):
    """Makes prompts of conversations.

    `conversational`: whether the model was trained to answer, as far as its folder tells.
    """

    conversational: bool

    @property
    def stops(self) -> list[str]:
        """What ends an answer besides the end token."""
        ...

    def prompt(self, messages: Messages) -> list[int]:
        """The ids up to where the assistant's answer begins. Raises `DataError` for messages that are none."""
        ...


class Trained:
    """The template of `data/conversation.py`, for models trained on such rows here."""

    conversational = True

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.stops = [_stop(mark) for mark in _NAMES if mark.name not in tokenizer.special]

    def prompt(self, messages: Messages) -> list[int]:
        """See `Template`."""
        answer = {"role": "assistant", "content": ""}
        return conversation.encode(conversation.render({"messages": [*_plain(messages), answer]}), self._tokenizer)


class Plain:
    """Turns spelled in words, for models that only go on with a text; `begin` stands before it."""

    conversational = False

    def __init__(self, tokenizer: Tokenizer, begin: Sequence[int] = ()):
        self._tokenizer, self._begin = tokenizer, list(begin)
        self.stops = [_stop(mark) for mark in _NAMES]

    def prompt(self, messages: Messages) -> list[int]:
        """See `Template`."""
        turns = [ROLES[message["role"]].marker + message["content"] for message in _plain(messages)]
        return self._begin + self._tokenizer.encode("".join([*turns, ASSISTANT.marker]).lstrip("\n"))


class Jinja:
    """The template that came with an imported model, filled in another process (`Sandbox`).

    `names`: the values that templates expect beside the messages, such as bos_token. The template sees a stand-in for
    each content, with the white space around it; so it can trim a content, but not look into it or change it.
    """

    conversational = True

    def __init__(self, template: str, tokenizer: Tokenizer, names: Mapping[str, str] | None = None):
        self._sandbox, self._tokenizer, self._names = Sandbox(template), tokenizer, dict(names or {})
        longest_first = sorted(tokenizer.special, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    @cached_property
    def stops(self) -> list[str]:
        """What stands between an answer and the next question, where it is words: special tokens are never text."""
        turns = [{"role": role, "content": "-"} for role in ("user", "assistant", "user")]
        text, contents = self._render(turns)
        _, answer, question = contents
        between = text.partition(answer)[2].partition(question)[0]
        return [] if self._special.search(between) or not between.strip() else [between.rstrip()]

    def prompt(self, messages: Messages) -> list[int]:
        """See `Template`."""
        text, contents = self._render(_plain(messages))
        stand_in = re.compile("|".join(map(re.escape, contents)))
        ids: list[int] = []
        for place, part in enumerate(self._special.split(text)):
            if place % 2:
                ids.append(self._tokenizer.special[part])
            else:
                ids += self._tokenizer.encode(stand_in.sub(lambda found: contents[found[0]], part))
        return ids

    def _render(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, dict[str, str]]:
        """The text with a stand-in for each content, and the contents by their stand-ins."""
        secret, contents, shown = secrets.token_hex(16), {}, []
        for number, message in enumerate(messages):
            body, stand_in = message["content"].strip(), f"{secret}n{number}n"
            contents[stand_in] = body
            content = message["content"].replace(body, stand_in) if body else message["content"]
            shown.append({"role": _NAMES[ROLES[message["role"]]], "content": content})
        more = {"tools": None, "documents": None, "add_generation_prompt": True}
        return self._sandbox.render(self._names | more | {"messages": shown}), contents


class Source(Protocol):
    """What `template_of` asks of a run."""

    @property
    def folder(self) -> Path: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def generator(self) -> Generator: ...


def template_of(run: Source) -> Template:
    """The template that the run was trained with; else the one it was imported with; else plain words."""
    environment = environment_of(run.folder)
    if run.recipe.tuned is not None or environment.get("conversations") or environment.get("taught"):
        return Trained(run.tokenizer)
    path = run.folder / "imported.json"
    memory: dict[str, Any] = from_json(path.read_bytes()) if path.is_file() else {}  # loading the run has checked it
    if memory.get("chat_template") is None:
        return Plain(run.tokenizer, run.generator.begin)
    spelled = {key: _spelled(value) for key, value in memory.get("tokenizer", {}).items() if key.endswith("_token")}
    return Jinja(memory["chat_template"], run.tokenizer, {key: text for key, text in spelled.items() if text})


def _plain(messages: Messages) -> list[dict[str, str]]:
    """The messages as dictionaries. Raises `DataError` unless each has a known role and text."""
    plain = [dict(message) if isinstance(message, Mapping) else message for message in messages]
    conversation.render({"messages": plain})
    return plain


def _stop(mark: Special) -> str:
    return mark.marker.rstrip()


def _spelled(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None
