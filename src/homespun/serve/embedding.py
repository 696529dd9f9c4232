"""POST /v1/embeddings: texts to vectors, in forwards so small that texts which are being written go on between them.

n texts, e size.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from homespun.generate.embedder import Embedder
from homespun.generate.engine import Generator
from homespun.serve.errors import Refusal, about
from homespun.serve.limits import Limits
from homespun.serve.scheduler import Failed
from homespun.serve.schema import EmbeddingsRequest

PART = 256  # tokens of one forward


def embedder_of(generator: Generator) -> Embedder:
    """What makes vectors with a served model."""
    return Embedder(generator.model, generator.tokenizer)


def ids_of(asked: EmbeddingsRequest, generator: Generator, limits: Limits) -> list[list[int]]:
    """The token ids of each text. Raises a `Refusal` for what has no vector, and for more than the server allows."""
    if len(asked.input) > limits.inputs:
        message = f"A request may have {limits.inputs:,} texts here, not {len(asked.input):,}"
        raise Refusal(400, message, "invalid_value", "input")
    if asked.dimensions not in (None, size := embedder_of(generator).size):
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


def told(asked: EmbeddingsRequest, texts: Sequence[Sequence[int]], vectors: np.ndarray) -> dict[str, Any]:
    """The answer, in OpenAI's shape. Raises `Failed` for vectors (n, e) that are not finite."""
    if not np.isfinite(vectors).all():
        raise Failed("The model gives numbers that are not finite", "Serve another checkpoint.")
    write = _base64 if asked.encoding_format == "base64" else _listed
    tokens = sum(map(len, texts))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": write(row)} for place, row in enumerate(vectors)],
        "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _listed(row: np.ndarray) -> list[float]:
    numbers: list[float] = row.tolist()
    return numbers


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
