"""All that `homespun evaluate` measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homespun.data.sources import documents
from homespun.data.tokenizer import Tokenizer
from homespun.evaluate import embeddings
from homespun.evaluate.tasks import read_retrieval, read_similarity
from homespun.evaluate.text import answer_figures, text_figures
from homespun.model.decoder import Decoder

Places = Sequence[str | Path]


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    embed: embeddings.Embed,
    data: Places = (),
    retrieval: Places = (),
    similarity: Places = (),
) -> dict[str, Any]:
    """`text`: figures of the text of `data`; `answers`: of the answers in it, if it has some. Each file of questions or
    of pairs by its name: figures of the model, and of words alone."""
    found: dict[str, Any] = {}
    if data:
        texts = list(documents(data))
        found["text"] = text_figures(model, tokenizer, texts)
        if answers := answer_figures(model, tokenizer, texts):
            found["answers"] = answers
    found |= {str(place): embeddings.retrieval(read_retrieval(place), embed) for place in retrieval}
    return found | {str(place): embeddings.similarity(read_similarity(place), embed) for place in similarity}
