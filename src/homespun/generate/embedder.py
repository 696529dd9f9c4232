"""Texts to vectors, with a trained model. n texts, T tokens, e size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from homespun.data.tokenizer import Tokenizer
from homespun.errors import DataError
from homespun.generate.batch import evaluating
from homespun.model.decoder import Decoder

TOKENS = 2**14  # of one forward

Read = list[tuple[int, np.ndarray]]
"""The places of texts, each with the unit vector (e,) of a part of it."""


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
        encoded = self.tokenizer.encode_batch(texts)
        if [] in encoded:
            raise DataError(f"Text {encoded.index([]) + 1} is empty", "Leave it out: it has no meaning to tell.")
        return self.join(len(encoded), self.read(encoded, TOKENS))

    def read(self, texts: Sequence[Sequence[int]], most: int) -> Iterator[Read]:
        """Reads texts of token ids in as many steps as it takes, one forward of at most `most` tokens in each; a step
        gives nothing while a long part is not read to its end."""
        context, device = self.model.config.context, self.model.head_weight.device
        parts = [(len(part), owner, part) for owner, ids in enumerate(texts) for part in _cut(ids, context)]
        parts.sort(key=lambda part: part[0])  # texts of similar length are read together
        while parts:
            longest = parts[-1][0]
            taken = [parts.pop() for _ in range(min(len(parts), max(1, most // longest)))]
            tokens = torch.tensor([[*ids, *[0] * (longest - size)] for size, _, ids in taken], device=device)
            cache = self.model.new_cache(1, longest) if longest > most else None
            hidden: list[Tensor] = []
            for begin in range(0, longest, most):
                if begin:
                    yield []
                with torch.inference_mode(), evaluating(self.model):
                    hidden.append(self.model.hidden(tokens[:, begin : begin + most], cache)[0])
            with torch.inference_mode(), evaluating(self.model):
                lengths = torch.tensor([size for size, _, _ in taken], device=device)
                vectors = self.model.embedding(tokens, torch.cat(hidden, 1), lengths).cpu().numpy()
            yield [(owner, vector) for (_, owner, _), vector in zip(taken, vectors, strict=True)]

    def join(self, count: int, steps: Iterable[Read]) -> np.ndarray:
        """The vectors (n, e) of `count` texts, of all that `read` gave."""
        sums = np.zeros((count, self.size), dtype=np.float32)
        for step in steps:
            for owner, vector in step:
                sums[owner] += vector
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        unit: np.ndarray = sums / np.maximum(lengths, np.finfo(np.float32).tiny)
        return unit


def _cut(ids: Sequence[int], context: int) -> list[Sequence[int]]:
    """Parts of equal length that the context holds."""
    count = -(-len(ids) // context)
    edges = [len(ids) * edge // count for edge in range(count + 1)]
    return [ids[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]
