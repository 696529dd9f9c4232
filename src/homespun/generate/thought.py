"""A text as one vector, and a vector as a text: `ThoughtState` and `LatentDecoder`. Experimental: docs/thoughts.md.

e size of a vector, d width of the model it is made with, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from homespun import config
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import Bytes
from homespun.errors import CheckpointError, ConfigError, DataError
from homespun.generate.batch import window_start
from homespun.generate.calibration import Calibration, calibrated, calibration_error
from homespun.generate.embedder import Embedder
from homespun.generate.engine import Generator
from homespun.generate.row import choose
from homespun.generate.sampling import Sampling
from homespun.model.attention import GroupedAttention
from homespun.model.cache import LayerCache
from homespun.model.cost import cost
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.prefixed import PREFIX, PrefixedDecoder, turn
from homespun.train.tensors import load_tensors, save_tensors

WORDS = "words"
"""What made a thought that no model made: the pieces of its words."""

LARGEST = 8192
"""Numbers of a thought, or patterns, at most: the turn to more would take half an hour and gigabytes."""


class Source(Protocol):
    """A run, or anything else with a model and its tokenizer."""

    @property
    def model(self) -> Decoder: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(frozen=True, eq=False)
class ThoughtState:
    """A text as a vector (e,) of length sqrt(e). `model`: a hash of the model that made it; `tokens`: of the text."""

    vector: Tensor
    model: str
    tokens: int

    @classmethod
    def from_input(cls, text: str, dim: int = 256, source: Source | None = None) -> ThoughtState:
        """The thought of a text: the mean of the hidden states of `source`'s model (or its embedding head), turned into
        `dim` numbers. Without a source it knows the pieces of the words alone.

        Raises `DataError` for a text without words.
        """
        if source is None:
            return _of_words(text, dim)
        return thoughts([text], dim, source)[0]

    def cosine(self, other: ThoughtState) -> float:
        """How alike two thoughts are, from -1 to 1. Raises `ConfigError` for thoughts of two models."""
        self._same(other)
        return float(torch.cosine_similarity(self.vector, other.vector, dim=0))

    def blend(self, other: ThoughtState, share: float = 0.5) -> ThoughtState:
        """What lies between two thoughts: `share` of the way to the other. Raises `ConfigError` where nothing does."""
        self._same(other)
        if not 0 <= share <= 1:
            raise ConfigError(f"share = {share} lies not between two thoughts", "Choose from 0 to 1.")
        between = torch.lerp(self.vector, other.vector, share)
        if not float(between.norm()) > 0:
            raise ConfigError("These two thoughts are opposite: nothing lies between them", "Choose another share.")
        return replace(self, vector=_long(between), tokens=max(self.tokens, other.tokens))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it in safetensors' format."""
        save_tensors(Path(path), {"vector": self.vector}, {"model": self.model, "tokens": str(self.tokens)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ThoughtState:
        """Reads what `save` wrote. Raises `CheckpointError` for anything else."""
        tensors, facts = load_tensors(Path(path))
        vector = tensors.get("vector")
        good = vector is not None and vector.dim() == 1 and vector.numel() and vector.is_floating_point()
        if not good or not re.fullmatch(r"[0-9]{1,18}", facts.get("tokens", "")) or "model" not in facts:
            raise CheckpointError(f"{path} holds no thought", "Name a file that ThoughtState.save wrote.")
        assert vector is not None
        length = float(vector.float().norm())
        if not math.isclose(length, math.sqrt(vector.numel()), rel_tol=1e-3):  # NaN is not close to anything
            raise CheckpointError(f"{path} holds a thought of length {length:g}", "Name a file that is whole.")
        return cls(vector.float(), facts["model"], int(facts["tokens"]))

    def _same(self, other: ThoughtState) -> None:
        if (self.model, self.vector.shape) != (other.model, other.vector.shape):
            raise ConfigError("These thoughts were made by two models, or in two sizes", "Make both with one.")


def thoughts(texts: Sequence[str], dim: int, source: Source) -> list[ThoughtState]:
    """`ThoughtState.from_input` of many texts."""
    _possible(dim=dim)
    vectors = torch.from_numpy(Embedder(source.model, source.tokenizer).embed(texts))
    made = vectors if vectors.size(1) == dim else vectors @ turn(vectors.size(1), dim)
    name, counts = fingerprint(source.model), map(len, source.tokenizer.encode_batch(texts))
    return [ThoughtState(_long(vector), name, count) for vector, count in zip(made, counts, strict=True)]


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights."""
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(name.encode() + str(tuple(tensor.shape)).encode())
        whole.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def _long(vector: Tensor) -> Tensor:
    return vector.float() / vector.float().norm() * math.sqrt(vector.numel())


def _possible(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or not 1 <= size <= LARGEST:
            raise ConfigError(f"{name} = {size!r} is not possible", f"Choose a whole number from 1 to {LARGEST:,}.")


def _of_words(text: str, dim: int) -> ThoughtState:
    _possible(dim=dim)
    words = text.lower().split()
    if not words:
        raise DataError("There are no words in the text", "Give some.")
    vector = np.zeros(dim, dtype=np.float32)
    for word in words:
        marked = f"<{word}>"
        for piece in {word, *(marked[at : at + 3] for at in range(len(marked) - 2))}:
            found = hashlib.blake2b(piece.encode("utf-8", "replace"), digest_size=8).digest()
            vector[int.from_bytes(found[:6], "big") % dim] += 1.0 if found[7] % 2 else -1.0
    if not vector.any():  # two pieces may cancel each other
        vector[0] = 1.0
    return ThoughtState(_long(torch.from_numpy(vector)), WORDS, len(words))


class LatentDecoder:
    """Says a thought in words: `generate(thought) -> (text, confidence)`.

    `dim`: numbers of a thought; `patterns`: of its codebook. Without a source it starts from nothing, with bytes as its
    vocabulary; with one it has the tokenizer of the source, and starts from a copy of its weights. It writes what it
    was trained for (`homespun.learn.thoughts`): until then, noise.
    """

    def __init__(self, dim: int = 256, patterns: int = 64, source: Source | None = None):
        if source is None:
            tokenizer = Bytes().build([], 0)[0]
            self._build(dim, patterns, tokenizer, small(tokenizer.vocab_size))
            return
        shape = source.model.config.model_copy(update={"embedding": None})
        self._build(dim, patterns, source.tokenizer, shape, fingerprint(source.model))
        own = {name: value for name, value in source.model.state_dict().items() if "embedding_head" not in name}
        self.network.decoder.load_state_dict(own)

    def _build(self, dim: int, patterns: int, tokenizer: Tokenizer, shape: ModelConfig, made_by: str = "") -> None:
        _possible(dim=dim, patterns=patterns)
        if shape.context <= 2 * PREFIX:
            raise ConfigError(f"A context of {shape.context} leaves no room for a thought", "Use a longer one.")
        self.dim, self.tokenizer, self.made_by = dim, tokenizer, made_by
        self.network = PrefixedDecoder(dim, patterns, shape).eval()
        self._writing = Generator(self.network.decoder, tokenizer)
        self.bias = self._writing.bias
        self.calibration: Calibration | None = None

    def generate(self, thought: ThoughtState, sampling: Sampling | None = None, **settings: Any) -> tuple[str, float]:
        """What a thought says, and how sure it is: the share of its tokens that should be right, where `calibrate` was
        called; else the geometric mean of their probabilities, which is no such promise.

        Greedy, at most 64 tokens, unless `Sampling`'s settings say otherwise. Raises `ConfigError` for the thought of
        another model.
        """
        chosen = sampling or Sampling(max_tokens=64, temperature=0.0)
        chosen = config.parse(Sampling, config.to_dict(chosen) | settings, "the sampling settings")
        if chosen.beams > 1:
            raise ConfigError("A thought is not said with beams", "Leave out beams.")
        chosen = chosen if chosen.seed is not None else chosen.model_copy(update={"seed": 0})
        text, mean = self._write(thought, chosen)
        return text, math.exp(mean) if self.calibration is None else self.calibration(mean)

    def calibrate(self, texts: Sequence[tuple[str, ThoughtState]]) -> tuple[float, float]:
        """Makes `generate` say how much of its text is right: the share of its tokens that the true text has, too.

        `texts`, with their thoughts, it must not have been trained on. Every other one is to fit on; returns the
        expected calibration error of the rest, before and after. Raises `DataError` for fewer than 20 texts.
        """
        if len(texts) < 20:
            raise DataError(f"{len(texts)} texts tell nothing of how sure to be", "Give 20 or more.")
        greedy, means, right = Sampling(max_tokens=64, temperature=0.0, seed=0), [], []
        for text, thought in texts:
            said, mean = self._write(thought, greedy)
            found, true = Counter(self.tokenizer.encode(said)), Counter(self.tokenizer.encode(text))
            means.append(mean)
            right.append((found & true).total() / max(1, found.total()))
        mean_of, right_of = torch.tensor(means), torch.tensor(right)
        self.calibration = calibrated(mean_of[::2], right_of[::2])
        told = torch.tensor([self.calibration(mean) for mean in means[1::2]])
        rest = right_of[1::2]
        return calibration_error(mean_of[1::2].exp(), rest), calibration_error(told, rest)

    @torch.inference_mode()
    def _write(self, thought: ThoughtState, chosen: Sampling) -> tuple[str, float]:
        """The text, and the mean log-probability of its tokens."""
        reader = self.reader(thought)
        row = self._writing.row([self.tokenizer.end], chosen)
        pieces, told = [], []
        while not row.done:
            logits = reader.logits(row.ids[1:]) + self.bias
            token = choose(logits, row)
            told.append(float(logits.log_softmax(-1)[token]))
            pieces.append(row.take(token, told[-1]).text)
        return "".join(pieces), sum(told) / len(told)

    def patterns(self, thought: ThoughtState) -> Tensor:
        """How much each pattern of the codebook is part of a thought: (patterns,), of sum 1."""
        self.check(thought)
        with torch.no_grad():
            return self.network.patterns(thought.vector[None])[0]

    def reader(self, thought: ThoughtState) -> ThoughtReader:
        """What comes next, token by token, where this thought is said."""
        self.check(thought)
        return ThoughtReader(self.network, thought.vector)

    def bind(self, source: Source) -> None:
        """From here on it is for the thoughts of `source` alone. Raises `ConfigError` where it is for others."""
        if self.tokenizer.identity != source.tokenizer.identity:
            raise ConfigError("The decoder and the model have two vocabularies", "Make the decoder from this run.")
        name = fingerprint(source.model)
        if self.made_by not in ("", name):
            raise ConfigError("The decoder was made from another model than this", "Make it from the same run.")
        self.made_by = name

    def check(self, thought: ThoughtState) -> None:
        """Raises `ConfigError` for a thought that is not for this decoder."""
        if thought.vector.numel() != self.dim:
            raise ConfigError(
                f"A thought of {thought.vector.numel()} numbers, not of {self.dim}", f"Use dim={self.dim}."
            )
        if self.made_by and thought.model != self.made_by:
            raise ConfigError("The thought was made by another model than this decoder's", "Make it with the same run.")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it in safetensors' format, with its vocabulary."""
        shape = config.to_dict(self.network.decoder.config)
        facts = {"model": self.made_by, "shape": json.dumps(shape), "tokenizer": self.tokenizer.to_json()}
        if self.calibration is not None:
            facts["calibration"] = json.dumps([self.calibration.slope, self.calibration.shift])
        save_tensors(Path(path), self.network.state_dict(), facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatentDecoder:
        """Reads what `save` wrote. Raises `CheckpointError` for anything else."""
        tensors, facts = load_tensors(Path(path))
        try:
            shape = config.parse(ModelConfig, json.loads(facts["shape"]), str(path))
            tokenizer = Tokenizer(facts["tokenizer"], str(path))
            patterns, dim = tensors["codebook"].shape
            told = sum(tensor.numel() for tensor in tensors.values())
            if cost(shape).parameters > told or tokenizer.vocab_size > (shape.vocab or 0):
                raise ValueError("its shape is not that of its weights")  # before anything of that size is made
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise ValueError("its weights are not finite")
            decoder = cls.__new__(cls)
            decoder._build(dim, patterns, tokenizer, shape, facts["model"])
            decoder.network.load_state_dict(tensors)
            if "calibration" in facts:
                decoder.calibration = _calibration(json.loads(facts["calibration"]))
        except (KeyError, ValueError, TypeError, RuntimeError, DataError, ConfigError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path} holds no decoder: {reason:.200}", "Name a file that `save` wrote.") from None
        return decoder


def _calibration(given: Any) -> Calibration:
    slope, shift = map(float, given)
    if not math.isfinite(slope) or not math.isfinite(shift):
        raise ValueError("its calibration is not finite")
    return Calibration(slope, shift)


class ThoughtReader:
    """The logits of the next token of a text that says a thought; reads only what is new."""

    def __init__(self, network: PrefixedDecoder, vector: Tensor):
        self.network, self.device = network, network.codebook.device
        self.prefix = network.prefix(vector[None].to(self.device))
        self._cache: list[LayerCache] = []
        self._read: list[int] = []

    def logits(self, ids: Sequence[int]) -> Tensor:
        """After these tokens of the text, (V,) on the CPU. Of a long text the newest are read, as a model does it."""
        network = self.network
        window = list(ids[window_start(len(ids), network.context) :])
        onwards = bool(self._cache) and window[:-1] == self._read
        if not onwards:
            self._cache = network.decoder.new_cache(1, network.decoder.config.context)
        tokens = torch.tensor([window[-1:] if onwards else window], dtype=torch.int64, device=self.device)
        hidden = network.hidden(tokens, None if onwards else self.prefix, self._cache)
        self._read = window
        return network.decoder.logits(hidden[:, -1])[0].float().cpu()


def small(vocab: int) -> ModelConfig:
    """The decoder that has no model to start from."""
    return ModelConfig(vocab=vocab, width=128, layers=3, context=128, attention=GroupedAttention(heads=4))
