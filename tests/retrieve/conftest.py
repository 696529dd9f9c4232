"""Some notes, and meanings that need no model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

TOPICS = (("fox", "vixen", "barn"), ("whale", "ocean", "sing"), ("tea", "kettle", "cup"))


class Topics:
    """Vectors that know which words mean the same; `identity` as a model's."""

    def __init__(self, identity: str = "one"):
        self.identity = identity
        self.embedded = 0

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += len(texts)
        rows = [[sum(text.lower().count(word) for word in words) + 1e-3 for words in TOPICS] for text in texts]
        found = np.array(rows, dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class Numbers(Topics):
    """Vectors that mean nothing, but differ."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        rows = [list(hashlib.sha256(text.encode()).digest()[:8]) for text in texts]
        found = np.array(rows, dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class Pairs(Topics):
    """Vectors that know that q7 asks for a7, and otherwise like the later ones better."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), 100), dtype=np.float32)
        for row, text in enumerate(texts):
            name = re.search(r"\b([qa])(\d+)", text)
            assert name is not None
            found[row] = 1e-4 * int(name[2]) if name[1] == "a" else 0.01
            found[row, int(name[2])] = 1.0
        return found


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder with three notes."""
    folder = tmp_path / "notes"
    (folder / "sea").mkdir(parents=True)
    (folder / "fox.md").write_text("# Foxes\n\nThe fox sleeps in the old barn.\n", encoding="utf-8")
    (folder / "sea" / "whales.txt").write_text("A whale sings in the ocean.\n", encoding="utf-8")
    (folder / "tea.jsonl").write_text(
        '{"text": "Put the kettle on."}\n{"prompt": "What is in the cup?", "completion": "Tea."}\n', encoding="utf-8"
    )
    return folder
