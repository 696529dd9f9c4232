"""POST /v1/embeddings: texts to vectors, in forwards so small that texts which are being written go on between them.

n texts, T tokens, B rows, d width, e size.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homespun.generate.batch import evaluating
from homespun.generate.embedder import Embedder
from homespun.generate.engine import Generator
from homespun.model.decoder import Decoder
from homespun.serve.errors import Refusal, about
from homespun.serve.limits import Limits
from homespun.serve.scheduler import Failed
from homespun.serve.schema import EmbeddingsRequest

PART = 256  # tokens of one forward

Read = list[tuple[int, np.ndarray]]
"""The places of texts, each with the unit vector (e,) of a part of it."""


def ids_of(asked: EmbeddingsRequest, generator: Generator, limits: Limits) -> list[list[int]]:
    """The token ids of each text. Raises a `Refusal` for what has no vector, and for more than the server allows."""
    if len(asked.input) > limits.inputs:
        message = f"A request may have {limits.inputs:,} texts here, not {len(asked.input):,}"
        raise Refusal(400, message, "invalid_value", "input")
    if asked.dimensions not in (None, size := Embedder(generator.model, generator.tokenizer).size):
        message = f"The vectors of this model have {size:,} numbers, and a part of them would tell less than it seems"
        raise Refusal(400, message, "invalid_value", "dimensions")
    with about("input"):
        encoded = iter(generator.tokenizer.encode_batch([text for text in asked.input if isinstance(text, str)]))
    texts = [next(encoded) if isinstance(text, str) else text for text in asked.input]
    vocab = generator.bias.numel()
    for place, ids in enumerate(texts):
        if not ids:
            raise Refusal(400, f"input.{place} is empty: it has no meaning to tell", "invalid_value", "input")
        if not 0 <= min(ids) <= max(ids) < vocab:
            raise Refusal(400, f"The ids of this model end at {vocab - 1:,}", "invalid_value", "input")
    if (total := sum(map(len, texts))) > limits.input_tokens:
        message = f"The texts of a request may have {limits.input_tokens:,} tokens here, not {total:,}"
        raise Refusal(400, message, "context_length_exceeded", "input")
    return texts


def read_parts(model: Decoder, texts: Sequence[Sequence[int]]) -> Iterator[Read]:
    """Reads texts of token ids as `Embedder` does, in as many steps as it takes: one forward of `PART` tokens or less
    in each, which gives nothing while a long part is not read to its end."""
    context = model.config.context
    parts = sorted(((owner, part) for owner, ids in enumerate(texts) for part in _cut(ids, context)), key=_length)
    while parts:
        longest = _length(parts[-1])
        taken = [parts.pop() for _ in range(min(len(parts), max(1, PART // longest)))]
        rows, owners = [ids for _, ids in taken], [owner for owner, _ in taken]
        tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rows], device=model.head_weight.device)
        cache = model.new_cache(1, longest) if longest > PART else None
        hidden: list[Tensor] = []
        for begin in range(0, longest, PART):
            with torch.inference_mode(), evaluating(model):
                hidden.append(model.hidden(tokens[:, begin : begin + PART], cache)[0])
            if begin + PART < longest:
                yield []
        with torch.inference_mode(), evaluating(model):
            lengths = torch.tensor([len(ids) for ids in rows], device=tokens.device)
            found = model.embedding(tokens, torch.cat(hidden, 1), lengths).float().cpu().numpy()
        yield list(zip(owners, found, strict=True))


def told(asked: EmbeddingsRequest, texts: Sequence[Sequence[int]], read: Sequence[Read]) -> dict[str, Any]:
    """The answer, in OpenAI's shape: the vector of a text is the mean of those of its parts, at length 1."""
    sums = np.zeros((len(texts), len(read[-1][0][1])), dtype=np.float32)
    for place, vector in chain.from_iterable(read):
        sums[place] += vector
    if not np.isfinite(sums).all():
        raise Failed("The model gives numbers that are not finite", "Serve another checkpoint.")
    unit = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    write = _base64 if asked.encoding_format == "base64" else _listed
    tokens = sum(map(len, texts))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": write(row)} for place, row in enumerate(unit)],
        "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _cut(ids: Sequence[int], context: int) -> list[Sequence[int]]:
    """Parts of equal length that the context holds."""
    count = -(-len(ids) // context)
    edges = [len(ids) * edge // count for edge in range(count + 1)]
    return [ids[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]


def _length(part: tuple[int, Sequence[int]]) -> int:
    return len(part[1])


def _listed(row: np.ndarray) -> list[float]:
    numbers: list[float] = row.tolist()
    return numbers


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
