"""Writes the files of a corpus: one pass to weigh the documents, one to encode them; neither holds more than a sample.

Which side of the split a document falls on depends on a hash of its content alone: equal documents never fall on both,
and no document changes sides because others come or go. The lowest hashes are for validation, the highest are the
sample that the vocabulary is learnt from, so the two do not meet either.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from homespun.data.conversation import encode
from homespun.data.formats import PIECE, Document, Meter
from homespun.data.sources import Side, Source
from homespun.data.text import BLOCK, cut
from homespun.data.tokenizer import Tokenizer
from homespun.errors import DataError

Progress = Callable[[str, int, int | None, int], None]
"""Is told the phase, the bytes done, the bytes in all (`None`: not known) and the tokens so far."""

WHOLE = ""
"""The name of the only part, where the text is no mixture of named ones."""

SAMPLE = 16 * 2**20  # characters that a vocabulary is learnt from, at most
VALIDATION = 4 * 2**20  # bytes: about a million tokens tell the loss to the third digit
FEW = 10  # documents: with fewer, running text is cut finer, so that a short text has two sides too
_BATCH = 1 << 18  # characters encoded in one call of the library
_SLICE = 1 << 16  # characters of a text encoded in one piece


@dataclass
class Survey:
    """What one pass over the sources found."""

    piece: int  # characters after which running text was cut
    declared: bool  # the sources' names say which side they are
    documents: int = 0
    bytes: int = 0
    hashes: array[int] = field(default_factory=lambda: array("Q"))  # of the documents that no name puts on a side
    sizes: array[int] = field(default_factory=lambda: array("Q"))  # their bytes
    sample: list[tuple[int, int, str]] = field(default_factory=list)  # heap of (hash, number, text); low hashes leave
    sampled: int = 0  # characters in it

    def add(self, side: Side | None, document: Document) -> None:
        """Counts a document and considers it for the sample."""
        text = "\n".join(part for part in document if isinstance(part, str))
        size = len(text.encode())
        self.documents += 1
        self.bytes += size
        if side == "valid":
            return
        hashed = content_hash(document)
        self.hashes.append(hashed)
        self.sizes.append(size)
        text = text[:SAMPLE]
        heapq.heappush(self.sample, (hashed, self.documents, text))
        self.sampled += len(text)
        while self.sampled > SAMPLE:
            self.sampled -= len(heapq.heappop(self.sample)[2])

    def threshold(self, fraction: float) -> int:
        """Documents with a lower hash are for validation: about `fraction` of them, and at most `VALIDATION` bytes.

        Of two or more different documents, at least one falls on each side, unless that would take more than three
        quarters of the text (one line repeated a thousand times is one document): then all of it is trained on.
        """
        if self.declared or not self.hashes or fraction == 0:
            return 0
        hashes, place = np.unique(np.frombuffer(self.hashes, dtype=np.uint64), return_inverse=True)
        sizes = np.bincount(place, weights=np.frombuffer(self.sizes, dtype=np.uint64))
        while fraction * self.bytes > VALIDATION:  # halving, so that a growing corpus moves few documents to training
            fraction /= 2
        below = int(np.searchsorted(hashes, np.uint64(int(fraction * 2**64))))
        below = max(min(below, len(hashes) - 1), min(1, len(hashes) - 1))
        while below > 1 and sizes[:below].sum() > sizes.sum() / 2:  # among few documents chance can choose too much
            below -= 1
        if sizes[:below].sum() > 0.75 * sizes.sum():
            return 0
        return int(hashes[below]) if below else 0


def content_hash(document: Document) -> int:
    """64 bits that depend on what the document says, and on nothing else."""
    content = b"\0".join(part.encode() if isinstance(part, str) else part.name.encode() for part in document)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def survey(sources: Sequence[Source], fraction: float, progress: Progress) -> Survey:
    """Weighs the sources. Where they give too few documents for two sides, running text is cut again, finer.

    Raises `DataError` where there is no text at all.
    """
    declared = any(source.side == "valid" for source in sources)
    found = Survey(PIECE, declared)
    for piece in (PIECE, PIECE // 8, PIECE // 64):
        found = Survey(piece, declared)
        for side, document in _read(sources, piece, "reading", progress):
            found.add(side, document)
        if declared or not fraction or found.documents >= FEW or found.bytes > 8 * FEW * PIECE:
            break
    if not found.documents:
        raise DataError(f"There is no text in {_names(sources)}", "Name a source that holds text.")
    return found


def held_out(found: Iterable[Survey], fraction: float) -> frozenset[int]:
    """The hashes of the documents that are for validation: each survey's share, and their equals in all others."""
    hashes: set[int] = set()
    for each in found:
        threshold = each.threshold(fraction)
        hashes.update(hashed for hashed in each.hashes if hashed < threshold)
    return frozenset(hashes)


def write(
    folder: Path,
    parts: Mapping[str, Sequence[Source]],
    found: Mapping[str, Survey],
    tokenizer: Tokenizer,
    held: frozenset[int],
    progress: Progress,
) -> dict[str, Any]:
    """Writes `train.bin`, `valid.bin` and `tokenizer.json` to `folder`; returns what the manifest says about them.

    The parts stand one behind the other, each with its survey in `found`; `held`: see `held_out`. Raises `DataError`
    where the text is too little to learn from, or has changed since the survey.
    """
    width = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    shards: dict[Side, _Shard] = {side: _Shard(folder / f"{side}.bin", width, tokenizer) for side in _SIDES}
    places = {}
    for name, sources in parts.items():
        before = {side: shard.counted() for side, shard in shards.items()}
        for side, document in _read(sources, found[name].piece, "encoding", progress, shards):
            if not found[name].declared:
                side = "valid" if content_hash(document) in held else "train"
            shards[side or "train"].add(document)
        places[name] = {side: shard.since(before[side]) for side, shard in shards.items()}
        _check(sources, found[name], places[name])
    for shard in shards.values():
        shard.close()
    size = sum(each.bytes for each in found.values())
    progress("encoding", size, size, sum(shard.counts.tokens for shard in shards.values()))
    tokenizer.save(folder / "tokenizer.json")
    files = {shard.path.name: {"bytes": shard.size, "sha256": shard.sha256.hexdigest()} for shard in shards.values()}
    data = (folder / "tokenizer.json").read_bytes()
    files["tokenizer.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {
        "type": width,
        "tokenizer": {"identity": tokenizer.identity, "vocabulary": tokenizer.vocab_size, "end": tokenizer.end},
        "files": files,
        "splits": {side: asdict(shard.counts) for side, shard in shards.items()},
    } | ({"parts": places} if list(parts) != [WHOLE] else {})


def _check(sources: Sequence[Source], found: Survey, counts: Mapping[Side, Mapping[str, int]]) -> None:
    if sum(side["documents"] for side in counts.values()) != found.documents:
        raise DataError(f"{_names(sources)} changed while it was read", "Try again when nothing writes there.")
    train = counts["train"]
    if train["tokens"] < 2 or train["characters"] < 2:
        raise DataError(f"{_names(sources)} has too little text to train on: {train['tokens']} tokens", "Give more.")


def save_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest, and waits until everything in the folder is on the disk."""
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


_SIDES: tuple[Side, Side] = ("train", "valid")


@dataclass
class Counts:
    """What one side of the split holds. `conversations`: documents with turns."""

    tokens: int = 0
    documents: int = 0
    conversations: int = 0
    bytes: int = 0
    characters: int = 0


class _Shard:
    """Collects documents and appends their ids, each document's followed by the end token, to a raw file."""

    def __init__(self, path: Path, width: str, tokenizer: Tokenizer):
        self.path, self.width, self.tokenizer = path, np.dtype(width).newbyteorder("<"), tokenizer
        self.counts, self.size, self.sha256 = Counts(), 0, hashlib.sha256()
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._waiting: list[Document] = []
        self._characters = 0

    def add(self, document: Document) -> None:
        self._waiting.append(document)
        texts = [part for part in document if isinstance(part, str)]
        self._characters += sum(map(len, texts))
        self.counts.documents += 1
        self.counts.conversations += len(texts) < len(document)
        self.counts.characters += sum(map(len, texts))
        self.counts.bytes += sum(len(text.encode()) for text in texts)
        if self._characters >= _BATCH or len(self._waiting) >= 4096:
            self._flush()

    def counted(self) -> Counts:
        """All counts so far."""
        self._flush()
        return replace(self.counts)

    def since(self, before: Counts) -> dict[str, int]:
        """The counts since then, and where they `start` in tokens."""
        now, then = asdict(self.counted()), asdict(before)
        return {"start": before.tokens} | {name: count - then[name] for name, count in now.items()}

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        ids = np.array(self._encode(), dtype=np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.tokenizer.vocab_size:
            raise DataError(
                f"The tokenizer gave the id {ids.max()}, past its vocabulary of {self.tokenizer.vocab_size:,}",
                "Give an intact tokenizer.json.",
            )
        data = ids.astype(self.width).tobytes()
        self._file.write(data)
        self.sha256.update(data)
        self.size += len(data)
        self.counts.tokens += len(ids)
        self._waiting, self._characters = [], 0

    def _encode(self) -> list[int]:
        plain = [document[0] if len(document) == 1 else "" for document in self._waiting]
        slices = [list(cut([text], _SLICE)) if isinstance(text, str) else [] for text in plain]
        encoded = iter(self.tokenizer.encode_batch([text for texts in slices for text in texts]))
        ids: list[int] = []
        for document, texts in zip(self._waiting, slices, strict=True):
            for _ in texts:
                ids += next(encoded)
            if not texts:  # a template's special tokens stand between its texts
                ids += encode(document, self.tokenizer)
            ids.append(self.tokenizer.end)
        return ids


def _read(
    sources: Sequence[Source], piece: int, phase: str, progress: Progress, shards: dict[Side, _Shard] | None = None
) -> Iterator[tuple[Side | None, Document]]:
    """All documents with the side their source declares; `progress` is told now and then."""
    meter, told = Meter(), 0
    sizes = [source.size() for source in sources]
    known = [size for size in sizes if size is not None]
    total = sum(known) if len(known) == len(sizes) else None

    def tell() -> None:
        progress(phase, meter.done, total, sum(shard.counts.tokens for shard in (shards or {}).values()))

    for source in sources:
        for document in source.documents(piece, meter):
            yield source.side, document
            if meter.done - told >= BLOCK:
                tell()
                told = meter.done
    tell()


def _names(sources: Sequence[Source]) -> str:
    return ", ".join(source.name for source in sources[:3]) + (f" and {len(sources) - 3} more" if sources[3:] else "")
