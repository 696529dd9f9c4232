"""What a client is told when it cannot have what it asked for, in the shape of OpenAI."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from homespun.errors import CheckpointError, HomespunError, MissingExtraError
from homespun.serve.scheduler import Busy, Failed

RETRY = {"Retry-After": "1"}
NO_RETRY = {"X-Should-Retry": "false"}  # OpenAI's clients would repeat what took too long already

_FIELDS = {"logit_bias": "logit_bias", "regex": "regex", "json_schema": "response_format"}
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """An answer that is not what was asked for: a status and a sentence. `param` names the field that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's shape."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Gone(Exception):
    """The client has left: nobody reads an answer."""


def refusal_of(error: HomespunError | Refusal) -> Refusal:
    """What a client is told of a mistake or a limit."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Busy):
        return Refusal(429, str(error), "server_busy", headers=RETRY)
    if isinstance(error, (CheckpointError, Failed)):
        return Refusal(500, str(error), "model_failed", headers=NO_RETRY)
    if isinstance(error, MissingExtraError):
        return Refusal(501, str(error), "not_implemented", headers=NO_RETRY)
    return Refusal(400, str(error), "invalid_value")


@contextmanager
def about(field: str) -> Iterator[None]:
    """A mistake that is found inside is one in this field of a request, or in the one that its sentence begins with."""
    try:
        yield
    except HomespunError as error:
        refusal = refusal_of(error)
        if refusal.status == 400:
            refusal.param = _FIELDS.get(error.problem.partition(" ")[0], field)
        raise refusal from None


def to_json(value: Any) -> bytes:
    """Compact JSON. Half a surrogate pair, which is no Unicode, becomes the escape that it came as."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
