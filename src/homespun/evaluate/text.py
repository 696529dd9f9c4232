"""How well a model predicts given text: bits per byte, as its training measures them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from homespun.data.batches import IGNORED, Batch, validation_batches
from homespun.data.conversation import ASSISTANT, encode
from homespun.data.formats import Document
from homespun.data.rows import Rows, row_of
from homespun.data.tokenizer import Tokenizer
from homespun.errors import DataError
from homespun.model.decoder import Decoder
from homespun.objectives import NextToken
from homespun.objectives.metrics import bits_per_byte, perplexity

ROWS = 16  # of one forward


@dataclass(frozen=True)
class Text:
    """Documents as ids, each followed by the end token."""

    tokens: np.ndarray  # (N,)


def text_figures(model: Decoder, tokenizer: Tokenizer, documents: Sequence[Document]) -> dict[str, float]:
    """Bits per byte, loss (nats per token) and perplexity of all text, every token but the first predicted once, in
    windows of the context. Raises `DataError` where there is too little text."""
    pieces = [np.array([*encode(document, tokenizer), tokenizer.end]) for document in documents]
    text = Text(np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64))
    if len(text.tokens) < 2:
        raise DataError("There is no text to evaluate on", "Name a source that holds text.")
    return _figures(model, tokenizer, validation_batches(text, model.config.context, ROWS))


def answer_figures(model: Decoder, tokenizer: Tokenizer, documents: Sequence[Document]) -> dict[str, float] | None:
    """The same of the answers in conversations alone, as `homespun tune` counts them: each conversation by itself, cut
    at the context. Nothing where no answer lies within it."""
    context = model.config.context
    read = [row_of(document, tokenizer) for document in documents if ASSISTANT in document]
    cut = [(tokens[:context], targets[:context]) for tokens, targets in read]
    rows = Rows([(tokens, targets) for tokens, targets in cut if (targets != IGNORED).any()])
    order = np.argsort(rows.lengths, kind="stable")
    batches = (rows.batch(order[first : first + ROWS]) for first in range(0, len(order), ROWS))
    return _figures(model, tokenizer, batches) if len(order) else None


def _figures(model: Decoder, tokenizer: Tokenizer, batches: Iterable[Batch]) -> dict[str, float]:
    device, objective = model.head_weight.device, NextToken().build()
    token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(device)
    nats, tokens, text_bytes = 0.0, 0, 0
    training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            losses = objective(model, batch)
            nats, tokens = nats + float(losses.loss), tokens + losses.count
            text_bytes += int(token_bytes[batch.targets[batch.targets >= 0]].sum())
    model.train(training)
    return {
        "bits_per_byte": bits_per_byte(nats, text_bytes),
        "loss": nats / tokens,
        "perplexity": perplexity(nats, tokens),
        "tokens": tokens,
        "bytes": text_bytes,
    }
