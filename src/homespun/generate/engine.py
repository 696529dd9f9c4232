"""Writing text with a decoder: prompts in, tokens with text and log-probability out. B rows, T tokens, V vocabulary.

What the model reads is a window on the newest tokens, and where it starts depends on nothing but their number
(`window_start`): the same tokens are always continued in the same way, whether they were given or written, at once or
in parts, alone or in a batch.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch

from homespun.data.tokenizer import Tokenizer
from homespun.errors import ConfigError, DataError
from homespun.generate.batch import Batch, Choice
from homespun.generate.beam import beam_search
from homespun.generate.grammar import constraint
from homespun.generate.records import Completion, Token
from homespun.generate.row import Row
from homespun.generate.sampling import SEEDS, Sampling
from homespun.generate.speculative import Draft, Report, speculate
from homespun.generate.writer import for_writing
from homespun.model.decoder import Decoder
from homespun.model.packed import Weights

ROWS = 64  # texts that are written at a time; more wait for their turn
NOISE = 3e-6  # the most that rounding in fp32 changes logits, as a share of the largest

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

    `begin`: ids that stand before every prompt that is text, where a model was trained so elsewhere; `ends`: special
    tokens that end a text there, besides the tokenizer's end. `weights`: how its matrices are kept for writing
    (`model/packed.py`); none means as they are. `draft`: what proposes tokens, so that the same texts are written in
    fewer steps, one after the other; `report` says in how many. The model may be in training mode, and may change
    between two calls; dropout is off while it writes. Raises `ConfigError` if the vocabulary is larger than the
    model's.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        begin: Sequence[int] = (),
        weights: Weights | None = None,
        ends: Sequence[int] = (),
    ):
        vocab = model.config.vocab or 0
        if tokenizer.vocab_size > vocab:
            raise ConfigError(
                f"The tokenizer has {tokenizer.vocab_size:,} ids, but the model knows only {vocab:,}",
                "Use the tokenizer that the model was trained with.",
            )
        if weights not in (None, *get_args(Weights)):
            raise ConfigError(f"Weights cannot be kept in {weights!r}", f"Known: {', '.join(get_args(Weights))}.")
        self.model, self.tokenizer, self.begin, self.weights = model, tokenizer, list(begin), weights
        self.draft: Draft | None = None
        self.report = Report()
        self._writer: tuple[list[Any], Decoder] | None = None
        bias = torch.full((vocab,), -math.inf)
        bias[: tokenizer.vocab_size][torch.from_numpy(tokenizer.token_bytes() > 0)] = 0.0
        special = set(tokenizer.special.values())
        self.ends = frozenset({tokenizer.end, *(token for token in ends if token in special)})
        bias[list(self.ends)] = 0.0
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
        """`count` texts for each prompt, those of the first prompt first, with all that is known about their tokens.

        With `sampling.beams` above 1 these are the `count` most likely texts that were found, the best first; there may
        be fewer.
        """
        if sampling.beams > 1:
            return [found for prompt in prompts for found in self._search(prompt, sampling, count, alternatives)]
        rows = [prompt for prompt in prompts for _ in range(count)]
        sampling = seeded(sampling)
        written: list[list[Token]] = [[] for _ in rows]
        for token in self.tokens(rows, sampling, alternatives):
            written[token.row].append(token)
        return [self._completion(*pair, sampling) for pair in zip(rows, written, strict=True)]

    def tokens(self, prompts: Sequence[Prompt], sampling: Sampling = DEFAULT, alternatives: int = 0) -> Iterator[Token]:
        """Every token as soon as it is written; the rows advance together, or with a draft one after the other.

        `alternatives`: how many of the most likely tokens are told beside the chosen one. Raises `ConfigError` for
        beams: which of them is the best is known only at the end.
        """
        if sampling.beams > 1:
            raise ConfigError("Beams give no text before they have ended", "Leave out beams, or do not stream.")
        sampling = seeded(sampling)
        rows = [self.row(prompt, sampling, index, alternatives) for index, prompt in enumerate(prompts)]
        return self._write(rows)

    def row(self, prompt: Prompt, sampling: Sampling, index: int = 0, alternatives: int = 0) -> Row:
        """A text to be written, for `Batch.add`. Raises `DataError` or `ConfigError` for what cannot be."""
        if isinstance(prompt, str):
            ids = self.begin + self.tokenizer.encode(prompt)
        else:
            ids = [int(token) for token in prompt]
        ids, vocab = ids or [self.tokenizer.end], self.bias.numel()
        if not 0 <= min(ids) <= max(ids) < vocab:
            raise DataError("A prompt holds ids that the model does not know", f"They end at {vocab - 1:,}.")
        if max(sampling.logit_bias, default=0) >= vocab:
            raise ConfigError("logit_bias names ids that the model does not know", f"They end at {vocab - 1:,}.")
        bound = constraint(self.tokenizer, sampling, vocab)
        return Row(index, ids, sampling, self.tokenizer, vocab, alternatives, bound, self.ends)

    def new_batch(self, part: int | None = None) -> Batch:
        """Texts to be written together; see `Batch`."""
        return Batch(self.choice, part)

    @property
    def choice(self) -> Choice:
        """How tokens are chosen: in fp32 so carefully that rounding cannot change a text."""
        exact = self.model.head_weight.dtype == torch.float32 and self.weights in (None, "fp32")
        return Choice(self.writer, self.bias, NOISE if exact else None)

    @property
    def writer(self) -> Decoder:
        """The model with its matrices packed, made anew when a parameter of it has changed."""
        state = [(id(p), p._version) for p in self.model.parameters() if not p.is_inference()]
        if self._writer is None or self._writer[0] != state:
            self._writer = state, for_writing(self.model, self.weights)
        return self._writer[1]

    def _search(self, prompt: Prompt, sampling: Sampling, count: int, alternatives: int) -> list[Completion]:
        if alternatives:
            raise ConfigError("Beams tell no alternatives", "Leave out beams, or the alternatives.")
        if self.draft is not None:
            raise ConfigError("Beams have no use for a draft", "Leave out beams, or the draft.")
        sampling, found = seeded(sampling), []
        for beam in beam_search(self, self.row(prompt, sampling).ids, sampling, count):
            row = self.row(prompt, sampling.model_copy(update={"max_tokens": len(beam.ids)}))
            tokens = [row.take(*pair) for pair in zip(beam.ids, beam.log_probabilities, strict=True)]
            tokens[-1] = dataclasses.replace(tokens[-1], finish=beam.finish)
            found.append(self._completion(prompt, tokens, sampling))
        return found

    def _write(self, rows: list[Row]) -> Iterator[Token]:
        if self.draft is not None:
            for row in rows:
                yield from speculate(self, row, self.draft, self.report)
            return
        for start in range(0, len(rows), ROWS):
            batch = self.new_batch()
            for row in rows[start : start + ROWS]:
                batch.add(row)
            while batch.busy:
                yield from (token for _, token in batch.step())

    def _completion(self, prompt: Prompt, tokens: list[Token], sampling: Sampling) -> Completion:
        text = "".join(token.text for token in tokens)
        spelled = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, special=True)
        seed = ((sampling.seed or 0) + tokens[0].row) % 2**63
        return Completion(spelled, text, tokens[-1].finish or "length", seed, tuple(tokens))


def seeded(sampling: Sampling) -> Sampling:
    """The same settings with a seed, chosen at random if there was none."""
    return sampling if sampling.seed is not None else sampling.model_copy(update={"seed": secrets.randbelow(SEEDS)})
