"""From the body of a request to what it asks for, or to a refusal that names the field."""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from pydantic import ValidationError

from homespun.serve.errors import Refusal
from homespun.serve.schema import Wire

DEPTH = 64  # of lists and objects in each other

R = TypeVar("R", bound=Wire)


def read(cls: type[R], body: bytes) -> R:
    """The request in a body. Raises a `Refusal` that names the field, and never repeats what it holds."""
    try:
        data = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite,
            parse_int=_whole,
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise Refusal(400, f"The body is not UTF-8 text: byte {error.start}", "invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise Refusal(400, f"The body is not JSON: {where}", "invalid_json") from None
    except ValueError as error:
        raise Refusal(400, f"The body is not JSON that can be read: {error}", "invalid_json") from None
    if not isinstance(data, dict):
        raise Refusal(400, "The body should be a JSON object", "invalid_json")
    _refuse_depth(data)
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise _explained(error) from None


def _explained(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_input=False)[0]
    place = first["loc"] + ((first["ctx"]["field"],) if first["type"] == "unsupported" else ())
    field = ".".join(map(str, place))[:200]
    if first["type"] == "unsupported":
        return Refusal(400, f"{field}: {first['msg']}", "unsupported_parameter", field)
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"There is no field {field}", "unknown_parameter", field)
    if first["type"] == "missing":
        return Refusal(400, f"{field} is missing", "missing_required_parameter", field)
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    return Refusal(400, f"{field}: {message}" if field else message, "invalid_value", field or None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def _whole(word: str) -> int:
    if len(word) > 40:
        raise ValueError("a number is too large")
    return int(word)


def _finite(word: str) -> float:
    if not math.isfinite(number := float(word)):
        raise ValueError("a number is too large")
    return number


def _refuse_depth(data: Any) -> None:
    level = [data]
    for _ in range(DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise _too_deep()


def _children(item: Any) -> list[Any]:
    inside = item.values() if isinstance(item, dict) else item
    return [child for child in inside if isinstance(child, (dict, list))]


def _too_deep() -> Refusal:
    return Refusal(400, f"The body is nested deeper than {DEPTH} levels", "invalid_json")
