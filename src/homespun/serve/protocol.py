"""Connections that are bounded: how many there are, how long a client may take, how much it may send unasked."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from homespun.serve.errors import Refusal, to_json
from homespun.serve.house import House

SPARE = 32  # connections beyond the limit that are told so; more are closed at once
UNASKED = 2**24  # bytes that may arrive for nobody, after a body that was refused or beside an answer


class Protocol(H11Protocol):
    """uvicorn's protocol, which by itself waits for ever for a request's head and for a client that does not read."""

    def __init__(self, *arguments: Any, house: House, **named: Any):
        super().__init__(*arguments, **named)
        self._house = house
        self._timer: asyncio.TimerHandle | None = None
        self._owing = self._taken = 0.0  # since when we wait for a head; when the client had last taken everything
        self._unasked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._house.connections += 1
        self._owing = self._taken = self.loop.time()
        if self._house.connections > self._house.limits.connections + SPARE:
            self.transport.abort()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._house.connections -= 1
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        cycle = self.cycle
        read = cycle is not None and (cycle.response_complete or not cycle.more_body)
        self._unasked = self._unasked + len(data) if read else 0
        if self._unasked > UNASKED:
            self.transport.abort()
            return
        super().data_received(data)
        if read:
            self.flow.resume_reading()  # else nobody would see the client leave

    def send_400_response(self, msg: str) -> None:
        """Garbage in place of a request."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # it was a request until its body came: nobody else may answer it
            self.cycle.message_event.set()
        body = to_json(Refusal(400, "That is no HTTP request that can be read", "invalid_http").to_dict())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        answer = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Looks from time to time whether the client does its part."""
        now, patience = self.loop.time(), self._house.limits.patience
        if not self.transport.get_write_buffer_size():
            self._taken = now
        if self.cycle is not None and not self.cycle.response_complete:
            self._owing = now
        if now - min(self._owing, self._taken) > patience:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(patience / 8, self._watch)
