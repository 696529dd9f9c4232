"""The meaning of texts, as a run tells it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from homespun.generate.embedder import Embedder
from homespun.generate.thought import Source, fingerprint


class RunMeaning:
    """The vectors of a run's model, and a hash of all that they depend on: its weights and its vocabulary."""

    def __init__(self, run: Source):
        self._run = run
        self.embedder = Embedder(run.model, run.tokenizer)

    @cached_property
    def identity(self) -> str:
        """See `Meaning`: of the weights at the first time that somebody asks."""
        return hashlib.sha256((fingerprint(self._run.model) + self._run.tokenizer.identity).encode()).hexdigest()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Meaning`."""
        return self.embedder.embed(texts)
