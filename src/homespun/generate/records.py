"""What is known about a written text and each of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Alternative:
    """A token that could have been chosen."""

    id: int
    text: str
    log_probability: float


@dataclass(frozen=True)
class Token:
    """A token that was written.

    `row`: which of the texts it belongs to. `text`: what became certain with it: whole characters, and nothing that may
    be part of a stop string; joined, the pieces of a row are its text. `log_probability`: natural logarithm, under the
    model's own distribution, before any control. `finish`: set at the last token of a row: "stop" at the end token or a
    stop string, "length" at `max_tokens`.
    """

    row: int
    id: int
    text: str
    log_probability: float
    alternatives: tuple[Alternative, ...] = ()
    finish: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class Completion:
    """A finished text: the continuation only. `seed` gives the same text again, alone and as the first of its call."""

    prompt: str
    text: str
    finish: Literal["stop", "length"]
    seed: int
    tokens: tuple[Token, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; see docs/generation.md."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "finish": self.finish,
            "seed": self.seed,
            "tokens": [_token_dict(token) for token in self.tokens],
        }


def _token_dict(token: Token) -> dict[str, Any]:
    told = [{"id": a.id, "text": a.text, "log_probability": a.log_probability} for a in token.alternatives]
    plain = {"id": token.id, "text": token.text, "log_probability": token.log_probability}
    return plain | {"alternatives": told} if told else plain
