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
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from homespun.config import to_dict
from homespun.data.batches import Batch, Batches, validation_batches
from homespun.data.manifest import FILES, FORMAT, VERSION, damaged, read_manifest
from homespun.data.mixture import DataConfig, MixedBatches
from homespun.data.shards import SAMPLE, WHOLE, Progress, Survey, held_out, save_manifest, survey, write
from homespun.data.sources import Side, Source, disk_errors, resolve, spooled
from homespun.data.split import Split, part_of, split_of
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import TokenizerConfig
from homespun.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """An opened corpus; `Corpus.open` makes one."""

    folder: Path
    manifest: dict[str, Any]
    train: Split
    valid: Split  # may be empty
    mixture: DataConfig = field(default_factory=DataConfig)  # how its parts are drawn from, where it has any

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Opens a prepared folder; its files are only mapped. Raises `DataError` where it is none, or is cut short."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        for name in FILES:  # touching a page past the end of a mapped file would kill the process
            size, expected = _size(folder / name), manifest["files"][name]["bytes"]
            if size != expected:
                raise damaged(folder, f"{name} has {size:,} bytes instead of {expected:,}")
        width = np.dtype(manifest["type"]).newbyteorder("<")
        train, valid = (split_of(folder, manifest, side, width) for side in ("train", "valid"))
        return cls(folder, manifest, train, valid)

    def verify(self) -> None:
        """Reads every file and compares it with its sha256. Raises `DataError` that names the damaged one."""
        for name in FILES:
            with open(self.folder / name, "rb") as file:
                found = hashlib.sha256()
                while block := file.read(1 << 20):
                    found.update(block)
            if found.hexdigest() != self.manifest["files"][name]["sha256"]:
                raise damaged(self.folder, f"{name} does not match its sha256")

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
    def key(self) -> str:
        """What it was made of, hashed: the content of the sources and the settings."""
        return str(self.manifest["key"])

    @property
    def conversations(self) -> int:
        """How many documents with turns there are to train on."""
        return int(self.manifest["splits"]["train"].get("conversations", 0))

    def parts(self, side: Side) -> dict[str, Split]:
        """A side by the names of a mixture's parts; whole, under the name "", where it is none."""
        whole = self.train if side == "train" else self.valid
        found = {name: part_of(whole.tokens, part[side]) for name, part in self.manifest.get("parts", {}).items()}
        return found or {WHOLE: whole}

    def batches(self, context: int, rows: int, seed: int, rank: int = 0, world: int = 1) -> Batches | MixedBatches:
        """What a run is trained on: `batches[step]` gives the rows of this rank, of a global batch of `rows`."""
        if "parts" not in self.manifest:
            return Batches(self.train, context, rows, seed, rank, world)
        parts = self.parts("train")
        shares = self.mixture.shares({name: split.count for name, split in parts.items()})
        return MixedBatches(parts, shares, context, rows, seed, rank, world)

    def validation(self, context: int, rows: int, limit: int | None = None) -> Iterator[tuple[str, Batch]]:
        """The validation side in batches of up to `rows` windows, each with the name of its part; of each part, at most
        its part of `limit` targets."""
        parts = self.parts("valid")
        most = None if limit is None else limit // len(parts)
        for name, split in parts.items():
            yield from ((name, batch) for batch in validation_batches(split, context, rows, most))

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

    The sources are those of `data.mixture`, where it names any. The corpus lies in the folder `out`, else in the cache
    (`HOMESPUN_CACHE`, or `~/.cache/homespun`). A folder that is a prepared corpus may be given as the only source.
    `progress` is told the phase ("checking", "reading", "learning", "encoding"), bytes and tokens; `say` gets sentences
    for people. Raises `DataError` for sources that cannot be read or hold too little text, for a full disk, and where
    `out` holds something else.
    """
    progress, say = progress or (lambda *_: None), say or (lambda sentence: None)
    groups = data.groups(sources)
    named = [name for group in groups.values() for name in group]
    if ready := [name for name in named if is_corpus(name)]:
        return _given(ready, named, out or data.mixture, say)
    with ExitStack() as stack:
        found = {name: resolve(stack.enter_context(spooled(group)), say) for name, group in groups.items()}
        key = _key(found, tokenizer, data, progress)
        target = Path(out) if out else cache_folder() / key[:32]
        if (corpus := _reuse(target, key, out is not None, say)) is None:
            corpus = _make(target, key, found, tokenizer, data, progress)
            for sentence in corpus.notes:
                say(sentence)
    return replace(corpus, mixture=data)


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
    ready: Sequence[str | Path], sources: Sequence[str | Path], more: object, say: Callable[[str], None]
) -> Corpus:
    if len(sources) > 1 or more:
        raise DataError(f"{str(ready[0])!r} is a prepared corpus", "Give it alone, or give the texts it was made from.")
    corpus = Corpus.open(ready[0])
    say(f"{ready[0]} is a prepared corpus: its own vocabulary of {corpus.tokenizer.vocab_size:,} tokens is used.")
    return corpus


def _key(
    parts: Mapping[str, Sequence[Source]], tokenizer: TokenizerConfig, data: DataConfig, progress: Progress
) -> str:
    """What the files of a corpus depend on, hashed: content, not names (but those of parts)."""
    settings = [VERSION, to_dict(tokenizer), {"validation_fraction": data.validation_fraction}]
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if (file := getattr(tokenizer, "file", None)) and (place := Path(file)).exists():
        for path in sorted(place.iterdir()) if place.is_dir() else [place]:
            status = path.stat()
            whole.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns};".encode())
    sources = [(name, source) for name, group in parts.items() for source in group]
    sizes = [source.size() or 0 for _, source in sources]
    for number, (name, source) in enumerate(sources):
        part = json.dumps(name) if name != WHOLE else ""
        whole.update(f"{part}{source.side}:{source.fingerprint()};".encode())
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
    target: Path,
    key: str,
    parts: Mapping[str, Sequence[Source]],
    tokenizer: TokenizerConfig,
    data: DataConfig,
    progress: Progress,
) -> Corpus:
    """Makes the corpus in a temporary folder beside `target` and renames it: a crash leaves nothing half done."""
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        folder = target.parent / f"{_PARTIAL}{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            found = {name: survey(sources, data.validation_fraction, progress) for name, sources in parts.items()}
            held = held_out(found.values(), data.validation_fraction)
            progress("learning", 0, None, 0)
            made, notes = _learn(tokenizer, list(found.values()), held)
            manifest = write(folder, parts, found, made, held, progress)
            names = [source.name for sources in parts.values() for source in sources]
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "key": key,
                "sources": {
                    "count": len(names),
                    "first": names[:100],
                    "bytes": sum(each.bytes for each in found.values()),
                },
                "settings": {"tokenizer": to_dict(tokenizer), "data": to_dict(data)},
                "notes": notes
                + _split_notes(manifest["splits"], all(each.declared for each in found.values()))
                + _part_notes(manifest.get("parts", {})),
                **manifest,
            }
            save_manifest(folder, manifest)
            _publish(folder, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return Corpus.open(target)


def _learn(tokenizer: TokenizerConfig, found: Sequence[Survey], held: Container[int]) -> tuple[Tokenizer, list[str]]:
    """The tokenizer, learnt from the highest hashes of all parts together."""
    taken = sorted(((each[0], each[2]) for part in found for each in part.sample if each[0] not in held), reverse=True)
    most = SAMPLE if len(found) > 1 else math.inf  # one part has its bound already
    sums = accumulate(len(text) for _, text in taken)
    sample = [text for (_, text), size in zip(taken, sums, strict=True) if size <= most][::-1]
    total = sum(each.bytes for each in found)
    made, sentence = tokenizer.build(sample, total)
    notes = [sentence]
    if len(sample) < len(taken) or any(len(each.sample) < len(each.hashes) for each in found):
        size = sum(len(text.encode()) for text in sample)
        notes.append(f"It was chosen on a sample of {size / 1e6:,.0f} MB of the {total / 1e6:,.0f} MB of text.")
    return made, notes


def _split_notes(splits: dict[str, Any], declared: bool) -> list[str]:
    train, valid = splits["train"], splits["valid"]
    how = "by the names of the files" if declared else "by document"
    if not valid["tokens"]:
        return [f"{train['tokens']:,} tokens to train on; nothing is left for validation."]
    counts = f"{train['tokens']:,} tokens to train on, {valid['tokens']:,} for validation"
    return [f"{counts}, split {how} ({train['documents']:,} and {valid['documents']:,} documents)."]


def _part_notes(parts: Mapping[str, Any]) -> list[str]:
    unmeasured = ", ".join(repr(name) for name, part in parts.items() if part["valid"]["tokens"] < 2)
    return [f"Too little text to measure by itself: {unmeasured}."] if unmeasured else []


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


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
