"""What a model costs: parameters, FLOPs, memory, cache. Pure arithmetic, checked against counted models in the tests.

Conventions: one multiply-add is two FLOPs; the embedding look-up is free; training is three times the forward; `causal`
counts the keys that a query really sees (the mean over a sequence), otherwise all, as PaLM and torch's counter do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homespun.model.decoder import ModelConfig


@dataclass(frozen=True)
class PartCost:
    """Costs of a part: numbers it learns, FLOPs and kept activations for each token, cache numbers for each token."""

    parameters: int = 0
    flops: float = 0.0
    activations: int = 0
    cache: int = 0

    def __add__(self, other: PartCost) -> PartCost:
        return PartCost(
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.activations + other.activations,
            self.cache + other.cache,
        )

    def __mul__(self, times: int) -> PartCost:
        return PartCost(self.parameters * times, self.flops * times, self.activations * times, self.cache * times)


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

    parameters: all; embedding: the tables at the input. FLOPs per token of the forward and
    of a training step at full context. Bytes: `weights`, `cache_per_token` (of one sequence, all layers),
    `activations_per_token` (kept for the backward), each at the given item size.
    """

    parameters: int
    embedding: int
    forward_flops: float
    training_flops: float
    weights: int
    cache_per_token: int
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
    block = model.attention.cost(model, length, causal) + model.feed_forward.cost(model) + norm * 2
    tables = PartCost(vocab * d + model.positions.parameters(d, model.context), activations=d)
    head = PartCost(0 if model.tie_embeddings else vocab * d, 2 * vocab * d)
    total = tables + block * model.layers + norm + head
    inputs = PartCost(activations=d) * model.layers
    kept = (tables + inputs + block + norm if checkpointed else total).activations
    return Cost(
        parameters=total.parameters,
        embedding=tables.parameters,
        forward_flops=total.flops,
        training_flops=3 * total.flops,
        weights=total.parameters * item,
        cache_per_token=total.cache * item,
        activations_per_token=kept * item,
    )
