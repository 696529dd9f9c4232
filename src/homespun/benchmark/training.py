"""How fast a recipe trains here, and what share of the machine's products that is."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from torch.profiler import record_function

from homespun.benchmark.ceilings import LEAST, Ceilings
from homespun.benchmark.where import DATA, profiled
from homespun.data.batches import Batches
from homespun.train.update import Updater

WARM_UP = 2  # steps; the first one compiles
PROFILED = 2  # steps
TEXT = 2**20  # random tokens to learn from


@dataclass(frozen=True)
class Training:
    """Whole steps of training, timed: batch, forward, backward, update.

    tokens_per_second: at the median step. step_seconds: minimum, median, maximum of `steps` steps of `tokens` tokens,
    `micro_batch` rows at a time. flops_per_token: by the cost model, three forwards. share: of the machine's bare
    products (what is called MFU, against what is measured, not promised). where: shares of the time, by kind of work.
    """

    tokens_per_second: float
    step_seconds: tuple[float, float, float]
    steps: int
    tokens: int
    micro_batch: int
    precision: str
    compiled: bool
    flops_per_token: float
    flops_per_second: float
    share: float
    where: dict[str, float]

    def table(self) -> list[tuple[str, str]]:
        """The measurement as lines for a person."""
        low, middle, high = (1e3 * each for each in self.step_seconds)
        how = "compiled" if self.compiled else "not compiled"
        return [
            ("speed", f"{self.tokens_per_second:,.0f} tokens/s in {self.precision}, {how}"),
            ("step", f"{middle:,.1f} ms ({low:,.1f} to {high:,.1f} in {self.steps} steps)"),
            ("tokens per step", f"{self.tokens:,}, {self.micro_batch} rows at a time"),
            ("FLOPs per token", f"{self.flops_per_token / 1e6:,.2f} M"),
            ("achieved", f"{self.flops_per_second / 1e9:,.0f} GFLOP/s"),
            ("share of the ceiling", f"{self.share:.0%} of what the bare products reach (MFU)"),
        ]


def measure(updater: Updater, rows: int, flops_per_token: float, ceilings: Ceilings, seconds: float) -> Training:
    """Trains the updater's model on random tokens for `seconds`, `rows` rows a step."""
    model, device = updater.recipe.model, updater.world.device
    updater.model.train().checkpoint_activations = updater.recipe.train.checkpoint_activations
    text = np.random.default_rng(0).integers(0, model.vocab or 1, max(TEXT, 2 * rows * model.context))
    batches = Batches(SimpleNamespace(tokens=text), model.context, rows, seed=0)

    def step(number: int) -> float:
        begin = time.perf_counter()
        with record_function(DATA):
            batch = batches[number]
        float(updater.step(batch, number, 10**6).loss)  # waits for the device
        return time.perf_counter() - begin

    for number in range(WARM_UP):
        step(number)
    times: list[float] = []
    while len(times) < LEAST or sum(times) < seconds:
        times.append(step(WARM_UP + len(times)))
    where = profiled(lambda: [step(number) for number in range(PROFILED)], device)
    middle, tokens = statistics.median(times), rows * model.context
    achieved = flops_per_token * tokens / middle
    return Training(
        tokens_per_second=tokens / middle,
        step_seconds=(min(times), middle, max(times)),
        steps=len(times),
        tokens=tokens,
        micro_batch=updater.micro_rows,
        precision=updater.precision.name,
        compiled=updater.compiling.active,
        flops_per_token=flops_per_token,
        flops_per_second=achieved,
        share=achieved / ceilings.flops_per_second,
        where=where,
    )
