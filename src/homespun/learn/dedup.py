"""Cleaning, and telling whether a text was seen before: exactly by its hash, nearly by MinHash (Broder, 1997).

S shingles of a text, H hash functions.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np

BANDS, ROWS = 16, 6
"""Two texts of Jaccard similarity 0.8 share a band with probability 0.99, two of 0.4 with 0.06."""

SHINGLE = 8  # characters
PASSAGE = 32  # characters that two texts hardly share by chance

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_SPACES = re.compile(r"[^\w]+")
_BLANKS = re.compile(r"\n{3,}")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_RANDOM = np.random.Generator(np.random.PCG64(20241121))
_FACTORS = _RANDOM.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)  # (H,)
_OFFSETS = _RANDOM.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)  # (H,)


def clean(text: str) -> str:
    """The text in normal form C, without control characters, blanks at line ends and piles of empty lines."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _CONTROLS.sub("", text.encode("utf-8", "replace").decode("utf-8"))
    return _BLANKS.sub("\n\n", _TRAILING.sub("", text)).strip()


def unreadable(text: str) -> bool:
    """Whether more than a twentieth of it are marks of undecodable bytes."""
    return text.count("\ufffd") * 20 > len(text)


def content_key(text: str) -> str:
    """sha256 (hexadecimal) of the text, whatever its white space."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def signature(text: str) -> np.ndarray:
    """The least values of H hash functions over the shingles of the text's letters and digits, (H,) uint32."""
    shingles = _shingles(text, SHINGLE)
    least = [(shingles * factor + offset).min() for factor, offset in zip(_FACTORS, _OFFSETS, strict=True)]
    return (np.array(least, dtype=np.uint64) >> np.uint64(32)).astype(np.uint32)


def passages(text: str) -> np.ndarray:
    """A hash of each different run of `PASSAGE` letters and digits of the text, (S,) uint64."""
    return _shingles(text, PASSAGE)


def shared(found: np.ndarray, others: np.ndarray) -> float:
    """The share of some passages that are among others, which ascend."""
    places = np.searchsorted(others, found).clip(max=len(others) - 1)
    return float((others[places] == found).mean()) if len(others) else 0.0


def _shingles(text: str, size: int) -> np.ndarray:
    plain = _SPACES.sub(" ", text.lower()).encode("utf-32-le")
    points = np.frombuffer(plain, dtype="<u4").astype(np.uint64)
    count = max(1, len(points) - size + 1)
    shingles = np.zeros(count, dtype=np.uint64)
    for place in range(min(size, len(points))):
        shingles = shingles * _MULTIPLIER + points[place : place + count]
    return np.unique(shingles)


def bands(found: np.ndarray) -> list[int]:
    """A number for each band of a signature: texts that share none are not alike."""
    parts = found.reshape(BANDS, ROWS)
    digests = (hashlib.blake2b(bytes([i]) + part.tobytes(), digest_size=8).digest() for i, part in enumerate(parts))
    return [int.from_bytes(digest, "little", signed=True) for digest in digests]


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The estimated Jaccard similarity of two texts by their signatures."""
    return float((one == other).mean())
