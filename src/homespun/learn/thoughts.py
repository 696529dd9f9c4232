"""Training of a decoder of thoughts: it says spans of a run's own corpus, given only their thoughts.

The model that makes the thoughts never changes. B spans, T tokens, e size of a thought.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from homespun.config import Config, Count
from homespun.data.batches import IGNORED
from homespun.data.material import Material, Side
from homespun.data.tokenizer import Tokenizer
from homespun.errors import DataError, TrainingError
from homespun.model.decoder import Decoder
from homespun.model.prefixed import PrefixedDecoder, turn
from homespun.optim import clip_gradients


class Thinking(Config):
    """How a decoder of thoughts is trained: for `minutes`, or `steps` if fewer, on `rows` spans of 4 to `span` tokens.

    `dropout`: the share of the tokens it reads that are hidden from it, so that it listens to the thought (Bowman et
    al., 2016); `noise`: added to each number of a thought as the decoder sees it, with a variance of 1.
    """

    minutes: Annotated[float, Field(gt=0)] = 1.0
    steps: Count = 100_000
    rows: Count = 32
    span: Annotated[Count, Field(ge=8, le=64)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    noise: Annotated[float, Field(ge=0)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Latent(Protocol):
    """What is trained: `homespun.generate.thought.LatentDecoder`."""

    network: PrefixedDecoder
    dim: int

    def bind(self, source: Source) -> None: ...


class Source(Protocol):
    """What makes the thoughts: a run."""

    @property
    def model(self) -> Decoder: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(frozen=True)
class Spans:
    """Token ids (B, T), padded with 0 on the right, and how many each row has."""

    tokens: Tensor
    lengths: Tensor

    def targets(self, end: int) -> Tensor:
        """What is to be said: the span and the end, (B, T + 1)."""
        targets = torch.full((len(self.tokens), self.tokens.size(1) + 1), IGNORED)
        inside = torch.arange(self.tokens.size(1)) < self.lengths[:, None]
        targets[:, :-1][inside] = self.tokens[inside]
        targets[torch.arange(len(targets)), self.lengths] = end
        return targets


def learn_thoughts(
    decoder: Latent,
    source: Source,
    material: Material | None,
    settings: Thinking | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    say: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Trains `decoder` on thoughts of `source` over its own text; returns the last loss, nats per token.

    `pairs`: questions whose thoughts lead to their answers. `say` hears of the step and the loss, every 50 steps.
    Raises `ConfigError` for the decoder of another model, and `TrainingError` where numbers are no longer finite.
    """
    if material is None:
        raise DataError("The run names no text of its own to think of", "Use a run that was trained on text.")
    decoder.bind(source)
    settings = settings or Thinking()
    random = np.random.default_rng(settings.seed)
    torch_random = torch.Generator().manual_seed(settings.seed)
    network, end = decoder.network, source.tokenizer.end
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    asked = _pairs(pairs, source, decoder.dim, network.context)
    longest = min(settings.span, network.context)
    if not network.mean.any():
        _fit(decoder, source, material, longest, random)
    network.train()
    begin, mean = time.monotonic(), math.nan
    try:
        for step in range(settings.steps):
            spent = max((time.monotonic() - begin) / (60 * settings.minutes), step / settings.steps)
            if spent >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * min(1, (step + 1) / 20) * min(1, 2 * (1 - spent) + 0.02)
            spans = draw(material.train, settings.rows, longest, end, random)
            vectors = vectors_of(source.model, spans, decoder.dim)
            loss = total = _loss(network, spans, vectors, end, settings, torch_random)
            if asked is not None:
                total = total + _loss(network, *_some(*asked, settings.rows, random), end, settings, torch_random)
            total.backward()
            _refuse_not_finite(clip_gradients(network.parameters(), 1.0) + total.detach())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            last = float(loss.detach())
            mean = last if math.isnan(mean) else 0.95 * mean + 0.05 * last
            if step % 50 == 49:
                say(step + 1, mean)
    finally:
        network.eval()
    return mean


def _fit(decoder: Latent, source: Source, material: Material, longest: int, random: np.random.Generator) -> None:
    """Tells the network how thoughts of the corpus differ."""
    many = [draw(material.train, 256, longest, source.tokenizer.end, random) for _ in range(8)]
    known = torch.cat([vectors_of(source.model, spans, decoder.dim) for spans in many])
    _refuse_not_finite(known.sum())
    decoder.network.fit(known)


def _refuse_not_finite(number: Tensor) -> None:
    if not math.isfinite(number):
        raise TrainingError("What is learnt is no number any more", "Lower the learning rate, or take a sound model.")


def draw(side: Side, rows: int, longest: int, end: int, random: np.random.Generator) -> Spans:
    """Spans of 4 to `longest` tokens from any place of a text, none over the border of two documents."""
    tokens = np.asarray(side.tokens)
    if len(tokens) < 8:
        raise DataError(f"There are only {len(tokens)} tokens to think of", "Give more text.")
    found: list[np.ndarray] = []
    for _ in range(100 * rows):
        place, length = int(random.integers(len(tokens) - 4)), int(random.integers(4, longest + 1))
        span = tokens[place : place + length]
        ends = np.flatnonzero(span == end)
        span = span[: ends[0]] if len(ends) else span
        if len(span) >= 4:
            found.append(span.astype(np.int64))
        if len(found) == rows:
            return _padded(found)
    raise DataError("The documents are too short to think of", "Give texts of four tokens and more.")


@torch.no_grad()
def vectors_of(model: Decoder, spans: Spans, dim: int) -> Tensor:
    """The thoughts of spans, (B, e) of length sqrt(e), as `ThoughtState.from_input` makes them."""
    training, device = model.training, model.head_weight.device
    model.eval()
    tokens = spans.tokens.to(device)
    hidden, _ = model.hidden(tokens)
    vectors = model.embedding(tokens, hidden, spans.lengths.to(device)).cpu()
    model.train(training)
    if vectors.size(1) != dim:
        vectors = vectors @ turn(vectors.size(1), dim)
    return torch.nn.functional.normalize(vectors, dim=-1) * math.sqrt(dim)


def _loss(
    network: PrefixedDecoder, spans: Spans, vectors: Tensor, end: int, settings: Thinking, random: torch.Generator
) -> Tensor:
    noise = settings.noise * torch.randn(vectors.shape, generator=random)
    hidden = torch.rand(spans.tokens.shape, generator=random) < settings.dropout
    read, targets = spans.tokens.masked_fill(hidden, end), spans.targets(end)
    device = network.codebook.device
    losses = network.losses(vectors.to(device), read.to(device), targets.to(device), noise.to(device))
    return losses.sum() / int((targets != IGNORED).sum())


def _pairs(pairs: Sequence[tuple[str, str]], source: Source, dim: int, context: int) -> tuple[Spans, Tensor] | None:
    if not pairs:
        return None
    questions, answers = (
        [np.array(ids[:context], dtype=np.int64) for ids in source.tokenizer.encode_batch(texts)]
        for texts in zip(*pairs, strict=True)
    )
    if not all(map(len, [*questions, *answers])):
        raise DataError("A question or an answer is empty", "Give both.")
    groups = [_padded(questions[at : at + 256]) for at in range(0, len(questions), 256)]
    return _padded(answers), torch.cat([vectors_of(source.model, group, dim) for group in groups])


def _some(answers: Spans, vectors: Tensor, rows: int, random: np.random.Generator) -> tuple[Spans, Tensor]:
    """All pairs, or `rows` of many."""
    if len(vectors) <= rows:
        return answers, vectors
    chosen = torch.from_numpy(random.choice(len(vectors), rows, replace=False))
    lengths = answers.lengths[chosen]
    return Spans(answers.tokens[chosen, : int(lengths.max())], lengths), vectors[chosen]


def _padded(rows: Sequence[np.ndarray]) -> Spans:
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.from_numpy(row)
    return Spans(tokens, lengths)
