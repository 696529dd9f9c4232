"""The texts of a ticket on their way to a client: all at once, or as server-sent events while they are written."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from homespun.errors import HomespunError
from homespun.generate.records import Token
from homespun.serve.errors import Gone, Refusal, refusal_of, to_json
from homespun.serve.house import House
from homespun.serve.retrieving import Retrieved
from homespun.serve.scheduler import Ticket
from homespun.serve.schema import Writing
from homespun.serve.shapes import Shape


class Answer:
    """What was asked for, and the ticket for it. `fingerprint`: changes with the weights. `retrieved`: the passages in
    its prompts, which the end of the answer tells."""

    def __init__(
        self, asked: Writing, ticket: Ticket, shape: Shape, fingerprint: str, retrieved: Retrieved = None
    ):  # fmt: skip
        self.asked, self.ticket, self._shape = asked, ticket, shape
        self._head = {
            "id": f"{shape.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": fingerprint,
        }
        self._end = {} if retrieved is None else {"retrieved": retrieved}
        self._untold = set(range(len(ticket.rows)))  # texts of whose prompts the ids were not told yet

    async def whole(self) -> dict[str, Any]:
        """The answer, when all texts are finished."""
        texts: list[list[Token]] = [[] for _ in self.ticket.rows]
        async for token in self.ticket:
            texts[token.row].append(token)
        choices = [
            self._choice(row, self._shape.choice(tokens, tokens[-1].finish), tokens) for row, tokens in enumerate(texts)
        ]
        usage = self._usage(sum(map(len, texts)))
        return self._head | {"object": self._shape.whole, "choices": choices, "usage": usage} | self._end

    async def events(self) -> AsyncIterator[bytes]:
        """The answer piece by piece. What arrived together goes together."""
        rows = range(len(self.ticket.rows))
        openings = [(row, self._shape.opening(row)) for row in rows]
        events = [self._event(row, choice, []) for row, choice in openings if choice is not None]
        if events:
            yield b"".join(events)
        held: list[list[Token]] = [[] for _ in rows]  # written, but not certain yet
        events, written, open_texts = [], 0, len(held)
        async for token in self.ticket:
            written += 1
            held[token.row].append(token)
            open_texts -= token.finish is not None
            if token.text or token.finish is not None:
                tokens, held[token.row] = held[token.row], []
                piece = self._shape.piece(token.row, tokens, token.finish)
                events.append(self._event(token.row, piece, tokens, None if open_texts else self._end))
            if events and not self.ticket.news:
                yield b"".join(events)
                events = []
        if self.asked.usage_in_stream:
            yield event(self._part([]) | {"usage": self._usage(written)})
        yield b"data: [DONE]\n\n"

    def _event(
        self, row: int, choice: dict[str, Any], tokens: list[Token], more: dict[str, Any] | None = None
    ) -> bytes:
        return event(self._part([self._choice(row, choice, tokens)]) | (more or {}))

    def _part(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        part = self._head | {"object": self._shape.part, "choices": choices}
        return part | {"usage": None} if self.asked.usage_in_stream else part

    def _choice(self, row: int, choice: dict[str, Any], tokens: list[Token]) -> dict[str, Any]:
        choice = {"index": row} | choice
        if self.asked.return_token_ids:
            choice["token_ids"] = [token.id for token in tokens]
            if row in self._untold:
                self._untold.remove(row)
                written = self.ticket.rows[row]
                choice["prompt_token_ids"] = written.ids[: written.prompt]
        return choice

    def _usage(self, written: int) -> dict[str, int]:
        """A prompt counts once, however many texts go on from it."""
        prompts = sum(row.prompt for row in self.ticket.rows[:: self.asked.n or 1])
        return {"prompt_tokens": prompts, "completion_tokens": written, "total_tokens": prompts + written}


class Events(Response):
    """A stream of server-sent events. What goes wrong after its beginning is told as the last event."""

    media_type = "text/event-stream"

    def __init__(self, house: House, answer: Answer):
        super().__init__()
        del self.headers["content-length"]
        self._house, self._answer = house, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._answer.ticket:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._house.bounded(self._send(send), receive)
            except Gone:
                return
            except (HomespunError, Refusal) as error:
                last = event(refusal_of(error).to_dict())
                await send({"type": "http.response.body", "body": last, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send) -> None:
        async for events in self._answer.events():
            await send({"type": "http.response.body", "body": events, "more_body": True})


def event(value: Any) -> bytes:
    """A server-sent event of JSON."""
    return b"data: " + to_json(value) + b"\n\n"
