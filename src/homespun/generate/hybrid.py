"""Two models write one text: a language model that knows how to go on, and a decoder that knows what to say.

V vocabulary, N tokens of a text that is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from homespun import config
from homespun.errors import ConfigError
from homespun.generate.batch import window_start
from homespun.generate.engine import Generator, Prompt, seeded
from homespun.generate.row import choose
from homespun.generate.sampling import Sampling
from homespun.generate.thought import LatentDecoder, ThoughtState
from homespun.model.cache import LayerCache

Mode = Literal["mixture", "product", "guidance"]
"""Of probabilities (kNN-LM, Khandelwal et al., 2020), of logarithms, or the model plus what the thought adds."""


@dataclass(frozen=True)
class Gate:
    """A weight of the decoder for each token: sigmoid(shift + model * H + latent * H'), of the entropies in nats of
    what the model and the decoder expect. `Hybrid.fit` makes it."""

    shift: float
    model: float
    latent: float

    def __call__(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Of log-probabilities (..., V) of both, (..., 1)."""
        odds = self.shift + self.model * entropy(ours) + self.latent * entropy(theirs)
        return torch.sigmoid(odds)[..., None]


def entropy(told: Tensor) -> Tensor:
    """Of log-probabilities (..., V), in nats, (...)."""
    return -(told.exp() * told.clamp(min=torch.finfo(told.dtype).min)).sum(-1)  # 0 times -inf is 0 here


def mixture(model: Tensor, latent: Tensor, weight: float | Gate) -> Tensor:
    """Log-probabilities (..., V) of the mixture of two distributions given by logits: `weight` is the second one's."""
    if weight in (0, 1):
        return (latent if weight else model).float().log_softmax(-1)
    ours, theirs = model.float().log_softmax(-1), latent.float().log_softmax(-1)
    share = weight(ours, theirs) if isinstance(weight, Gate) else torch.tensor(weight)
    return torch.logaddexp(ours + torch.log1p(-share), theirs + share.log())


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


def fitted_gate(model: Tensor, latent: Tensor, entropies: Tensor, weight: float) -> Gate | float:
    """The gate under which a text is likeliest, of each model's log-probabilities (N,) of its tokens and both entropies
    (N, 2); it starts at `weight` for every token, which is returned where no gate is better."""
    begin = min(max(weight, 1e-3), 1 - 1e-3)
    found = torch.tensor([math.log(begin / (1 - begin)), 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    ours, theirs, known = model.double(), latent.double(), entropies.double()
    search = torch.optim.LBFGS([found], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        odds = found[0] + known @ found[1:]
        return -torch.logaddexp(ours + F.logsigmoid(-odds), theirs + F.logsigmoid(odds)).mean()

    def slope() -> Tensor:
        search.zero_grad()
        value = loss() + 1e-4 * found.square().sum()  # so that it stays finite where one is always the better
        value.backward()
        return value

    search.step(slope)
    fixed = -((1 - weight) * ours.exp() + weight * theirs.exp()).log().mean()
    return Gate(*found.detach().tolist()) if float(loss().detach()) < float(fixed) else weight


class Hybrid:
    """`generator` writes, and `decoder` keeps it near a thought. `weight`: the decoder's share, from 0 (the model
    alone) to 1 (the decoder alone), or a `Gate` that tells it for each token; for guidance its strength, from 0.

    Raises `ConfigError` for two vocabularies, and for weights that mean nothing.
    """

    def __init__(
        self, generator: Generator, decoder: LatentDecoder, weight: float | Gate = 0.5, mode: Mode = "mixture"
    ):
        if decoder.tokenizer.identity != generator.tokenizer.identity or decoder.bias.shape != generator.bias.shape:
            raise ConfigError("The decoder and the model have two vocabularies", "Make the decoder from this run.")
        if mode not in get_args(Mode):
            raise ConfigError(f"There is no mode {mode!r}", f"Known: {', '.join(get_args(Mode))}.")
        if isinstance(weight, Gate):
            if mode != "mixture":
                raise ConfigError(f"A gate is of a mixture, not of mode {mode!r}", "Give a number as weight.")
        elif not 0 <= weight <= (1 if mode != "guidance" else math.inf) or not math.isfinite(weight):
            raise ConfigError(f"weight = {weight} means nothing", "Choose from 0 to 1.")
        self.generator, self.decoder, self.mode = generator, decoder, mode
        self.weight: float | Gate = weight

    @torch.inference_mode()
    def generate(
        self, prompt: Prompt, thought: ThoughtState, sampling: Sampling | None = None, **settings: Any
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

    def fit(
        self, texts: Sequence[tuple[str, ThoughtState]], prompts: Sequence[Prompt] | None = None, gated: bool = False
    ) -> float | Gate:
        """Sets the weight of a mixture to the one, or the gate, under which these texts are likeliest; returns it.

        `prompts`: what stands before each text, for the model alone. Raises `ConfigError` without any text, for another
        number of prompts, and for another mode.
        """
        if self.mode != "mixture":
            raise ConfigError(f"The weight of mode {self.mode!r} cannot be fitted", "Choose it, or fit a mixture.")
        if prompts is not None and len(prompts) != len(texts):
            raise ConfigError(f"{len(texts)} texts have {len(prompts)} prompts", "Give one for each.")
        known = self._known(texts, prompts if prompts is not None else [""] * len(texts))
        if not len(known):
            raise ConfigError("There is no text to fit the weight on", "Give texts with their thoughts.")
        ours, theirs = known[:, 0], known[:, 1]
        weight = fitted_weight(ours, theirs)
        self.weight = fitted_gate(ours, theirs, known[:, 2:], weight) if gated else weight
        return self.weight

    @torch.inference_mode()
    def _known(self, texts: Sequence[tuple[str, ThoughtState]], prompts: Sequence[Prompt]) -> Tensor:
        """Of each token: its log-probability for both models, and the entropies of what they expected, (N, 4)."""
        known: list[list[float]] = []
        for (text, thought), prompt in zip(texts, prompts, strict=True):
            following, start = Following(self, thought), self.generator.row(prompt, Sampling()).ids
            ids = self.generator.tokenizer.encode(text)
            for place, token in enumerate(ids):
                both = [each.log_softmax(-1) for each in following.both([*start, *ids[:place]], len(start))]
                known.append([*(float(each[token]) for each in both), *(float(entropy(each)) for each in both)])
        return torch.tensor(known)


class Following:
    """Both models along one text, each with a cache of its own."""

    def __init__(self, hybrid: Hybrid, thought: ThoughtState):
        self._hybrid, self._model = hybrid, hybrid.generator.writer
        self._latent = hybrid.decoder.reader(thought)
        nothing = ThoughtState(hybrid.decoder.network.mean, thought.model, 0)  # nothing that tells it from others
        self._empty = hybrid.decoder.reader(nothing) if hybrid.mode == "guidance" else None
        self._cache: list[LayerCache] = []
        self._read: list[int] = []

    def log_probabilities(self, ids: Sequence[int], prompt: int) -> Tensor:
        """Of the next token, (V,) on the CPU, after ids of which `prompt` are the prompt."""
        weight, decoder = self._hybrid.weight, self._hybrid.decoder
        model, latent = self.both(ids, prompt)
        if isinstance(weight, Gate) or self._hybrid.mode == "mixture":
            return mixture(model, latent, weight)
        if self._empty is None:
            return product(model, latent, weight)
        return guidance(model, latent, self._empty.logits(ids[prompt:]) + decoder.bias, weight)

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
