"""What stands before every route: who may ask, from where, and what every answer carries."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homespun.serve.errors import RETRY, Gone, Refusal
from homespun.serve.faults import log_fault
from homespun.serve.house import House, ending, refused

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEAD = 16_384  # bytes of a request's head
OPEN = "/health"  # the one route that asks for no key

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets a request through to `app`, or answers in its place; counts both.

    `host`: where the server listens. `names`: further names under which it may be asked. `key`: none asks for none.
    """

    def __init__(self, app: ASGIApp, house: House, host: str, names: Collection[str] = (), key: str | None = None):
        self._app, self._house = app, house
        self._names = {name.lower() for name in (*LOOPBACK, host, *names)}
        self._any_address = is_any_address(host)
        self._key = _digest(key.encode()) if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.monotonic(), 499  # as nginx says: the client left before there was an answer

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await self._answer(scope, receive, sending)
        except Gone:
            await Response(status_code=499)(
                scope, receive, sending
            )  # nobody reads it, but the protocol wants an answer
        except Exception as error:
            log_fault(error)
            if status != 499:
                raise Broken from None  # the connection is closed: half an answer must not look whole
            await refused(Refusal(500, "A fault of the server", "internal_error"))(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._house.metrics.observe(route, status, time.monotonic() - began)
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except Refusal as refusal:
            return await refused(refusal)(scope, receive, send)
        return await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        close = {"Connection": "close"}
        words = [
            scope.get("raw_path", b""),
            scope["query_string"],
            *(part for pair in scope["headers"] for part in pair),
        ]
        if sum(map(len, words)) > HEAD:
            raise Refusal(431, f"The head of a request may have {HEAD:,} bytes", "head_too_large", headers=close)
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._knows(host):
            raise Refusal(421, "This server is not known by the name in the Host header", "unknown_host")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            raise Refusal(403, "Pages of other origins may not ask this server", "foreign_origin")
        if scope["path"] != OPEN and not self._has_key(headers.get("authorization", "")):
            asks = {"WWW-Authenticate": 'Basic realm="homespun", charset="UTF-8"'}
            raise Refusal(401, "Give the key of this server as the bearer token", "invalid_api_key", headers=asks)
        if self._house.closing:
            raise ending()
        if self._house.connections > self._house.limits.connections:
            raise Refusal(503, "Too many connections are open", "too_many_connections", headers=RETRY | close)

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if urlsplit(f"//{host}").username is not None:
                return False
        except ValueError:
            return False
        return name in self._names or self._any_address and is_address(name)

    def _has_key(self, authorization: str) -> bool:
        """Whether the key is there, as a bearer token or as the password of Basic; the time does not tell how near."""
        if self._key is None:
            return True
        scheme, _, given = authorization.partition(" ")
        secret = given.strip().encode("latin-1", "replace")
        if scheme.lower() == "basic":
            try:
                secret = base64.b64decode(secret, validate=True).partition(b":")[2]
            except binascii.Error:
                secret = b""
        elif scheme.lower() != "bearer":
            secret = b""
        return hmac.compare_digest(_digest(secret), self._key)


class Broken(Exception):
    """An answer that had begun cannot be ended."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    return host == "localhost" or is_address(host) and ipaddress.ip_address(host).is_loopback


def is_any_address(host: str) -> bool:
    """Whether it stands for all addresses of the machine."""
    return is_address(host) and ipaddress.ip_address(host).is_unspecified


def is_address(host: str) -> bool:
    """Whether it is an address and not a name. A name in a page's hands may lead anywhere; an address may not."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _netloc(origin: str) -> str | None:
    scheme, _, rest = origin.partition("://")
    return rest.lower() if scheme in ("http", "https") else None


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
