"""How fast a recipe's model writes here, and what share of the memory's speed that is."""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import dataclass

from homespun.benchmark.ceilings import Ceilings
from homespun.benchmark.where import profiled
from homespun.data.tokenizer import Tokenizer
from homespun.generate.batch import CHUNK
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling
from homespun.model.cost import cost
from homespun.model.decoder import Decoder

BATCHES = (1, 8)  # rows that are written together
LEAST = 8  # steps, however little time there is
PROFILED = 16  # steps


@dataclass(frozen=True)
class Decoding:
    """Greedy writing after a prompt of `prompt` tokens, `batch` rows together, timed through `Generator`.

    step_seconds: minimum, median, maximum of `steps` steps, each one token in every row. tokens_per_second: at the
    median step, of all rows. Bytes that a step must read: `weight_bytes` (with a mixture, of the experts that take
    part; of all of them in a batch) and `cache_bytes` (of all rows, at `cached` tokens). share: of the bytes per second
    of one row times a large matrix; model_share: of one row times the model's own matrices. where: shares of the time
    of a text, its prompt included, by kind of work.
    """

    batch: int
    prompt: int
    cached: int
    tokens_per_second: float
    prompt_tokens_per_second: float
    step_seconds: tuple[float, float, float]
    steps: int
    weight_bytes: int
    cache_bytes: int
    bytes_per_second: float
    share: float
    model_share: float
    where: dict[str, float]

    def table(self) -> list[tuple[str, str]]:
        """The measurement as lines for a person."""
        low, middle, high = (1e3 * each for each in self.step_seconds)
        weights, cache = self.weight_bytes / 1e6, self.cache_bytes / 1e6
        return [
            ("speed", f"{self.tokens_per_second:,.0f} tokens/s"),
            ("step", f"{middle:,.2f} ms ({low:,.2f} to {high:,.2f})"),
            ("must be read", f"{weights:,.1f} MB weights + {cache:,.1f} MB cache"),
            ("achieved", f"{self.bytes_per_second / 1e9:,.1f} GB/s"),
            ("share, large matrix", f"{self.share:.0%}"),
            ("share, model's matrices", f"{self.model_share:.0%}"),
            ("prompt", f"{self.prompt_tokens_per_second:,.0f} tokens/s"),
        ]


def measure(model: Decoder, batch: int, ceilings: Ceilings, seconds: float) -> Decoding:
    """Lets `model` write `batch` rows for `seconds`. The rows have one prompt, which is read once."""
    config, device = model.config, model.head_weight.device
    writer = _Writer(model.eval(), batch)
    writer.write(2)  # warms up
    writer.read, writer.steps = [], []
    end = time.perf_counter() + seconds
    while len(writer.steps) < LEAST or time.perf_counter() < end:
        writer.write(writer.room, end)
    where = profiled(lambda: writer.write(min(PROFILED, writer.room)), device)
    lengths, times = zip(*writer.steps, strict=True)
    middle, cached = statistics.median(times), round(statistics.mean(lengths))
    item = model.head_weight.element_size()
    costs = cost(config, item=item)
    head = config.width * (config.vocab or 0) if config.tie_embeddings else 0  # its table is also the head
    weights = ((costs.active if batch == 1 else costs.parameters) - costs.embedding + head) * item
    cache = batch * (costs.cache_per_token * cached + costs.cache_state)
    speed = (weights + cache) / middle
    return Decoding(
        batch=batch,
        prompt=writer.prompt,
        cached=cached,
        tokens_per_second=batch / middle,
        prompt_tokens_per_second=writer.prompt / statistics.median(writer.read),
        step_seconds=(min(times), middle, max(times)),
        steps=len(times),
        weight_bytes=weights,
        cache_bytes=cache,
        bytes_per_second=speed,
        share=speed / ceilings.row_bytes_per_second,
        model_share=speed / ceilings.model_row_bytes_per_second,
        where=where,
    )


class _Writer:
    """Writes texts and keeps the times: of reading the prompt, and of each step with the length of the cache."""

    def __init__(self, model: Decoder, batch: int):
        self.batch = batch
        self.generator = Generator(model, numbered(model.config.vocab or 0))
        self.generator.bias[self.generator.tokenizer.end] = -math.inf  # no text ends early
        self.prompt = max(1, min(CHUNK, model.config.context // 2))
        self.room = model.config.context - self.prompt + 1  # tokens until the window moves; the last one is not read
        self.read: list[float] = []
        self.steps: list[tuple[int, float]] = []

    def write(self, count: int, until: float = math.inf) -> None:
        """Writes up to `count` tokens in each row, until a moment, and keeps the times."""
        sampling = Sampling(max_tokens=count, temperature=0, seed=0)
        before = time.perf_counter()
        for number, _ in enumerate(self.generator.tokens([[0] * self.prompt] * self.batch, sampling)):
            step, place = divmod(number, self.batch)
            if place:  # the rows advance together: their tokens come at one time
                continue
            now = time.perf_counter()
            if step:
                self.steps.append((self.prompt + step, now - before))
            else:
                self.read.append(now - before)
            before = now
            if now > until and len(self.steps) >= LEAST:
                return


def numbered(size: int) -> Tokenizer:
    """A tokenizer of `size` tokens, for models whose text does not matter: words that are numbers, and the end."""
    words = {f"{number} ": number for number in range(size - 1)}
    return Tokenizer(json.dumps({"model": {"type": "WordLevel", "vocab": words, "unk_token": "0 "}}))
