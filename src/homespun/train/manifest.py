"""What says that a checkpoint is whole: its manifest, and strict JSON (no NaN, no infinity)."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from homespun.errors import CheckpointError
from homespun.train.disk import digest

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
STEP = re.compile(r"step-(\d{8,})(\.old)?")
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # a name that cannot leave its folder, and is not hidden
_LIMIT = 2**20  # bytes; a manifest has a few hundred


def verify(place: Path) -> list[str]:
    """What is wrong with a checkpoint: files that are missing, changed, unlisted, or no files. Empty: it is whole."""
    try:
        step, listed = read_manifest(place)
    except (OSError, ValueError, RecursionError) as error:
        return [str(error) if isinstance(error, ValueError) else f"{MANIFEST} cannot be read ({error})"]
    problems = [] if (match := STEP.fullmatch(place.name)) is None or int(match[1]) == step else [f"it is step {step}"]
    for name, (size, sha) in listed.items():
        try:
            found = (place / name).lstat()
            if not stat.S_ISREG(found.st_mode):
                problems.append(f"{name} is no plain file")
            elif found.st_size != size:
                problems.append(f"{name} has {found.st_size:,} bytes instead of {size:,}")
            elif digest(place / name)[1] != sha:
                problems.append(f"{name} was changed (sha256)")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
    shown = {name for name in os.listdir(place) if not name.startswith(".")}  # file managers leave hidden files
    return problems + [f"{name} is not in the manifest" for name in sorted(shown - {MANIFEST, *listed})]


def read_manifest(place: Path) -> tuple[int, dict[str, tuple[int, str]]]:
    """The step, and size and sha256 by file name. Raises `ValueError` with what is wrong."""
    path = place / MANIFEST
    if place.is_symlink() or not place.is_dir() or not path.is_file() or path.is_symlink():
        raise ValueError(f"{MANIFEST} is missing" if place.is_dir() and not place.is_symlink() else "it is no folder")
    if path.stat().st_size > _LIMIT:
        raise ValueError(f"{MANIFEST} is larger than {_LIMIT:,} bytes")
    try:
        manifest = from_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{MANIFEST} is damaged ({error})") from None
    if (version := manifest.get("format")) != FORMAT:
        raise ValueError(f"{MANIFEST} has format {version!r:.20}, and this version of Homespun reads format {FORMAT}")
    step, files = manifest.get("step"), manifest.get("files")
    if manifest.keys() != {"format", "step", "files"} or type(step) is not int or not isinstance(files, dict):
        raise ValueError(f"{MANIFEST} does not hold what it should")
    listed = {}
    for name, entry in files.items():
        if not PLAIN.fullmatch(name) or name == MANIFEST:
            raise ValueError(f"{MANIFEST} names {name!r:.80}, which is no plain file name")
        if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"} or type(entry["size"]) is not int:
            raise ValueError(f"{MANIFEST} does not hold size and sha256 of {name}")
        listed[name] = (entry["size"], entry["sha256"])
    if STATE not in listed:
        raise ValueError(f"{MANIFEST} does not name {STATE}")
    return step, listed


def to_json(value: Mapping[str, Any]) -> bytes:
    """Strict JSON. Raises `CheckpointError` for what it cannot hold."""
    try:
        return (json.dumps(value, allow_nan=False, indent=1) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The state cannot be saved: {error}", "The checkpoints before it are intact.") from None


def from_json(data: bytes) -> dict[str, Any]:
    """The object that strict JSON holds. Raises `ValueError`."""
    value = json.loads(data.decode(), parse_constant=_no_constant)
    if not isinstance(value, dict):
        raise ValueError("it should hold names and values")
    return value


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def traces(place: Path) -> tuple[Any, ...]:
    """What changes with any later write into a folder: the system alone sets the time `ctime`."""
    if not place.is_dir():
        return ()
    with os.scandir(place) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    return tuple(sorted((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in found))
