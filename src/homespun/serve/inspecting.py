"""POST /v1/inspect: how likely each token of a text was, and what it was made by. T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from homespun.generate.batch import describe
from homespun.generate.engine import Generator
from homespun.model.decoder import Decoder
from homespun.model.feedforward.routers import Routing, TopKRouter
from homespun.serve.errors import Refusal
from homespun.serve.schema import InspectRequest

ALTERNATIVES = 5
PART = 256  # tokens whose logits are held at a time


def tokens_of(asked: InspectRequest, generator: Generator) -> list[int]:
    """The ids that are asked about. Raises a `Refusal` for ids that the model does not know, or more than it reads."""
    if asked.token_ids is not None:
        ids = asked.token_ids
    else:
        ids = generator.begin + generator.tokenizer.encode(asked.text or "")
    ids = ids or [generator.tokenizer.end]
    vocab, context = generator.bias.numel(), generator.model.config.context
    if not 0 <= min(ids) <= max(ids) < vocab:
        raise Refusal(400, f"The ids of this model end at {vocab - 1:,}", "invalid_value", "token_ids")
    if len(ids) > context:
        message = f"The model reads {context:,} tokens at a time, and these are {len(ids):,}"
        raise Refusal(400, message, "context_length_exceeded", "token_ids" if asked.text is None else "text")
    return ids


@torch.inference_mode()
def inspect(generator: Generator, ids: list[int]) -> list[dict[str, Any]]:
    """One entry for each token: its probability after those before it, what else was likely, and its experts."""
    writer = generator.writer
    numbers: list[list[float]] = []
    with _choices(writer) as chosen:
        tokens = torch.tensor([ids], device=generator.bias.device)
        hidden = writer.hidden(tokens)[0][0]  # (T, d)
    for start in range(0, len(ids) - 1, PART):
        part = hidden[start : min(start + PART, len(ids) - 1)]
        following = tokens[0, start + 1 : start + 1 + len(part)]
        numbers += describe(writer.logits(part).float(), following, ALTERNATIVES).tolist()
    entries = [_entry(ids[0], None, [], generator)]
    for token, (_, log_probability, *others) in zip(ids[1:], numbers, strict=True):
        entries.append(_entry(token, log_probability, others, generator))
    for place, entry in enumerate(entries):
        entry["experts"] = [None if layer is None else layer[place] for layer in chosen] if any(chosen) else None
    return entries


def _entry(token: int, log_probability: float | None, others: list[float], generator: Generator) -> dict[str, Any]:
    alternatives = [
        {"id": int(other), "text": _text(int(other), generator), "probability": _probability(value)}
        for other, value in zip(others[::2], others[1::2], strict=True)
    ]
    probability = None if log_probability is None else _probability(log_probability)
    return {"id": token, "text": _text(token, generator), "probability": probability, "alternatives": alternatives}


def _probability(log_probability: float) -> float:
    return float(torch.tensor(log_probability, dtype=torch.float64).exp())


def _text(token: int, generator: Generator) -> str:
    return generator.tokenizer.decode([token], special=True)


@contextmanager
def _choices(model: Decoder) -> Iterator[list[list[list[int]] | None]]:
    """What the routers choose inside: for each layer the experts of each token, none for a layer without experts."""
    chosen: list[list[list[int]] | None] = [None] * len(model.model.layers)

    def noting(layer: int) -> Any:
        def note(module: nn.Module, read: Any, routing: Routing) -> None:
            chosen[layer] = _listed(routing.chosen)

        return note

    hooks = [
        part.register_forward_hook(noting(layer))
        for layer, block in enumerate(model.model.blocks())
        for part in block.modules()
        if isinstance(part, TopKRouter)
    ]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def _listed(chosen: Tensor) -> list[list[int]]:
    return chosen.tolist()
