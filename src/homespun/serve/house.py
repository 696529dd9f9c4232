"""What the routes of a server share, and how they wait: for the client's body, and no longer than they should."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from homespun.serve.errors import NO_RETRY, RETRY, Gone, Refusal, to_json
from homespun.serve.limits import Limits
from homespun.serve.metrics import Metrics
from homespun.serve.served import Runs

THREADS = 4  # that read requests and files beside the event loop

T = TypeVar("T")


class House:
    """`connections`: how many are open. `closing`: nothing new is begun. `stopped`: what still runs has to end."""

    def __init__(self, runs: Runs, limits: Limits):
        self.runs, self.limits, self.metrics = runs, limits, Metrics()
        self.connections, self.closing = 0, False
        self.stopped = asyncio.Event()
        self._threads = CapacityLimiter(THREADS)

    async def beside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function in a thread, so that others need not wait for it."""
        return await to_thread.run_sync(function, *arguments, limiter=self._threads)

    async def body(self, request: Request) -> bytes:
        """The body of a request, which has to be JSON. Raises a `Refusal` when it is too large or too slow."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "The content-type should be application/json", "unsupported_media_type")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "The body should not be compressed", "unsupported_media_type")
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or len(declared) > 18 or int(declared) > self.limits.body:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._read(request.receive), self.limits.patience)
        except asyncio.TimeoutError:
            close = {"Connection": "close"}
            raise Refusal(408, "The body did not arrive in time", "request_timeout", headers=close) from None

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            if len(body) > self.limits.body:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The body is larger than {self.limits.body:,} bytes", "request_too_large")

    async def bounded(self, work: Coroutine[Any, Any, T], receive: Receive) -> T:
        """The result of `work`, which is cancelled when the client leaves, its time is over, or the server ends.

        Raises `Gone` or a `Refusal` then. The body must have been read before.
        """
        task = asyncio.ensure_future(work)
        gone, stopped = asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(self.stopped.wait())
        tasks = {task, gone, stopped}
        try:
            await asyncio.wait(tasks, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise Gone
            if stopped.done():
                raise ending()
            raise Refusal(504, f"The answer took longer than {self.limits.seconds:g} s", "timeout", headers=NO_RETRY)
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def ending() -> Refusal:
    """What is said when the server goes down."""
    return Refusal(503, "The server is ending", "server_ending", headers=RETRY)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(to_json(value), status, headers, "application/json")


def refused(refusal: Refusal) -> Response:
    """The answer that a refusal is."""
    return json_response(refusal.to_dict(), refusal.status, refusal.headers)
