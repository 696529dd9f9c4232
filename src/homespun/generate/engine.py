"""Writing text with a decoder: prompts in, tokens with text and log-probability out. B rows, T tokens, V vocabulary.

What the model reads is a window on the newest tokens, and where it starts depends on nothing but their number
(`window_start`): the same tokens are always continued in the same way, whether they were given or written, at once or
in parts, alone or in a batch.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from homespun.data.tokenizer import Tokenizer
from homespun.errors import CheckpointError, ConfigError, DataError
from homespun.generate.records import Alternative, Completion, Token
from homespun.generate.sampling import SEEDS, Sampling, draws, sample
from homespun.generate.stops import StopGate
from homespun.generate.writer import for_writing
from homespun.model.cache import LayerCache, reorder
from homespun.model.decoder import Decoder
from homespun.model.packed import Weights

ROWS = 64  # texts that are written at a time; more wait for their turn
CHUNK = 512  # prompt tokens that are read at a time, in each of few rows
CHUNK_TOKENS = 4096  # and in all rows together: this bounds the memory of reading

DEFAULT = Sampling()

Prompt = str | Sequence[int]
"""Text, or token ids where a template puts special tokens. The empty prompt is the start of a document."""


class Generator:
    """Writes text with a model and its tokenizer, on the model's device and in its precision.

    - Row i of a call draws with the seed `sampling.seed + i`, so several samples of one prompt differ, and each of them
      depends on its prompt, its seed and its place only: not on what else is in the batch.
    - Only tokens that stand for text, and the end token, are ever drawn: no other special token, and none of the ids by
      which a model may be larger than its vocabulary. The end token ends a text; a document starts after it, which is
      where the empty prompt starts.
    - Past the model's context: when its C tokens are full, the newest C // 2 are kept, read again, and writing goes on.
      A prompt longer than C keeps its newest C // 2 to C tokens, as if it had been written (`window_start`).
    - A character that is unfinished when a text ends is left out.

    `begin`: ids that stand before every prompt that is text, where a model was trained so elsewhere. `weights`: how its
    matrices are kept for writing (`model/packed.py`); none means as they are. The model may be in training mode, and
    may change between two calls; dropout is off while it writes. Raises `ConfigError` if the vocabulary is larger than
    the model's.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, begin: Sequence[int] = (), weights: Weights | None = None):
        vocab = model.config.vocab or 0
        if tokenizer.vocab_size > vocab:
            raise ConfigError(
                f"The tokenizer has {tokenizer.vocab_size:,} ids, but the model knows only {vocab:,}",
                "Use the tokenizer that the model was trained with.",
            )
        if weights not in (None, *get_args(Weights)):
            raise ConfigError(f"Weights cannot be kept in {weights!r}", f"Known: {', '.join(get_args(Weights))}.")
        self.model, self.tokenizer, self.begin, self.weights = model, tokenizer, list(begin), weights
        self._writer: tuple[list[Any], Decoder] | None = None
        bias = torch.full((vocab,), -math.inf)
        bias[: tokenizer.vocab_size][torch.from_numpy(tokenizer.token_bytes() > 0)] = 0.0
        bias[tokenizer.end] = 0.0
        self.bias = bias.to(model.head_weight.device)  # (V,): -inf where nothing may be drawn

    def generate(self, prompt: Prompt, sampling: Sampling = DEFAULT) -> str:
        """The continuation of one prompt, without the prompt."""
        return self.batch([prompt], sampling)[0]

    def batch(self, prompts: Sequence[Prompt], sampling: Sampling = DEFAULT) -> list[str]:
        """The continuation of each prompt; the prompts may differ in length."""
        return [completion.text for completion in self.complete(prompts, sampling)]

    def stream(self, prompt: Prompt, sampling: Sampling = DEFAULT) -> Iterator[str]:
        """The same text as `generate`, in pieces, each as soon as it is certain."""
        return (token.text for token in self.tokens([prompt], sampling) if token.text)

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling = DEFAULT, count: int = 1, alternatives: int = 0
    ) -> list[Completion]:
        """`count` texts for each prompt, those of the first prompt first, with all that is known about their tokens."""
        rows = [prompt for prompt in prompts for _ in range(count)]
        sampling = _seeded(sampling)
        written: list[list[Token]] = [[] for _ in rows]
        for token in self.tokens(rows, sampling, alternatives):
            written[token.row].append(token)
        return [self._completion(*pair, sampling) for pair in zip(rows, written, strict=True)]

    def tokens(self, prompts: Sequence[Prompt], sampling: Sampling = DEFAULT, alternatives: int = 0) -> Iterator[Token]:
        """Every token as soon as it is written; the rows advance together.

        `alternatives`: how many of the most likely tokens are told beside the chosen one.
        """
        sampling = _seeded(sampling)
        rows = [self._row(index, prompt, sampling) for index, prompt in enumerate(prompts)]
        return self._write(rows, sampling, alternatives)

    @property
    def writer(self) -> Decoder:
        """The model with its matrices packed, made anew when a parameter of it has changed."""
        state = [(id(p), p._version) for p in self.model.parameters() if not p.is_inference()]
        if self._writer is None or self._writer[0] != state:
            self._writer = state, for_writing(self.model, self.weights)
        return self._writer[1]

    def _row(self, index: int, prompt: Prompt, sampling: Sampling) -> _Row:
        if isinstance(prompt, str):
            ids = self.begin + self.tokenizer.encode(prompt)
        else:
            ids = [int(token) for token in prompt]
        ids = ids or [self.tokenizer.end]
        if not 0 <= min(ids) <= max(ids) < self.bias.numel():
            raise DataError("A prompt holds ids that the model does not know", f"They end at {len(self.bias) - 1:,}.")
        seed = ((sampling.seed or 0) + index) % 2**63
        stream = self.tokenizer.decoder()
        stream.extend(ids)  # a word that goes on needs no space, and a character may have begun
        return _Row(index, ids, seed, stream.push, StopGate(sampling.stop))

    def _write(self, rows: list[_Row], sampling: Sampling, alternatives: int) -> Iterator[Token]:
        for start in range(0, len(rows), ROWS):
            batch = _Batch(self, rows[start : start + ROWS], sampling, min(alternatives, self.bias.numel()))
            for step in range(1, sampling.max_tokens + 1):
                last = step == sampling.max_tokens
                chosen = [self._token(*pair, last) for pair in zip(batch.rows, batch.step(), strict=True)]
                yield from chosen
                batch.keep([place for place, token in enumerate(chosen) if token.finish is None])
                if not batch.rows:
                    break

    def _token(self, row: _Row, numbers: list[float], last: bool) -> Token:
        """The record of the row's newest token: its log-probability and, in pairs, the alternatives'."""
        newest, log_probability, *others = numbers
        if math.isnan(log_probability):
            raise CheckpointError("The model's output is not a number", "Use an earlier checkpoint of this run.")
        ended = int(newest) == self.tokenizer.end
        text, stopped = row.gate.push(row.read(int(newest)))
        if (ended or last) and not stopped:
            text += row.gate.flush()
        told = tuple(self._alternative(*pair) for pair in zip(others[::2], others[1::2], strict=True))
        finish: Literal["stop", "length"] | None = "stop" if ended or stopped else "length" if last else None
        return Token(row.index, int(newest), text, log_probability, told, finish)

    def _alternative(self, token: float, log_probability: float) -> Alternative:
        return Alternative(int(token), self.tokenizer.decode([int(token)], special=True), log_probability)

    def _completion(self, prompt: Prompt, tokens: list[Token], sampling: Sampling) -> Completion:
        text = "".join(token.text for token in tokens)
        spelled = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, special=True)
        seed = ((sampling.seed or 0) + tokens[0].row) % 2**63
        return Completion(spelled, text, tokens[-1].finish or "length", seed, tuple(tokens))


def window_start(count: int, context: int) -> int:
    """Which of `count` tokens is the first that the model reads.

    The window grows to `context` tokens; with one more, only the newest `context // 2` (at least one) stay in it, and
    it grows again.
    """
    stride = context + 1 - max(1, context // 2)
    return max(0, -(-(count - context) // stride)) * stride


@dataclass
class _Row:
    """One text: the ids of its prompt and of what was written."""

    index: int
    ids: list[int]
    seed: int
    read: Callable[[int], str] = field(repr=False)
    gate: StopGate = field(repr=False)


class _Batch:
    """Rows that are written together, and the cache of what the model has read of them."""

    def __init__(self, generator: Generator, rows: list[_Row], sampling: Sampling, alternatives: int):
        self.rows, self._sampling, self._alternatives = rows, sampling, alternatives
        self._model, self._bias = generator.writer, generator.bias
        self._device = self._bias.device
        self._left = sampling.max_tokens
        self._cache: list[LayerCache] = []
        self._room = 0  # tokens that the cache can still take
        self._newest: Tensor | None = None  # (B,), what the model has not read yet
        self._seeds = np.array([row.seed for row in rows], dtype=np.uint64)
        self._places = np.array([len(row.ids) for row in rows], dtype=np.uint64)
        self._seen = self._tokens_seen(generator.tokenizer.end) if sampling.repetition_penalty != 1 else None

    def step(self) -> list[list[float]]:
        """Writes one token in each row; returns its id and log-probability, then those of the alternatives."""
        with torch.inference_mode(), _evaluating(self._model):
            logits = self._read().float()  # (B, V)
            ids = sample(logits + self._bias, self._sampling, self._uniforms(), self._seen)
            numbers = _describe(logits, ids, self._alternatives).tolist()  # the only wait for the device
            if self._seen is not None:
                self._seen.scatter_(1, ids[:, None], True)
            self._newest = ids
        for row, described in zip(self.rows, numbers, strict=True):
            row.ids.append(int(described[0]))
        self._places += np.uint64(1)
        self._left -= 1
        return numbers

    @torch.inference_mode()
    def keep(self, places: list[int]) -> None:
        """Goes on with these rows only."""
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        self._seeds, self._places = self._seeds[places], self._places[places]
        chosen = torch.tensor(places, dtype=torch.int64, device=self._device)
        self._newest = None if self._newest is None else self._newest[chosen]
        self._seen = None if self._seen is None else self._seen[chosen]
        reorder(self._cache, chosen)

    def _uniforms(self) -> Tensor | None:
        return draws(self._seeds, self._places) if self._sampling.temperature else None

    def _read(self) -> Tensor:
        """Logits (B, V) after the newest tokens."""
        if self._newest is None or not self._room:
            return self._read_windows()
        self._room -= 1
        hidden, _ = self._model.hidden(self._newest[:, None], self._cache)
        return self._model.logits(hidden[:, -1])

    def _read_windows(self) -> Tensor:
        """Reads the window of every row into a new cache, equal ones only once."""
        context = self._model.config.context
        windows = [tuple(row.ids[window_start(len(row.ids), context) :]) for row in self.rows]
        different = list(dict.fromkeys(windows))
        longest = max(map(len, different))
        pads = [longest - len(window) for window in different]
        capacity = min(context, longest + self._left - 1)  # the last token is not read
        self._cache = []  # frees the old one first
        padding = torch.tensor(pads, device=self._device) if any(pads) else None
        self._cache = self._model.new_cache(len(different), capacity, padding)
        self._room = capacity - longest
        padded = [(0,) * pad + window for pad, window in zip(pads, different, strict=True)]
        tokens = torch.tensor(padded, device=self._device)
        for part in tokens.split(max(1, min(CHUNK, CHUNK_TOKENS // len(different))), dim=1):
            hidden, _ = self._model.hidden(part, self._cache)
        logits = self._model.logits(hidden[:, -1])
        if len(different) < len(windows):
            order = torch.tensor([different.index(window) for window in windows], device=self._device)
            logits = logits[order]
            reorder(self._cache, order)
        return logits

    def _tokens_seen(self, end: int) -> Tensor:
        """True for the tokens of each row (B, V); the end token is never counted."""
        seen = torch.zeros(len(self.rows), self._bias.numel(), dtype=torch.bool)
        for place, row in enumerate(self.rows):
            seen[place, row.ids] = True
        seen[:, end] = False
        return seen.to(self._device)


def _describe(logits: Tensor, ids: Tensor, alternatives: int) -> Tensor:
    """One row of numbers for each row of logits: id, log-probability, and the same for the most likely tokens.

    In float32, which holds every id exactly: a vocabulary has at most 2**24.
    """
    log_probabilities = logits.log_softmax(-1)
    parts = [ids[:, None].float(), log_probabilities.gather(1, ids[:, None])]
    if alternatives:
        best = log_probabilities.topk(alternatives)
        parts.append(torch.stack((best.indices.float(), best.values), dim=-1).flatten(1))
    return torch.cat(parts, dim=1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside; every module is as before outside, also between the pieces of a stream."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _seeded(sampling: Sampling) -> Sampling:
    """The same settings with a seed."""
    return sampling if sampling.seed is not None else sampling.model_copy(update={"seed": secrets.randbelow(SEEDS)})
