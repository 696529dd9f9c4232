"""A tokenised corpus on disk: raw shards of token ids, their tokenizer, and a manifest that vouches for them.

    train.bin  valid.bin   little-endian uint16 (uint32 above 65,536 tokens of vocabulary); every document ends
                           with the end token
    tokenizer.json         what encoded them
    manifest.json          counts, sizes, sha256; written last

`prepare` makes one from sources of text, or finds the one it made before from the same content and settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from homespun.config import Config, to_dict
from homespun.data.shards import Progress, Survey, save_manifest, survey, write
from homespun.data.sources import Source, disk_errors, resolve, spooled
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import TokenizerConfig
from homespun.errors import DataError

FORMAT = "homespun-corpus"
VERSION = 1  # changes whenever the same sources would give other files
FILES = ("train.bin", "valid.bin", "tokenizer.json")


class DataConfig(Config):
    """How text becomes a corpus."""

    validation_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Share of the documents kept for validation (of 4 MB at most), where no `train.*` and `valid.*` say it."""


@dataclass(frozen=True)
class Split:
    """One side of a corpus."""

    tokens: np.ndarray  # (N,) uint16 or uint32, memory-mapped
    documents: int
    bytes: int  # of the text in UTF-8
    characters: int

    @property
    def count(self) -> int:
        """Tokens, the end tokens of the documents included."""
        return len(self.tokens)


@dataclass(frozen=True)
class Corpus:
    """An opened corpus; `Corpus.open` makes one."""

    folder: Path
    manifest: dict[str, Any]
    train: Split
    valid: Split  # may be empty

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Opens a prepared folder; its files are only mapped. Raises `DataError` where it is none, or is cut short."""
        folder = Path(folder)
        manifest = _manifest(folder)
        for name in FILES:  # touching a page past the end of a mapped file would kill the process
            size, expected = _size(folder / name), manifest["files"][name]["bytes"]
            if size != expected:
                raise _damaged(folder, f"{name} has {size:,} bytes instead of {expected:,}")
        width = np.dtype(manifest["type"]).newbyteorder("<")
        return cls(folder, manifest, *(_split(folder, manifest, side, width) for side in ("train", "valid")))

    def verify(self) -> None:
        """Reads every file and compares it with its sha256. Raises `DataError` that names the damaged one."""
        for name in FILES:
            with open(self.folder / name, "rb") as file:
                found = hashlib.sha256()
                while block := file.read(1 << 20):
                    found.update(block)
            if found.hexdigest() != self.manifest["files"][name]["sha256"]:
                raise _damaged(self.folder, f"{name} does not match its sha256")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What the corpus is encoded with."""
        return Tokenizer.load(self.folder / "tokenizer.json")

    @property
    def identity(self) -> str:
        """A hash of the token ids and the tokenizer: equal for equal corpora, wherever they lie."""
        hashes = [self.manifest["files"][name]["sha256"] for name in FILES]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def notes(self) -> list[str]:
        """What a person should know about how it was made, one sentence each."""
        return list(self.manifest["notes"])


def prepare(
    sources: Sequence[str | Path],
    tokenizer: TokenizerConfig,
    data: DataConfig,
    out: str | Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Corpus:
    """The corpus of `sources`: made now, or found where the same content and settings were prepared before.

    It lies in the folder `out`, else in the cache (`HOMESPUN_CACHE`, or `~/.cache/homespun`). A folder that is a
    prepared corpus may be given as the only source. `progress` is told the phase ("checking", "reading", "learning",
    "encoding"), bytes and tokens; `say` gets sentences for people. Raises `DataError` for sources that cannot be read
    or hold too little text, for a full disk, and where `out` holds something else.
    """
    progress, say = progress or (lambda *_: None), say or (lambda sentence: None)
    if ready := [name for name in sources if is_corpus(name)]:
        return _given(ready, sources, out, say)
    with spooled(sources) as places:
        found = resolve(places, say)
        key = _key(found, tokenizer, data, progress)
        target = Path(out) if out else cache_folder() / key[:32]
        if (corpus := _reuse(target, key, out is not None, say)) is None:
            corpus = _make(target, key, found, tokenizer, data, progress)
            for sentence in corpus.notes:
                say(sentence)
    return corpus


def is_corpus(place: str | Path) -> bool:
    """Whether a folder was prepared by this program (it may be damaged all the same)."""
    try:
        return json.loads((Path(place) / "manifest.json").read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def cache_folder() -> Path:
    """Where prepared corpora are kept."""
    return Path(os.environ.get("HOMESPUN_CACHE") or "~/.cache/homespun").expanduser() / "corpora"


def _given(
    ready: Sequence[str | Path], sources: Sequence[str | Path], out: str | Path | None, say: Callable[[str], None]
) -> Corpus:
    if len(sources) > 1 or out:
        raise DataError(f"{str(ready[0])!r} is a prepared corpus", "Give it alone, or give the texts it was made from.")
    corpus = Corpus.open(ready[0])
    say(f"{ready[0]} is a prepared corpus: its own vocabulary of {corpus.tokenizer.vocab_size:,} tokens is used.")
    return corpus


def _key(sources: Sequence[Source], tokenizer: TokenizerConfig, data: DataConfig, progress: Progress) -> str:
    """What the files of a corpus depend on, hashed: content, not names."""
    whole = hashlib.sha256(json.dumps([VERSION, to_dict(tokenizer), to_dict(data)], sort_keys=True).encode())
    if (file := getattr(tokenizer, "file", None)) and (place := Path(file)).exists():
        for path in sorted(place.iterdir()) if place.is_dir() else [place]:
            status = path.stat()
            whole.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns};".encode())
    sizes = [source.size() or 0 for source in sources]
    for number, source in enumerate(sources):
        whole.update(f"{source.side}:{source.fingerprint()};".encode())
        progress("checking", sum(sizes[: number + 1]), sum(sizes), 0)
    return whole.hexdigest()


def _reuse(target: Path, key: str, named: bool, say: Callable[[str], None]) -> Corpus | None:
    """The corpus at `target` if it is what is asked for, intact. A damaged one is removed, but only from the cache."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    try:
        corpus = Corpus.open(target)
        if corpus.manifest["key"] != key:
            raise DataError(f"{target} holds another corpus", "Choose another folder, or delete that one.")
        corpus.verify()
    except DataError as error:
        if named:
            raise
        say(f"{error.problem}. It is made again.")
        shutil.rmtree(target)
        return None
    say(f"The corpus was prepared before and is used again: {target}")
    return corpus


def _make(
    target: Path, key: str, sources: Sequence[Source], tokenizer: TokenizerConfig, data: DataConfig, progress: Progress
) -> Corpus:
    """Makes the corpus in a temporary folder beside `target` and renames it: a crash leaves nothing half done."""
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        folder = target.parent / f"{_PARTIAL}{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            found = survey(sources, data.validation_fraction, progress)
            progress("learning", 0, None, 0)
            made, notes = _learn(tokenizer, found, data)
            manifest = write(folder, sources, made, found, data.validation_fraction, progress)
            names = [source.name for source in sources]
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "key": key,
                "sources": {"count": len(names), "first": names[:100], "bytes": found.bytes},
                "settings": {"tokenizer": to_dict(tokenizer), "data": to_dict(data)},
                "notes": notes + _split_notes(manifest["splits"], found),
                **manifest,
            }
            save_manifest(folder, manifest)
            _publish(folder, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return Corpus.open(target)


def _learn(tokenizer: TokenizerConfig, found: Survey, data: DataConfig) -> tuple[Tokenizer, list[str]]:
    threshold = found.threshold(data.validation_fraction)
    sample = [text for hashed, _, text in sorted(found.sample) if hashed >= threshold]
    made, sentence = tokenizer.build(sample, found.bytes)
    notes = [sentence]
    if len(found.sample) < len(found.hashes):
        size = sum(len(text.encode()) for text in sample)
        notes.append(f"It was chosen on a sample of {size / 1e6:,.0f} MB of the {found.bytes / 1e6:,.0f} MB of text.")
    return made, notes


def _split_notes(splits: dict[str, Any], found: Survey) -> list[str]:
    train, valid = splits["train"], splits["valid"]
    how = "by the names of the files" if found.declared else "by document"
    if not valid["tokens"]:
        return [f"{train['tokens']:,} tokens to train on; nothing is left for validation."]
    counts = f"{train['tokens']:,} tokens to train on, {valid['tokens']:,} for validation"
    return [f"{counts}, split {how} ({train['documents']:,} and {valid['documents']:,} documents)."]


_PARTIAL = ".homespun-partial-"


def _remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left a day or more ago."""
    for path in folder.glob(_PARTIAL + "*"):
        if path.stat().st_mtime < time.time() - 86_400:
            shutil.rmtree(path, ignore_errors=True)


def _publish(folder: Path, target: Path) -> None:
    """Renames; where another process was first, its equal corpus stays."""
    try:
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        folder.rename(target)
    except OSError:
        if not is_corpus(target):
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(f"The corpus {folder} is damaged: {what}", "Delete that folder and prepare it again.")


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest, if everything that is read from it has the form it should have."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except FileNotFoundError:
        raise DataError(f"{folder} is no prepared corpus: it has no manifest.json", "Make one with: prepare") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, f"manifest.json cannot be read ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{folder} is no prepared corpus", "Make one with: prepare")
    if manifest.get("version") != VERSION:
        problem = f"The corpus {folder} has format {manifest.get('version')!r}; this program reads {VERSION}"
        raise DataError(problem, "Prepare it again.")
    try:
        width = {"uint16": 2, "uint32": 4}[manifest["type"]]
        for side in ("train", "valid"):
            counts = [manifest["splits"][side][name] for name in ("tokens", "documents", "bytes", "characters")]
            matching = manifest["files"][f"{side}.bin"]["bytes"] == counts[0] * width
            if not matching or not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError
        complete = all(isinstance(manifest["files"][name]["sha256"], str) for name in FILES)
        if not complete or not isinstance(manifest["notes"], list) or not isinstance(manifest["key"], str):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _damaged(folder, "manifest.json is incomplete or contradicts itself") from None
    return manifest


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _split(folder: Path, manifest: dict[str, Any], side: str, width: np.dtype[Any]) -> Split:
    counts = manifest["splits"][side]
    if counts["tokens"]:
        tokens: np.ndarray = np.memmap(folder / f"{side}.bin", dtype=width, mode="r")
    else:
        tokens = np.zeros(0, dtype=width)  # an empty file cannot be mapped
    return Split(tokens, counts["documents"], counts["bytes"], counts["characters"])
