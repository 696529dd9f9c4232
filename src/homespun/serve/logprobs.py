"""Log-probabilities of written tokens in the two shapes of OpenAI, each with our ids beside the texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from homespun.data.tokenizer import Tokenizer
from homespun.generate.records import Token

LEAST = -9999.0  # OpenAI's word for what is impossible; JSON has no infinity


def chat_logprobs(tokens: Sequence[Token], tokenizer: Tokenizer) -> dict[str, Any]:
    """The shape of chat completions."""
    content = []
    for token in tokens:
        told = [_entry(each.id, each.log_probability, tokenizer) for each in token.alternatives]
        content.append(_entry(token.id, token.log_probability, tokenizer) | {"top_logprobs": told})
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokens: Sequence[Token], tokenizer: Tokenizer, offset: int, alternatives: int
) -> dict[str, Any]:
    """The shape of completions. `offset`: where in the text the first token begins.

    The token itself is always among the most likely ones; of two ids with the same text the more likely one is told.
    """
    offsets, top, top_ids = [], [], []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
        likely: dict[str, tuple[float, int]] = {}
        told = [(each.id, each.log_probability) for each in token.alternatives]
        for number, value in [*told, (token.id, token.log_probability)]:
            likely.setdefault(_text(number, tokenizer), (_finite(value), number))
        top.append({text: value for text, (value, _) in likely.items()})
        top_ids.append({text: number for text, (_, number) in likely.items()})
    return {
        "tokens": [_text(token.id, tokenizer) for token in tokens],
        "token_logprobs": [_finite(token.log_probability) for token in tokens],
        "top_logprobs": top if alternatives else None,
        "text_offset": offsets,
        "token_ids": [token.id for token in tokens],
        "top_ids": top_ids if alternatives else None,
    }


def _entry(number: int, log_probability: float, tokenizer: Tokenizer) -> dict[str, Any]:
    piece = tokenizer.piece(number)
    text = piece.decode("utf-8", "replace")
    return {"token": text, "logprob": _finite(log_probability), "bytes": list(piece), "id": number}


def _text(number: int, tokenizer: Tokenizer) -> str:
    return tokenizer.piece(number).decode("utf-8", "replace")


def _finite(log_probability: float) -> float:
    return max(log_probability, LEAST)
