"""torch.compile where it repays. One block is compiled and serves every layer: that takes a third of the time of a
whole model, and the steps are as fast to a few percent."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch

from homespun.model.block import Block
from homespun.model.decoder import Decoder
from homespun.model.plain import plain

if TYPE_CHECKING:
    from homespun.train.rehearsal import Rehearsal

Compile = Literal["auto", "on", "off"]
REPAYS_AFTER = {"cpu": 120.0, "cuda": 120.0}  # seconds of training left from which a first compile is worth its wait
READY_REPAYS_AFTER = 20.0  # and one whose results lie in the cache


class Compiling:
    """Decides whether to compile, and swaps the compiled blocks in for training steps only.

    With `auto` on a CPU a first compile runs in a `Rehearsal` beside the training, which goes on meanwhile and changes
    over between two steps. A compile that fails is reported in one line and the run goes on without it.
    """

    def __init__(
        self, choice: Compile, model: Decoder, note: Callable[[str], None], rehearsal: Rehearsal | None = None
    ):
        self.choice: Compile = "off" if plain() else choice
        self.model, self.note, self.rehearsal = model, note, rehearsal
        self.forward: Callable[..., Any] | None = None
        if self.choice == "on":
            self._compile()

    @property
    def active(self) -> bool:
        """Whether training steps run compiled."""
        return self.forward is not None

    def consider(self, seconds_left: float, device: torch.device) -> bool:
        """For `auto`, called between steps: compiles once that repays itself in the rest of the run.

        True when something changed just now: the next steps will not be as fast as those before.
        """
        if self.choice != "auto" or self.active or not _possible(device):
            return False
        rehearsal, patient = self.rehearsal, seconds_left >= REPAYS_AFTER.get(device.type, float("inf"))
        if rehearsal is not None and not rehearsal.ready:
            if rehearsal.running:
                return False
            if rehearsal.failed:
                return self._give_up(f"the rehearsal ended with {rehearsal.failed}")
            if patient and rehearsal.start():
                self.note("compiling the model in another process; training goes on with fewer threads meanwhile")
                return True
        if not (patient or (rehearsal is not None and rehearsal.ready and seconds_left >= READY_REPAYS_AFTER)):
            return False
        self.note(f"compiling the model: about {seconds_left / 60:.0f} minutes of training are left to repay it")
        self._compile()
        return True

    def close(self) -> None:
        """Ends a rehearsal that is still going on."""
        if self.rehearsal is not None:
            self.rehearsal.stop()

    def _compile(self) -> None:
        """Compiles `Block.forward` at its first call. What it reads of a layer is checked at each later one."""
        with torch.no_grad():  # tables are made at the first call, which would be compiled with it
            self.model.hidden(torch.zeros(1, self.model.config.context, dtype=torch.int64, device=self._device))
        self.forward = torch.compile(Block.forward, dynamic=False)

    @property
    def _device(self) -> torch.device:
        return self.model.head_weight.device

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the blocks of the model run compiled."""
        if self.forward is None:
            yield
            return
        for block in self.model.model.blocks():
            block.__dict__["forward"] = functools.partial(self.forward, block)
        try:
            yield
        finally:
            for block in self.model.model.blocks():
                del block.__dict__["forward"]

    def failed(self, error: Exception) -> bool:
        """Called with an error of a training step: True if it came from the compiler, which is then put aside."""
        origin = type(error).__module__
        if not self.active or not origin.startswith(("torch._dynamo", "torch._inductor")):
            return False
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return self._give_up(reason.strip()[:120])

    def _give_up(self, reason: str) -> Literal[True]:
        self.forward, self.choice = None, "off"
        self.note(f"compiling failed, going on without it ({reason})")
        return True


def _possible(device: torch.device) -> bool:
    """Whether there is a compiler; a GPU's comes with torch."""
    return device.type != "cpu" or bool(shutil.which("g++") or shutil.which("clang++"))
