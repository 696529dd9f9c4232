"""Texts to vectors, with a trained model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from homespun.data.tokenizer import Tokenizer
from homespun.errors import DataError
from homespun.model.decoder import Decoder

TOKENS = 2**14  # of one forward


class Embedder:
    """`embedder.embed(texts)` -> unit vectors (n, e): their products are cosines. A model without an embedding head
    gives the means of its hidden states."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer

    @property
    def size(self) -> int:
        """Numbers of a vector, e."""
        head = self.model.config.embedding
        return head.size if head is not None else self.model.config.width

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vector of each text, (n, e) float32, whatever its company.

        A text longer than the context is read in parts of equal length; its vector is the mean of theirs, at length 1.
        Raises `DataError` for a text without any token.
        """
        if isinstance(texts, str):
            raise DataError("A single text was given", "Give a list of texts.")
        parts = [self._parts(ids, index) for index, ids in enumerate(self.tokenizer.encode_batch(texts))]
        vectors = self._vectors([part for each in parts for part in each])
        owners = np.repeat(np.arange(len(parts)), [len(each) for each in parts])
        sums = np.zeros((len(parts), self.size), dtype=np.float32)
        np.add.at(sums, owners, vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        unit: np.ndarray = sums / np.maximum(lengths, np.finfo(np.float32).tiny)
        return unit

    def _parts(self, ids: list[int], index: int) -> list[list[int]]:
        if not ids:
            raise DataError(f"Text {index + 1} is empty", "Leave it out: it has no meaning to tell.")
        count = -(-len(ids) // self.model.config.context)
        edges = [len(ids) * edge // count for edge in range(count + 1)]
        return [ids[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]

    @torch.inference_mode()
    def _vectors(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """(n, e), computed in batches of texts of similar length."""
        device = self.model.head_weight.device
        vectors = np.zeros((len(rows), self.size), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        training = self.model.training
        self.model.eval()
        while order:
            longest = len(rows[order[-1]])
            taken = [order.pop() for _ in range(min(len(order), max(1, TOKENS // longest)))]
            tokens = torch.zeros(len(taken), longest, dtype=torch.int64)
            for place, row in enumerate(taken):
                tokens[place, : len(rows[row])] = torch.tensor(rows[row])
            lengths = torch.tensor([len(rows[row]) for row in taken], device=device)
            tokens = tokens.to(device)
            hidden, _ = self.model.hidden(tokens)
            vectors[taken] = self.model.embedding(tokens, hidden, lengths).cpu().numpy()
        self.model.train(training)
        return vectors
