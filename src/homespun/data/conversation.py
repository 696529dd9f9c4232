"""Rows of data to text with turns: what a JSONL row means, and which special tokens stand where.

The template, the same for pairs and conversations::

    <|system|>...<|user|>question<|assistant|>answer<|endoftext|><|user|>next question<|assistant|>next answer

Every answer ends with the end of text: inside a row it is put here, after the last piece by the corpus, as after any
document. So a model that answers stops at `Tokenizer.end`. Nothing else is added: no spaces, no line breaks.
Text that spells a special token stays ordinary text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from homespun.data import tokenizer as names
from homespun.data.tokenizer import Tokenizer
from homespun.errors import DataError


@dataclass(frozen=True)
class Special:
    """A place in the template: the special token's name, and the plain text for a vocabulary that lacks it."""

    name: str
    marker: str


END = Special(names.END, "")  # every tokenizer has an end, whatever its name
USER = Special(names.USER, "\nUser:\n")
ASSISTANT = Special(names.ASSISTANT, "\nAssistant:\n")
SYSTEM = Special(names.SYSTEM, "\nSystem:\n")

ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "human": USER, "assistant": ASSISTANT, "model": ASSISTANT}
QUESTIONS = ("prompt", "instruction", "question")
CONTEXTS = ("input", "context")  # what some data sets put between an instruction and its answer
ANSWERS = ("completion", "response", "output", "answer")


def render(row: Mapping[str, Any]) -> list[str | Special]:
    """The pieces of one row, for `encode`.

    Rows may be `{messages: [{role, content}, ...]}`, `{text}`, or a pair of one of `QUESTIONS` and one of `ANSWERS`
    (`{prompt, completion}`, `{instruction, input, output}`, `{question, answer}` ...). Raises `DataError` that names
    the row's keys when it is none of these, or the key whose value is no text.
    """
    if row.get("messages") is not None:
        return _conversation(row["messages"])
    if row.get("text") is not None:
        return [_text(row, "text")]
    question, answer = (next((key for key in keys if row.get(key) is not None), None) for keys in (QUESTIONS, ANSWERS))
    if question is None or answer is None:
        keys = ", ".join(map(str, row)) or "no keys at all"
        raise DataError(
            f"A row has the keys {keys:.200}, which make no text",
            "Rows hold text, or prompt and completion, or messages with role and content.",
        )
    contexts = [_text(row, key) for key in CONTEXTS if row.get(key)]
    return [USER, "\n\n".join([_text(row, question), *contexts]), ASSISTANT, _text(row, answer)]


def encode(pieces: Iterable[str | Special], tokenizer: Tokenizer) -> list[int]:
    """The ids of the pieces; each is encoded apart, so a prompt's ids are a prefix of the whole conversation's.

    Where the vocabulary lacks a special token (GPT-2's has only the end of text) its plain-text marker is encoded.
    """
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, str):
            ids += tokenizer.encode(piece)
        elif piece == END:
            ids.append(tokenizer.end)
        elif piece.name in tokenizer.special:
            ids.append(tokenizer.special[piece.name])
        else:
            ids += tokenizer.encode(piece.marker)
    return ids


def encode_asked(pieces: Iterable[str | Special], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """The ids of a whole conversation, the end behind it included, and which of them the assistant says: its answers,
    each with the end that closes it."""
    ids: list[int] = []
    asked: list[bool] = []
    speaker: Special | None = None
    for piece in [*pieces, END]:
        if isinstance(piece, Special) and piece != END:
            speaker = piece
        found = encode([piece], tokenizer)
        said = speaker == ASSISTANT and piece != ASSISTANT
        ids += found
        asked += [said] * len(found)
    return ids, asked


def _conversation(messages: Any) -> list[str | Special]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"messages should be a list of turns, not {messages!r:.60}", "Write [{role, content}, ...].")
    pieces: list[str | Special] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise DataError(f"A message should hold role and content, not {message!r:.60}", "Write {role, content}.")
        role = ROLES.get(str(message.get("role")))
        if role is None:
            keys = ", ".join(map(str, message))
            problem = f"A message with the keys {keys:.200} has the role {message.get('role')!r:.60}"
            raise DataError(problem, f"Known: {', '.join(ROLES)}.")
        if len(pieces) > 1 and pieces[-2] == ASSISTANT:
            pieces.append(END)
        pieces += [role, _text(message, "content")]
    return pieces


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        keys = ", ".join(map(str, row))
        raise DataError(f"In a row with the keys {keys:.200}, {key} is no text: {value!r:.60}", "Write a string.")
    return value
