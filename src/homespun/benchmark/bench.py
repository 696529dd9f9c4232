"""This machine's ceilings, and a recipe against them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from homespun.benchmark import ceilings, decoding, training
from homespun.benchmark.ceilings import Ceilings
from homespun.benchmark.decoding import Decoding
from homespun.benchmark.training import Training
from homespun.config import override
from homespun.errors import ConfigError
from homespun.model.decoder import Decoder
from homespun.model.plain import plain
from homespun.train.compiling import Compiling
from homespun.train.estimate import MEASURED, Plan, plan
from homespun.train.machine import environment, keep_memory
from homespun.train.parallel import World
from homespun.train.precision import choose
from homespun.train.recipe import Recipe
from homespun.train.update import Updater

Part = Literal["train", "decode", "ceiling"]
PARTS: tuple[Part, ...] = ("train", "decode", "ceiling")
BUSY = 0.5  # processes for each core: with more company, the figures of several threads fall many times


@dataclass(frozen=True)
class Bench:
    """What was measured of a recipe on this machine.

    load: processes that were running or waiting before the first measurement, the mean of a minute; none where the
    system does not tell. machine_cores: of which a process may use some or all. plain: the fast paths were
    switched off (`HOMESPUN_PLAIN`).
    """

    recipe: str
    parameters: int
    vocabulary: int
    environment: dict[str, Any]
    machine_cores: int
    load: float | None
    plain: bool
    ceilings: Ceilings
    training: Training | None = None
    decoding: tuple[Decoding, ...] = ()

    @property
    def busy(self) -> bool:
        """Whether other work on this machine makes the figures worthless."""
        return self.load is not None and self.load > BUSY * self.machine_cores

    def to_dict(self) -> dict[str, Any]:
        """The measurements as plain data: seconds, bytes, FLOPs and shares of 1."""
        return asdict(self) | {"busy": self.busy}


def bench(
    recipe: Recipe, parts: Sequence[Part] = PARTS, seconds: float = 3.0, say: Callable[[str], None] | None = None
) -> Bench:
    """Measures `parts` of `recipe` on this machine, each measurement about `seconds`; the ceilings always.

    `say` is told what is going on. On a CPU a step has no more rows than some seconds of work. Raises
    `ConfigError` for a model that does not fit.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    say = say or (lambda sentence: None)
    keep_memory()
    planned = plan(recipe, measure=False)
    if not planned.fits:
        raise ConfigError(
            f"{recipe.name} does not fit this machine", "Lower model.width, model.layers or model.context."
        )
    sized = override(recipe, [f"model.vocab={planned.vocabulary}"])
    context = sized.model.context
    world = World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    rows = _rows(planned, context, world.device)
    micro = min(rows, planned.rows_at_a_time)
    torch.manual_seed(sized.train.seed)
    model = Decoder(sized.model).to(world.device)
    say("measuring the ceilings: matrix products and memory")
    precision = choose(sized.train.precision, model, micro * context, world)
    found = ceilings.measure(model, micro * context, precision.dtype, precision.name, seconds)
    written, trained = [], None
    for batch in decoding.BATCHES if "decode" in parts else ():
        say(f"measuring decoding, batch {batch}")
        written.append(decoding.measure(model, batch, found, seconds))
    if "train" in parts:
        say("measuring training")
        compiling = Compiling("on" if sized.train.compile == "on" else "off", model, say)
        updater = Updater(sized, model, world, precision, compiling, micro)
        trained = training.measure(updater, rows, planned.training_flops, found, seconds)
    return Bench(
        recipe=recipe.name,
        parameters=planned.parameters,
        vocabulary=planned.vocabulary,
        environment=environment(),
        machine_cores=os.cpu_count() or 1,
        load=load,
        plain=plain(),
        ceilings=found,
        training=trained,
        decoding=tuple(written),
    )


def _rows(planned: Plan, context: int, device: torch.device) -> int:
    """The rows of a measured step: the recipe's, or on a CPU as many as take some seconds."""
    rows = planned.tokens_per_step // context
    if device.type == "cuda":
        return rows
    return max(1, min(rows, int(MEASURED / (planned.training_flops * context))))
