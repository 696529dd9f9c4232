"""Which numbers to compute with: fp32, or bf16 / fp16 products with fp32 weights (autocast)."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from homespun.errors import ConfigError
from homespun.train.parallel import World

Choice = Literal["auto", "fp32", "bf16", "fp16"]
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REPAYS = 1.4  # how much faster bf16 products must be before their extra casts are repaid


@dataclass
class Precision:
    """The chosen type, why, and for fp16 the loss scale (doubled after 2,000 good steps, halved at each overflow)."""

    dtype: torch.dtype
    reason: str
    scale: float = 1.0
    good: int = 0

    @property
    def name(self) -> str:
        return next(name for name, dtype in _TYPES.items() if dtype == self.dtype)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The context in which the forward runs."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)

    def overflowed(self) -> bool:
        """Called at a step that is not finite: True if a smaller loss scale may mend it (fp16 only)."""
        if self.dtype != torch.float16 or self.scale <= 1.0:
            return False
        self.scale, self.good = self.scale / 2, 0
        return True

    def stepped(self) -> None:
        """Called after each good step."""
        self.good += 1
        if self.dtype == torch.float16 and self.good % 2000 == 0:
            self.scale = min(self.scale * 2, 2.0**24)

    def to_dict(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return {"name": self.name, "scale": self.scale, "good": self.good}


def choose(
    choice: Choice, model: nn.Module, rows: int, world: World, former: dict[str, Any] | None = None
) -> Precision:
    """The precision of a run. `auto` measures; a resumed run keeps what its checkpoint (`former`) used, scale included.

    `rows`: tokens in one forward, for the timing at the model's own shapes. Every process times for itself, and all
    take the leader's type.
    """
    chosen = _choose(choice, model, rows, world.device, former)
    dtypes = list(_TYPES.values())
    leading = world.from_leader(torch.tensor([dtypes.index(chosen.dtype)], device=world.device))
    return replace(chosen, dtype=dtypes[int(leading)])


def _choose(
    choice: Choice, model: nn.Module, rows: int, device: torch.device, former: dict[str, Any] | None
) -> Precision:
    if former is not None and choice in ("auto", former["name"]):
        return Precision(_TYPES[former["name"]], "as before", former["scale"], former["good"])
    if choice == "fp32":
        return Precision(torch.float32, "as asked")
    if choice == "bf16":
        if device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ConfigError(
                "train.precision = bf16 is not supported by this GPU", "Use train.precision=fp16 or auto."
            )
        return Precision(torch.bfloat16, "as asked")
    if choice == "fp16":
        return Precision(torch.float16, "as asked", scale=2.0**15)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return Precision(torch.bfloat16, "this GPU has bf16 units")
        return Precision(torch.float16, "this GPU has no bf16 units", scale=2.0**15)
    return _measured(model, rows, device)


def _measured(model: nn.Module, rows: int, device: torch.device) -> Precision:
    """By the products on one thread: what they gain is the same on each, and company on other cores does not matter."""
    types, rows, threads = (torch.float32, torch.bfloat16), min(rows, 512), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tries = [[products_time(model, rows, dtype, device, 1) for dtype in types] for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    full, half = (min(times) for times in zip(*tries, strict=True))
    said = f"bf16 products are {full / half:.1f}x as fast as fp32 ones at this model's shapes"
    if full / half >= REPAYS:
        return Precision(torch.bfloat16, said)
    return Precision(torch.float32, f"{said}; that does not repay the casts")


def _shapes(model: nn.Module) -> set[tuple[int, ...]]:
    return {tuple(p.shape) for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name}


@torch.no_grad()
def products_time(model: nn.Module, rows: int, dtype: torch.dtype, device: torch.device, repeats: int = 3) -> float:
    """Seconds for the products of one forward and backward at the model's own shapes, the best of a few tries."""
    rows = max(64, min(rows, 4096))
    total = 0.0
    for outputs, inputs in _shapes(model):
        x = torch.randn(rows, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        y = x @ weight.T
        best = float("inf")
        for _ in range(repeats + 1):  # the first one warms up
            begin = time.perf_counter()
            y = x @ weight.T
            _ = y @ weight
            _ = y.T @ x
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - begin)
        total += best
    return total or 1.0


def ceiling(model: nn.Module, rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s that this machine reaches on the bare products of this model: what training is compared with."""
    numbers = sum(math.prod(shape) for shape in _shapes(model))
    return 6 * max(64, min(rows, 4096)) * numbers / products_time(model, rows, dtype, device)
