"""How well a model predicts given text: bits per byte, as its training measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from homespun.data.batches import validation_batches
from homespun.data.conversation import encode
from homespun.data.sources import documents
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


def text_figures(model: Decoder, tokenizer: Tokenizer, sources: Sequence[str | Path]) -> dict[str, float]:
    """Bits per byte, loss (nats per token) and perplexity of all text of `sources`, every token but the first predicted
    once, in windows of the context. Raises `DataError` where there is too little text."""
    pieces = [np.array([*encode(document, tokenizer), tokenizer.end]) for document in documents(sources)]
    text = Text(np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64))
    if len(text.tokens) < 2:
        raise DataError("There is no text to evaluate on", "Name a source that holds text.")
    device, objective = model.head_weight.device, NextToken().build()
    token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(device)
    nats, tokens, text_bytes = 0.0, 0, 0
    training = model.training
    model.eval()
    with torch.no_grad():
        for batch in validation_batches(text, model.config.context, ROWS):
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
