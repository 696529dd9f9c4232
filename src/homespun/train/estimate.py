"""Before a run: what it will cost, whether it fits, and how long it will take, from a three-step measurement."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from homespun.config import override
from homespun.data.batches import Batch
from homespun.errors import ConfigError
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.train.budget import Budget
from homespun.train.compiling import Compiling
from homespun.train.machine import available_memory
from homespun.train.memory import SHARE, human_bytes, rows_that_fit
from homespun.train.parallel import World
from homespun.train.precision import choose
from homespun.train.recipe import Recipe
from homespun.train.update import Updater

STEPS = 3
MEASURED = 5e11  # FLOPs of one measured step on a CPU, about: some seconds. More rows at a time are hardly faster
UNKNOWN_VOCABULARY = 1024  # assumed where only the text will tell


@dataclass(frozen=True)
class Plan:
    """The cost of a recipe.

    Memory and cache in bytes, FLOPs for one token. `active_parameters`: those that take part in a token.
    `cache_state_bytes`: what a sequence keeps whatever its length. `seconds_per_step` is none if not measured.
    """

    recipe: str
    vocabulary: int
    vocabulary_assumed: bool
    parameters: int
    active_parameters: int
    embedding_parameters: int
    forward_flops: float
    training_flops: float
    weight_bytes: int
    training_bytes: int
    free_bytes: int
    fits: bool
    rows_at_a_time: int
    tokens_per_step: int
    cache_bytes_per_token: int
    cache_state_bytes: int
    steps: int | None
    epochs: float | None
    minutes: float | None
    precision: str | None = None
    seconds_per_step: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return asdict(self)

    @property
    def sparse(self) -> bool:
        """Whether some parameters rest while a token is computed."""
        return self.active_parameters < self.parameters

    def _cache(self) -> str:
        each = f"{human_bytes(self.cache_bytes_per_token)} per token" if self.cache_bytes_per_token else ""
        fixed = f"{human_bytes(self.cache_state_bytes)} per sequence, of any length" if self.cache_state_bytes else ""
        return " and ".join(filter(None, (each, fixed)))

    @property
    def seconds(self) -> float | None:
        """The time the whole run will take, as far as is known."""
        limits = [self.steps * self.seconds_per_step] if self.steps and self.seconds_per_step else []
        limits += [self.minutes * 60] if self.minutes else []
        return min(limits, default=None)

    def table(self) -> list[tuple[str, str]]:
        """The plan as lines for a person: a name and what is to be said of it."""
        assumed = " (assumed: the text decides)" if self.vocabulary_assumed else ""
        rows = [
            ("parameters", f"{self.parameters:,}, of which {self.embedding_parameters:,} in tables at the input"),
            *([("active parameters", f"{self.active_parameters:,} for each token")] if self.sparse else []),
            ("vocabulary", f"{self.vocabulary:,}{assumed}"),
            (
                "FLOPs per token",
                f"{self.forward_flops / 1e6:,.2f} M forward, {self.training_flops / 1e6:,.2f} M in training",
            ),
            ("weights", human_bytes(self.weight_bytes)),
            (
                "training memory",
                f"about {human_bytes(self.training_bytes)} of {human_bytes(self.free_bytes)} that are free",
            ),
            ("will it fit?", f"yes, {self.rows_at_a_time} rows at a time" if self.fits else "no"),
            ("cache", self._cache()),
            ("tokens per step", f"{self.tokens_per_step:,}"),
        ]
        if self.steps:
            rows.append(("budget", f"{self.steps:,} steps, {self.steps * self.tokens_per_step:,} tokens"))
        if self.epochs:
            rows.append(("budget", f"{self.epochs:g} epochs: how many steps that is, the text decides"))
        if self.seconds_per_step:
            speed = self.tokens_per_step / self.seconds_per_step
            rows.append(("speed here", f"{speed:,.0f} tokens/s in {self.precision} ({STEPS} steps measured)"))
        if self.seconds:
            rows.append(("time", human_time(self.seconds)))
        return rows


def plan(recipe: Recipe, measure: bool = True) -> Plan:
    """The plan of `recipe` on this machine. How many steps an epoch has, only the text can tell.

    Raises `ConfigError` only for impossible settings; a model that does not fit is reported, not measured.
    """
    vocab = recipe.model.vocab or getattr(recipe.tokenizer, "size", None)
    whole = recipe.model_copy(update={"model": recipe.objective.completed(recipe.model)})
    sized = override(whole, [f"model.vocab={vocab or UNKNOWN_VOCABULARY}"])
    context, train = sized.model.context, sized.train
    rows = max(1, round(train.batch_tokens / context))
    costs = cost(sized.model, checkpointed=train.checkpoint_activations)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = available_memory(device)
    try:
        micro, fits = min(train.micro_batch or rows_that_fit(costs, context, rows, free), rows), True
    except ConfigError:
        micro, fits = 1, False
    fits = fits and costs.training_bytes(micro * context) <= SHARE * free
    few = micro if device.type == "cuda" else max(1, min(micro, int(MEASURED / (costs.training_flops * context))))
    precision, pace = _measure(sized, few, rows, device) if measure and fits else (None, None)
    budget = Budget.of(train, math.inf, rows * context)
    return Plan(
        recipe=recipe.name,
        vocabulary=sized.model.vocab or 0,
        vocabulary_assumed=vocab is None,
        parameters=costs.parameters,
        active_parameters=costs.active,
        embedding_parameters=costs.embedding,
        forward_flops=costs.forward_flops,
        training_flops=costs.training_flops,
        weight_bytes=costs.weights,
        training_bytes=costs.training_bytes(micro * context),
        free_bytes=free,
        fits=fits,
        rows_at_a_time=micro,
        tokens_per_step=rows * context,
        cache_bytes_per_token=costs.cache_per_token,
        cache_state_bytes=costs.cache_state,
        steps=budget.fixed,
        epochs=train.epochs,
        minutes=train.minutes,
        precision=precision,
        seconds_per_step=pace,
    )


def _measure(recipe: Recipe, micro: int, rows: int, device: torch.device) -> tuple[str, float]:
    """Precision and seconds of a step, from a few micro-batches of random tokens (the first one warms up)."""
    model, world = Decoder(recipe.model).to(device).train(), World(0, 1, device)
    model.checkpoint_activations = recipe.train.checkpoint_activations
    precision = choose(recipe.train.precision, model, micro * recipe.model.context, world)
    compiling = Compiling("off", model, lambda sentence: None)
    updater = Updater(recipe, model, world, precision, compiling, micro)
    tokens = torch.randint(recipe.model.vocab or 1, (micro, recipe.model.context))
    batch = Batch(tokens, tokens)
    times = []
    for step in range(STEPS + 1):
        begin = time.perf_counter()
        float(updater.step(batch, step, STEPS + 1).loss)  # waits for the device
        times.append(time.perf_counter() - begin)
    return precision.name, sorted(times[1:])[STEPS // 2] * rows / micro


def human_time(seconds: float) -> str:
    """`5400` -> `1 h 30 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:.1f} days"
