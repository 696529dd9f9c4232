"""One side of a corpus, or one part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


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


def split_of(folder: Path, manifest: dict[str, Any], side: str, width: np.dtype[Any]) -> Split:
    """One side of the corpus in `folder`; its file is only mapped."""
    counts = manifest["splits"][side]
    if counts["tokens"]:
        tokens: np.ndarray = np.memmap(folder / f"{side}.bin", dtype=width, mode="r")
    else:
        tokens = np.zeros(0, dtype=width)  # an empty file cannot be mapped
    return Split(tokens, counts["documents"], counts["bytes"], counts["characters"])


def part_of(tokens: np.ndarray, place: Mapping[str, int]) -> Split:
    """The part of a side that starts, and ends, at `place`."""
    found = tokens[place["start"] : place["start"] + place["tokens"]]
    return Split(found, place["documents"], place["bytes"], place["characters"])
