"""Frozen settings: tagged unions, YAML, dotted overrides, and errors that name the nearest known key.

This is the only file that parses settings. A setting is a field of a frozen `Config`; a tree of them is printed as
YAML, read back, and overridden with `dotted.key=value`.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from homespun.errors import ConfigError

SIZE_LIMIT = 1_000_000  # bytes of a settings file; a recipe is a few hundred

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_NUMBER = re.compile(r"([+-]?\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?)\s*([kmbgt]?)", re.IGNORECASE)


def human_number(value: Any) -> Any:
    """`"1.5M"` -> 1500000, `"64k"` -> 64000, `1e6` -> 1000000; what is no such number is returned untouched."""
    if isinstance(value, str) and (match := _NUMBER.fullmatch(value.strip())):
        value = float(match[1].replace("_", "")) * _UNITS[match[2].lower()]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Count = Annotated[int, BeforeValidator(human_number), Field(ge=1)]
"""A positive whole number that may be written as a person writes it: `1M`, `64k`."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(BaseModel):
    """Base of every setting: frozen, strictly typed, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


C = TypeVar("C", bound=Config)


def parse(cls: type[C], data: Any, source: str = "the settings") -> C:
    """Checks plain data (dicts, lists, scalars) against `cls`.

    Raises `ConfigError` that names key, value, nearest key.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source} should hold keys and values, not {data!r:.60}", "Write `key: value` lines.")
    try:
        return cls.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise _explain(cls, data, error, source) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{source} holds something that is no plain setting: {error}", "Use text, numbers, lists."
        ) from None


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as plain data: what `parse` reads back to an equal object."""
    data: dict[str, Any] = _kind_first(config.model_dump(mode="json"))
    return data


def _kind_first(data: Any) -> Any:
    """The same, with the kind of each group before its settings: fields of a base class would else stand before it."""
    if isinstance(data, dict):
        return {name: _kind_first(data[name]) for name in sorted(data, key=lambda name: name != "kind")}
    return data


def to_yaml(config: Config) -> str:
    """The settings as YAML, in the order of their definition, each kind first."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def read_yaml(text: str, source: str = "the settings") -> dict[str, Any]:
    """YAML text -> plain data. Tags that build objects, aliases and oversized files are refused."""
    if len(text) > SIZE_LIMIT:
        raise ConfigError(
            f"{source} is larger than {SIZE_LIMIT:,} bytes", "A settings file is a few hundred bytes long."
        )
    try:
        data = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}", "Mend that line.") from None
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(f"{source} should hold keys and values, not {data!r:.60}", "Write `key: value` lines.")
    return data


def override(config: C, assignments: Iterable[str], source: str = "the command line") -> C:
    """A copy of `config` with `dotted.key=value` assignments applied, then checked as a whole.

    Changing a `kind` drops the other settings of the former kind.
    """
    data = to_dict(config)
    pairs = [_split_assignment(text) for text in assignments]
    pairs.sort(key=lambda pair: (pair[0][-1] != "kind", len(pair[0])))  # kinds first, outer ones before; a stable sort
    for path, value in pairs:
        _assign(type(config), data, path, value)
    return parse(type(config), data, source)


def merge(config: C, changes: Mapping[str, Any], source: str) -> C:
    """A copy of `config` with the nested `changes` (from a file) laid over it."""
    data = to_dict(config)
    _lay_over(data, changes)
    return parse(type(config), data, source)


def nearest(word: str, known: Iterable[str]) -> str:
    """`"Did you mean 'heads'?"`, or the list of what is known when nothing is near."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, with `1e-3` read as a number, `off` as a word, and duplicate keys refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in settings")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1} if len(keys) < 1000 else set():
            raise yaml.YAMLError(f"the key {twice.pop()!r} stands twice")
        return super().construct_mapping(node, deep)


# YAML 1.2's booleans: `compile: off` is a word here, and a country called `no` too.
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in _PlainLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _split_assignment(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"{text!r} is no setting", "Write settings as dotted.key=value, for example train.steps=500.")
    try:
        return path, yaml.load(value, Loader=_PlainLoader)
    except yaml.YAMLError:
        return path, value


def _assign(cls: type[Config], data: dict[str, Any], path: list[str], value: Any) -> None:
    here: Any = data
    for depth, name in enumerate(path[:-1]):
        if not isinstance(here, dict) or here.get(name) is None:
            known = _fields_at(cls, data, path[:depth])
            opened = _opened(known[name]) if name in known and isinstance(here, dict) else None
            if isinstance(here, dict) and not known:  # a table, whose entries have any name
                opened = {}
            if opened is None:
                hint = f"{'.'.join(path[: depth + 1])} is a plain value." if name in known else nearest(name, known)
                raise ConfigError(f"Unknown setting {'.'.join(path)!r}", hint)
            here[name] = opened
        here = here[name]
    if not isinstance(here, dict):
        raise ConfigError(f"Unknown setting {'.'.join(path)!r}", f"{'.'.join(path[:-1])} is a plain value.")
    if path[-1] == "kind" and here.get("kind") != value:
        here.clear()
    here[path[-1]] = value


def _lay_over(data: dict[str, Any], changes: Mapping[str, Any]) -> None:
    if "kind" in changes and changes["kind"] != data.get("kind"):
        data.clear()
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(data.get(key), dict):
            _lay_over(data[key], value)
        else:
            data[key] = value


def _explain(cls: type[Config], data: Any, error: ValidationError, source: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
    path, value = _locate(data, first["loc"])
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return ConfigError(f"Unknown setting {key!r} in {source}", nearest(path[-1], _fields_at(cls, data, path[:-1])))
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        field = _fields_at(cls, data, path[:-1])[path[-1]]
        kinds = ", ".join(str(member.model_fields["kind"].default) for member in _configs(field.annotation))
        named = f"has no kind {_kind(value)!r}" if "kind" in value else "needs a kind"
        return ConfigError(f"{key} in {source} {named}", f"Choose {key}.kind from: {kinds}.")
    if first["type"] == "missing":
        return ConfigError(f"{key} is missing in {source}", "Set it.")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    message = str(cause) if cause else first["msg"].replace("Input should be", "it should be")
    place = f"{key} = {value!r:.80} in {source}" if path else source
    return ConfigError(f"{place} is not possible: {message}", f"Change {key or 'it'} and try again.")


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else value


def _locate(data: Any, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """pydantic's location, without the union tags in it, and the value found there."""
    path: list[str] = []
    for index, part in enumerate(loc):
        if isinstance(data, Mapping) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif index < len(loc) - 1 or not isinstance(data, Mapping):
            continue  # the tag of a union
        else:
            data = None
        path.append(str(part))
    return path, data


def _opened(field: FieldInfo) -> dict[str, Any] | None:
    """The settings of a group that was not spelled out: its default's, or none yet. None for a plain value."""
    if isinstance(field.default, Config):
        return to_dict(field.default)
    return {} if _configs(field.annotation) else None


def _fields_at(cls: Any, data: Any, path: list[str]) -> dict[str, FieldInfo]:
    """The known settings below `path`, by name; where a union has no kind yet, those of all its members."""
    found: list[Any] = [cls]
    entries: list[type[Config]] = []
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
        if entries:  # `name` is that of an entry
            found, entries = entries, []
            continue
        fields = [c.model_fields[name].annotation for c in found if name in c.model_fields]
        entries = [m for each in fields if get_origin(each) is dict for m in _configs(get_args(each)[1])]
        members = [m for c in found if name in c.model_fields for m in _configs(c.model_fields[name].annotation)]
        kind = _kind(data)
        found = [m for m in members if "kind" in m.model_fields and m.model_fields["kind"].default == kind] or members
    return {name: field for c in reversed(found) for name, field in c.model_fields.items()}


def _configs(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [c for part in get_args(annotation) for c in _configs(part)]
    return []
