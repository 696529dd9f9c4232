"""torch.compile where it repays: it costs half a minute at first, more than a short run."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from homespun.model.decoder import Decoder

Compile = Literal["auto", "on", "off"]
REPAYS_AFTER = {"cpu": 300.0, "cuda": 120.0}  # seconds of training left from which a cold compile is worth its wait


class Compiling:
    """Decides whether to compile, and swaps the compiled forward in for training steps only.

    A compile that fails is reported in one line and the run goes on without it.
    """

    def __init__(self, choice: Compile, model: Decoder, note: Callable[[str], None]):
        self.choice, self.model, self.note = choice, model, note
        self.hidden: Callable[..., Any] | None = None
        if choice == "on":
            self._compile()

    @property
    def active(self) -> bool:
        """Whether training steps run compiled."""
        return self.hidden is not None

    def consider(self, seconds_left: float, device: torch.device) -> bool:
        """For `auto`: compiles if the rest of the run is long enough to repay it and there is a compiler.

        True when it was decided just now: the next step will take long.
        """
        if self.choice != "auto" or self.active or seconds_left < REPAYS_AFTER.get(device.type, float("inf")):
            return False
        if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            return False
        self.note(f"compiling the model: about {seconds_left / 60:.0f} minutes of training are left to repay it")
        self._compile()
        return True

    def _compile(self) -> None:
        self.hidden = torch.compile(self.model.hidden, dynamic=False)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, `model.hidden` is the compiled one."""
        if self.hidden is None:
            yield
            return
        self.model.__dict__["hidden"] = self.hidden
        try:
            yield
        finally:
            del self.model.__dict__["hidden"]

    def failed(self, error: Exception) -> bool:
        """Called with an error of a training step: True if it came from the compiler, which is then put aside."""
        origin = type(error).__module__
        if not self.active or not origin.startswith(("torch._dynamo", "torch._inductor")):
            return False
        self.hidden = None
        self.choice = "off"
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        self.note(f"compiling failed, going on without it ({reason.strip()[:120]})")
        return True
