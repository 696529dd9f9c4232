"""Two models write one text: a language model that knows how to go on, and a decoder that knows what to say.

V vocabulary, N tokens of a text that is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from homespun import config
from homespun.errors import ConfigError
from homespun.generate.batch import window_start
from homespun.generate.engine import Generator, seeded
from homespun.generate.sampling import Sampling
from homespun.generate.thought import LatentDecoder, ThoughtState, choose
from homespun.model.cache import LayerCache

Mode = Literal["mixture", "product", "guidance"]
"""Of probabilities (kNN-LM, Khandelwal et al., 2020), of logarithms, or the model plus what the thought adds."""


def mixture(model: Tensor, latent: Tensor, weight: float) -> Tensor:
    """Log-probabilities (..., V) of the mixture of two distributions given by logits: `weight` is the second one's."""
    if weight in (0, 1):
        return (latent if weight else model).float().log_softmax(-1)
    ours, theirs = model.float().log_softmax(-1), latent.float().log_softmax(-1)
    return torch.logaddexp(ours + math.log1p(-weight), theirs + math.log(weight))


def product(model: Tensor, latent: Tensor, weight: float) -> Tensor:
    """Log-probabilities (..., V) of the weighted geometric mean of two distributions."""
    if weight in (0, 1):
        return mixture(model, latent, weight)
    ours, theirs = model.float().log_softmax(-1), latent.float().log_softmax(-1)
    return ((1 - weight) * ours + weight * theirs).log_softmax(-1)


def guidance(model: Tensor, latent: Tensor, empty: Tensor, strength: float) -> Tensor:
    """Log-probabilities (..., V) of the model, plus `strength` times what the thought adds to the decoder's `empty`."""
    if strength == 0:
        return model.float().log_softmax(-1)
    added = latent.float().log_softmax(-1) - empty.float().log_softmax(-1)
    added = added.nan_to_num(nan=0.0)  # what may never be written is -inf in both
    return (model.float().log_softmax(-1) + strength * added).log_softmax(-1)


def fitted_weight(model: Tensor, latent: Tensor) -> float:
    """The weight of `mixture` under which a text is likeliest, of each model's log-probabilities (N,) of its tokens.

    The likelihood is concave in the weight, so that bisection of its slope finds it; it is never below the better of
    the two alone.
    """
    ratio = (latent.double() - model.double()).clamp(-50, 50).exp()  # of probabilities, second to first

    def slope(weight: float) -> float:
        return float(((ratio - 1) / (1 - weight + weight * ratio)).sum())

    low, high = 0.0, 1.0
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low


class Hybrid:
    """`generator` writes, and `decoder` keeps it near a thought. `weight`: the decoder's share, from 0 (the model
    alone) to 1 (the decoder alone); for guidance its strength, from 0.

    Raises `ConfigError` for two vocabularies, and for weights that mean nothing.
    """

    def __init__(self, generator: Generator, decoder: LatentDecoder, weight: float = 0.5, mode: Mode = "mixture"):
        if decoder.tokenizer.identity != generator.tokenizer.identity or decoder.bias.shape != generator.bias.shape:
            raise ConfigError("The decoder and the model have two vocabularies", "Make the decoder from this run.")
        if mode not in get_args(Mode):
            raise ConfigError(f"There is no mode {mode!r}", f"Known: {', '.join(get_args(Mode))}.")
        if not 0 <= weight <= (1 if mode != "guidance" else math.inf) or not math.isfinite(weight):
            raise ConfigError(f"weight = {weight} means nothing", "Choose from 0 to 1.")
        self.generator, self.decoder, self.weight, self.mode = generator, decoder, weight, mode

    @torch.inference_mode()
    def generate(
        self, prompt: str, thought: ThoughtState, sampling: Sampling | None = None, **settings: Any
    ) -> tuple[str, float]:
        """The continuation of `prompt` towards a thought, and how sure it is, as `LatentDecoder.generate` tells it.

        Temperature, top-p and the rest act after the mixing. One text at a time; no beams.
        """
        chosen = config.parse(Sampling, config.to_dict(sampling or Sampling()) | settings, "the sampling settings")
        if chosen.beams > 1:
            raise ConfigError("Two models do not search with beams", "Leave out beams.")
        row = self.generator.row(prompt, seeded(chosen))
        following = Following(self, thought)
        pieces, told = [], []
        while not row.done:
            logits = following.log_probabilities(row.ids, row.prompt)
            token = choose(logits, row)
            told.append(float(logits[token]))
            pieces.append(row.take(token, told[-1]).text)
        return "".join(pieces), math.exp(sum(told) / len(told))

    @torch.inference_mode()
    def fit(self, texts: Sequence[tuple[str, ThoughtState]]) -> float:
        """Sets the weight of a mixture to the one under which these texts are likeliest, and returns it."""
        ours, theirs = [], []
        for text, thought in texts:
            ids = self.generator.tokenizer.encode(text)
            following = Following(self, thought)
            start = [self.generator.tokenizer.end]
            for place, token in enumerate(ids):
                model, latent = following.both([*start, *ids[:place]], 1)
                ours.append(float(model.log_softmax(-1)[token]))
                theirs.append(float(latent.log_softmax(-1)[token]))
        if not ours:
            raise ConfigError("There is no text to fit the weight on", "Give texts with their thoughts.")
        self.weight = fitted_weight(torch.tensor(ours), torch.tensor(theirs))
        return self.weight


class Following:
    """Both models along one text, each with a cache of its own."""

    def __init__(self, hybrid: Hybrid, thought: ThoughtState):
        self._hybrid, self._model = hybrid, hybrid.generator.writer
        self._latent = hybrid.decoder.reader(thought)
        nothing = ThoughtState(torch.zeros(hybrid.decoder.dim), thought.model, 0)
        self._empty = hybrid.decoder.reader(nothing) if hybrid.mode == "guidance" else None
        self._cache: list[LayerCache] = []
        self._read: list[int] = []

    def log_probabilities(self, ids: Sequence[int], prompt: int) -> Tensor:
        """Of the next token, (V,) on the CPU, after ids of which `prompt` are the prompt."""
        hybrid = self._hybrid
        model, latent = self.both(ids, prompt)
        if self._empty is not None:
            empty = self._empty.logits(ids[prompt:]) + hybrid.decoder.bias
            return guidance(model, latent, empty, hybrid.weight)
        return (mixture if hybrid.mode == "mixture" else product)(model, latent, hybrid.weight)

    def both(self, ids: Sequence[int], prompt: int) -> tuple[Tensor, Tensor]:
        """The logits of the model, and of the decoder, which reads only what was written."""
        latent = self._latent.logits(ids[prompt:]) + self._hybrid.decoder.bias
        return self._own(list(ids)), latent

    def _own(self, ids: list[int]) -> Tensor:
        generator, context = self._hybrid.generator, self._model.config.context
        window = ids[window_start(len(ids), context) :]
        onwards = bool(self._cache) and window[:-1] == self._read
        if not onwards:
            self._cache = self._model.new_cache(1, context)
        tokens = torch.tensor([window[-1:] if onwards else window], device=generator.bias.device)
        hidden, _ = self._model.hidden(tokens, self._cache)
        self._read = window
        return (self._model.logits(hidden[:, -1])[0].float() + generator.bias).cpu()
