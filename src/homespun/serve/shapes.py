"""The two ways of OpenAI to tell a written text: as a completion, and as a turn of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from homespun.data.tokenizer import Tokenizer
from homespun.generate.records import Token
from homespun.serve.logprobs import chat_logprobs, completion_logprobs

Finish = Literal["stop", "length"] | None


class Shape(Protocol):
    """How an answer is called, and how some tokens of one text are told."""

    prefix: str
    whole: str
    part: str

    def choice(self, tokens: Sequence[Token], finish: Finish) -> dict[str, Any]:
        """A text that is finished."""
        ...

    def opening(self, text: int) -> dict[str, Any] | None:
        """What stands in a stream before the text of this number."""
        ...

    def piece(self, text: int, tokens: Sequence[Token], finish: Finish) -> dict[str, Any]:
        """The next part of a text in a stream."""
        ...


class Completions:
    """`texts`: what stands before each text, which is its prompt where it is to be repeated.

    `alternatives`: how many of the most likely tokens are told; none where no log-probabilities are.
    """

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], alternatives: int | None):
        self._tokenizer, self._alternatives = tokenizer, alternatives
        self._before = texts
        self._lengths = [0] * len(texts)

    def choice(self, tokens: Sequence[Token], finish: Finish) -> dict[str, Any]:
        """See `Shape`."""
        text = tokens[0].row
        return self._told(self._before[text] + _joined(tokens), 0, tokens, finish)

    def opening(self, text: int) -> dict[str, Any] | None:
        """See `Shape`."""
        return self._told(self._before[text], 0, (), None) if self._before[text] else None

    def piece(self, text: int, tokens: Sequence[Token], finish: Finish) -> dict[str, Any]:
        """See `Shape`."""
        start, words = self._lengths[text], _joined(tokens)
        self._lengths[text] += len(words)
        return self._told(words, start, tokens, finish)

    def _told(self, text: str, offset: int, tokens: Sequence[Token], finish: Finish) -> dict[str, Any]:
        logprobs = None
        if self._alternatives is not None and tokens:
            logprobs = completion_logprobs(tokens, self._tokenizer, offset, self._alternatives)
        return {"text": text, "logprobs": logprobs, "finish_reason": finish}


class Chat:
    """`logprobs`: whether log-probabilities are told."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, logprobs: bool):
        self._tokenizer, self._logprobs = tokenizer, logprobs

    def choice(self, tokens: Sequence[Token], finish: Finish) -> dict[str, Any]:
        """See `Shape`."""
        message = {"role": "assistant", "content": _joined(tokens), "refusal": None}
        return {"message": message, "logprobs": self._told(tokens), "finish_reason": finish}

    def opening(self, text: int) -> dict[str, Any] | None:
        """See `Shape`."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def piece(self, text: int, tokens: Sequence[Token], finish: Finish) -> dict[str, Any]:
        """See `Shape`."""
        words = _joined(tokens)
        delta = {"content": words} if words else {}
        return {"delta": delta, "logprobs": self._told(tokens), "finish_reason": finish}

    def _told(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        return chat_logprobs(tokens, self._tokenizer) if self._logprobs else None


def _joined(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)
