"""What a person may name as data, and the stream of documents behind it.

A source is a file, a folder, a glob, `-` (standard input), `stories:N`, or `python:` (the library of this interpreter).
Files named `train.*` and `valid.*` in one folder are taken as the split.
"""

from __future__ import annotations

import difflib
import errno
import glob
import hashlib
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from homespun.config import human_number
from homespun.data import formats, stories
from homespun.data.formats import PIECE, Document, Meter
from homespun.data.text import BLOCK
from homespun.errors import DataError

Side = Literal["train", "valid"]

MOST_STORIES = 10**9  # some 400 GB of text

KNOWN = "Known: files, folders, globs such as 'texts/*.txt', - (standard input), stories:N, python: (Python's library)."

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_SIDE = re.compile(r"(?:(train|training)|valid|validation|val|dev)(?:[-_.]\d.*)?")  # also train-00000-of-00002
_NOT_OURS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}  # in the library's folder


class Source(Protocol):
    """One place that documents come from; reading it again gives the same documents."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def side(self) -> Side | None:
        """The side of the split that its name declares."""
        ...

    def documents(self, piece: int, meter: Meter) -> Iterator[Document]: ...

    def size(self) -> int | None:
        """Bytes on disk; `None` where there are none."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when the content does."""
        ...


@dataclass(frozen=True)
class File:
    """A file on disk, read by its suffix."""

    path: Path
    name: str
    side: Side | None = None

    def documents(self, piece: int, meter: Meter) -> Iterator[Document]:
        return formats.read(self.path, self.name, piece, meter)

    def size(self) -> int | None:
        return self.path.stat().st_size

    def fingerprint(self) -> str:
        try:
            with open(self.path, "rb") as file:
                return "".join(formats.suffixes(self.path)) + ":" + _digest(iter(lambda: file.read(BLOCK), b""))
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror}", "Check the file and its rights.") from None


@dataclass(frozen=True)
class Stories:
    """`stories:N`: that many stories of the built-in grammar."""

    count: int
    side: Side | None = None

    @property
    def name(self) -> str:
        return f"stories:{self.count}"

    def documents(self, piece: int, meter: Meter) -> Iterator[Document]:
        for story in stories.stories(self.count):
            meter.done += len(story)
            yield [story]

    def size(self) -> int | None:
        return None

    def fingerprint(self) -> str:
        """Of the first stories: another grammar tells other ones."""
        return f"{self.count}:" + _digest(story.encode() for story in stories.stories(min(self.count, 256)))


def resolve(names: Iterable[str | Path | File], say: Callable[[str], None] = lambda note: None) -> list[Source]:
    """The sources that `names` stand for, folders and globs expanded in sorted order, each file once.

    `say` is told of files in a folder that the split leaves out. Raises `DataError` where a name means nothing.
    """
    found: list[Source] = []
    for name in names:
        if isinstance(name, File):
            found.append(name)
        elif str(name).startswith("stories:"):
            found.append(Stories(_count(str(name))))
        elif name == "python:":
            found += _python()
        else:
            found += _files(str(name), say)
    unique = {os.path.realpath(source.path) if isinstance(source, File) else source.name: source for source in found}
    if not unique:
        raise DataError("No source of text was named", KNOWN)
    return _declare_sides(list(unique.values()))


def documents(names: Sequence[str | Path | File], piece: int = PIECE, meter: Meter | None = None) -> Iterator[Document]:
    """All documents of the sources in order; running text is cut after about `piece` characters.

    Raises `DataError` for names that mean nothing and files that are no text.
    """
    with spooled(names) as places:
        for source in resolve(places):
            yield from source.documents(piece, meter or Meter())


@contextmanager
def spooled(names: Iterable[str | Path | File]) -> Iterator[list[str | Path | File]]:
    """The names, with `-` and pipes replaced by temporary files of their content, which can be read more than once."""
    with ExitStack() as stack:
        yield [_spool(name, stack) if _once(name) else name for name in names]


def _once(name: str | Path | File) -> bool:
    """Whether it can be read only once."""
    return not isinstance(name, File) and (str(name) == "-" or Path(name).is_fifo())


def _spool(name: str | Path | File, stack: ExitStack) -> File:
    assert not isinstance(name, File)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="homespun-"))
    place = Path(folder) / "standard-input.txt"
    stream = sys.stdin.buffer if str(name) == "-" else stack.enter_context(open(name, "rb"))  # noqa: SIM115
    with disk_errors(place.parent), open(place, "wb") as file:
        shutil.copyfileobj(stream, file, BLOCK)
    return File(place, "standard input" if str(name) == "-" else str(name))


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Says what to do where `folder` cannot be written to."""
    try:
        yield
    except OSError as error:
        hint = "Set HOMESPUN_CACHE (for standard input: TMPDIR) to a folder on a disk with room, or name another one."
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(f"The disk is full at {folder}", hint) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DataError(f"{folder} cannot be written to: {error.strerror}", hint) from None
        raise


def _count(name: str) -> int:
    count = human_number(name.removeprefix("stories:"))
    if not isinstance(count, int) or count < 1:
        raise DataError(f"{name!r} does not say how many stories", "Write a number, for example stories:10k.")
    if count > MOST_STORIES:
        raise DataError(f"{name!r} is more than {MOST_STORIES:,} stories", "Ask for fewer, for example stories:100k.")
    return count


def _python() -> list[Source]:
    place = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in _walk(place, _NOT_OURS) if path.suffix == ".py"]
    if not paths:
        raise DataError(f"This interpreter has no library in source form at {place}", "Name another source of text.")
    return [File(path, f"python:{path.relative_to(place).as_posix()}") for path in paths]


def _files(name: str, say: Callable[[str], None]) -> list[Source]:
    if not name:  # a variable of the shell that is not set; the path "" would be this folder
        raise DataError("A source has an empty name", KNOWN)
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, name, say)
    if path.is_file():
        return [File(path, name)]
    if path.exists():
        raise DataError(f"{name!r} is neither a file nor a folder", KNOWN)
    if matches := sorted(match for match in map(Path, glob.glob(str(path), recursive=True)) if match.exists()):
        return [source for match in matches for source in _files(str(match), say)]
    if scheme := _SCHEME.match(name):
        raise DataError(f"{name!r} is no known source: nothing is read from '{scheme[1]}:'", KNOWN)
    raise DataError(f"{name!r} does not exist", _suggestion(path))


def _suggestion(path: Path) -> str:
    """The nearest name in the nearest folder that exists."""
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    try:
        near = difflib.get_close_matches(missing.name, os.listdir(missing.parent), n=1, cutoff=0.6)
    except PermissionError:
        near = []
    return f"Did you mean {str(missing.parent / near[0])!r}?" if near else f"Name what exists. {KNOWN}"


def _folder(folder: Path, name: str, say: Callable[[str], None]) -> list[Source]:
    """The files of known formats below a folder; where some are `train.*` and `valid.*`, no others of their folder."""
    everything = _walk(folder)
    files: list[Source] = [File(path, str(path)) for path in everything if _known(path)]
    if not files:
        endings = ", ".join(sorted({path.suffix or path.name for path in everything})[:8]) or "nothing"
        raise DataError(f"The folder {name!r} holds no text: {endings}", f"Known: {' '.join(formats.KNOWN)}.")
    declared = [source for source in _declare_sides(files) if isinstance(source, File)]
    split = {source.path.parent for source in declared if source.side}
    left = [source for source in declared if source.path.parent in split and not source.side]
    if left:
        names = ", ".join(source.path.name for source in left[:5])
        say(f"{name} has train.* and valid.*: its other files are left out ({names}{', ...' * (len(left) > 5)}).")
    return [source for source in declared if source not in left]


def _walk(folder: Path, skipped: Iterable[str] = ()) -> list[Path]:
    """Files below `folder`, sorted; hidden names and links to folders are not followed."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skipped]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _raise(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}", "Check the folder and its rights.")


def _known(path: Path) -> bool:
    return formats.suffixes(path)[0] in formats.KNOWN


def _side(path: Path) -> Side | None:
    match = _SIDE.fullmatch(path.name.removesuffix("".join(formats.suffixes(path))).lower())
    return None if match is None else "train" if match[1] else "valid"


def _declare_sides(found: list[Source]) -> list[Source]:
    """Gives its side to each `train.*` and `valid.*` of a folder that has both."""
    named: dict[Path, set[Side | None]] = {}
    for source in found:
        if isinstance(source, File):
            named.setdefault(source.path.parent, set()).add(_side(source.path))
    split = {folder for folder, sides in named.items() if {"train", "valid"} <= sides}
    return [
        replace(source, side=_side(source.path)) if isinstance(source, File) and source.path.parent in split else source
        for source in found
    ]


def _digest(blocks: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for block in blocks:
        whole.update(block)
    return whole.hexdigest()
