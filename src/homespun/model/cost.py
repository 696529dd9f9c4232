"""What a model costs: parameters, FLOPs, memory, cache. Pure arithmetic, checked against counted models in the tests.

Conventions: one multiply-add is two FLOPs; the embedding look-up is free; training is three times the forward; `causal`
counts the keys that a query really sees (the mean over a sequence), otherwise all, as PaLM and torch's counter do.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homespun.model.decoder import ModelConfig


@dataclass(frozen=True)
class PartCost:
    """Costs of a part: numbers it learns, of which `idle` are not used for a given token; FLOPs and kept activations
    for each token; numbers of the cache for each token, and of its `state`, which does not grow, for each sequence."""

    parameters: int = 0
    flops: float = 0.0
    activations: int = 0
    cache: int = 0
    idle: int = 0
    state: int = 0

    def __add__(self, other: PartCost) -> PartCost:
        return PartCost(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __mul__(self, times: int) -> PartCost:
        return PartCost(*(getattr(self, one.name) * times for one in fields(self)))


def linear(inputs: int, outputs: int, bias: bool = False) -> PartCost:
    """A matrix product. Its input is counted by whoever makes it."""
    return PartCost(inputs * outputs + (outputs if bias else 0), 2 * inputs * outputs)


def mean_keys(length: int, window: int | None, causal: bool) -> float:
    """How many keys a query sees, on average over a sequence of `length` tokens."""
    if not causal:
        return length
    window = min(window or length, length)
    return (window * (window + 1) / 2 + (length - window) * window) / length


@dataclass(frozen=True)
class Cost:
    """What a whole model costs.

    parameters: all; active: those that take part in one token; embedding: the tables at the input. FLOPs per token of
    the forward and of a training step at full context. Bytes: `weights`, `cache_per_token` (of one sequence, all
    layers), `cache_state` (what a sequence keeps whatever its length), `activations_per_token` (kept for the backward),
    each at the given item size.
    """

    parameters: int
    active: int
    embedding: int
    forward_flops: float
    training_flops: float
    weights: int
    cache_per_token: int
    cache_state: int
    activations_per_token: int

    def training_bytes(self, tokens: int, state_numbers: float = 2.0) -> int:
        """Memory of a training step over `tokens` tokens: fp32 weights, gradients, `state_numbers` of the optimizer
        for each weight, and the activations of those tokens."""
        return int(self.parameters * 4 * (2 + state_numbers) + tokens * self.activations_per_token)


def cost(
    model: ModelConfig, length: int | None = None, causal: bool = True, item: int = 4, checkpointed: bool = False
) -> Cost:
    """The cost of `model` at sequences of `length` tokens (default: the context), with numbers of `item` bytes.

    `checkpointed`: only the input of each block is kept for the backward, and one block at a time is computed again.
    """
    length = length or model.context
    vocab, d = model.vocab or 0, model.width
    norm = PartCost(model.norm.parameters(d), activations=2 * d)  # its input, and its output as the next part's input
    blocks = [
        model.attention.cost(model, layer, length, causal) + model.feed_forward.cost(model, layer) + norm * 2
        for layer in range(model.layers)
    ]
    tables = PartCost(vocab * d + model.positions.parameters(d, model.context), activations=d)
    head = PartCost(0 if model.tie_embeddings else vocab * d, 2 * vocab * d)
    vectors = PartCost(model.embedding.parameters(d, vocab) if model.embedding else 0)  # once for a text, not a token
    total = sum(blocks, tables + norm + head + vectors)
    kept = total.activations
    if checkpointed:
        kept = (tables + norm).activations + d * model.layers + max(block.activations for block in blocks)
    return Cost(
        parameters=total.parameters,
        active=total.parameters - total.idle,
        embedding=tables.parameters,
        forward_flops=total.flops,
        training_flops=3 * total.flops,
        weights=total.parameters * item,
        cache_per_token=total.cache * item,
        cache_state=total.state * item,
        activations_per_token=kept * item,
    )
