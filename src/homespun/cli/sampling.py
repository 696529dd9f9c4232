"""The options of `Sampling`, for every verb that writes text."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from homespun.cli.options import Seed, option
from homespun.errors import ConfigError

OPTIONS: dict[str, Any] = {
    "max_tokens": Annotated[int | None, option("--max-tokens", "N", "Stop after so many tokens.")],
    "temperature": Annotated[
        float | None, option("--temperature -t", "X", "0: always the likeliest token; higher: bolder.")
    ],
    "top_k": Annotated[int | None, option("--top-k", "N", "Choose among the N likeliest tokens.")],
    "top_p": Annotated[float | None, option("--top-p", "X", "Choose among the likeliest, of probability X together.")],
    "min_p": Annotated[
        float | None, option("--min-p", "X", "Leave out what is less likely than X times the likeliest.")
    ],
    "typical_p": Annotated[
        float | None, option("--typical-p", "X", "Choose among the least surprising, of probability X together.")
    ],
    "repetition_penalty": Annotated[
        float | None, option("--repetition-penalty", "X", "Above 1: less likely to repeat.")
    ],
    "frequency_penalty": Annotated[
        float | None, option("--frequency-penalty", "X", "Less likely each time it was written; -2 to 2.")
    ],
    "presence_penalty": Annotated[
        float | None, option("--presence-penalty", "X", "Less likely once it was written; -2 to 2.")
    ],
    "logit_bias": Annotated[
        list[str] | None, option("--logit-bias", "ID=X", "Add X to the logit of a token; may be repeated.")
    ],
    "beams": Annotated[
        int | None, option("--beams", "N", "Search the likeliest text along N beams; nothing is drawn.")
    ],
    "length_penalty": Annotated[
        float | None, option("--length-penalty", "X", "Of beams: higher favours longer texts.")
    ],
    "regex": Annotated[str | None, option("--regex", "EXPRESSION", "Write what matches this regular expression.")],
    "json_schema": Annotated[Path | None, option("--json-schema", "FILE", "Write JSON as this schema says.")],
    "stop": Annotated[list[str] | None, option("--stop", "TEXT", "Stop before this text; may be repeated.")],
    "seed": Seed,
}


def sampled(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a verb these options, or all, in the place of its parameter `settings`: what was given on the command line,
    by the names of `Sampling`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(verb, include_extras=True)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        added = [inspect.Parameter(name, kind, default=None, annotation=OPTIONS[name]) for name in names or OPTIONS]
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(verb).parameters.items():
            parameters += added if name == "settings" else [parameter.replace(annotation=hints[name])]

        @functools.wraps(verb)
        def wrapper(**given: Any) -> None:
            asked = {each.name: given.pop(each.name) for each in added}
            verb(**given, settings=_settings(asked))

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
        return wrapper

    return decorate


def _settings(asked: dict[str, Any]) -> dict[str, Any]:
    """Without what was not given, and with what a file holds."""
    given = {name: value for name, value in asked.items() if value is not None and value != []}
    if "logit_bias" in given:
        given["logit_bias"] = _bias(given["logit_bias"])
    if "json_schema" in given:
        given["json_schema"] = _schema(given["json_schema"])
    return given


def _bias(pairs: list[str]) -> dict[str, float]:
    try:
        return {str(int(name)): float(value) for name, _, value in (pair.partition("=") for pair in pairs)}
    except ValueError:
        raise ConfigError(f"--logit-bias {' '.join(pairs)} is no bias", "Write ID=X, such as 42=-100.") from None


def _schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"The schema {path} cannot be read: {error}", "Write a JSON schema into it.") from None
    if not isinstance(schema, dict):
        raise ConfigError(f"The schema {path} is no object", 'Write for example {"type": "object"}.')
    return schema
