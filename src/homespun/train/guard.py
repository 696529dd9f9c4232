"""What stands between a run and its two enemies: a signal in the middle of a step, and a number that is not finite."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from homespun.errors import CheckpointError, TrainingError

ECHO = 0.5  # seconds in which a signal counts as the same one again: `timeout` and launchers send it twice
ENDING = "finishing this step and saving. Once more quits at once, without saving."
_WATCHED = (signal.SIGINT, signal.SIGTERM)


class SignalGuard:
    """Inside, the first Ctrl-C or SIGTERM only sets `signal`, so that the step can end and be saved; a second one, more
    than half a second later, ends the process at once.

    Handlers are put in place in the main thread only, and not for a signal that the process was started to ignore; what
    was there before comes back at the end. `ending`: what is told at the first one.
    """

    def __init__(self, say: Callable[[str], None] | None = None, ending: str = ENDING):
        self.signal: int | None = None
        self._ending = ending
        self._say = say or _say
        self._since = 0.0
        self._former: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """What the shell expects of a process that a signal stopped: 130 for Ctrl-C, 143 for SIGTERM; 0 without one."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> SignalGuard:
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former.clear()

    def _caught(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            self._say(f"{name}: {self._ending}")
        elif time.monotonic() - self._since > ECHO:
            _quit(number)


def _quit(number: int) -> None:
    with contextlib.suppress(OSError):  # whatever became of the terminal, the process ends
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")  # a live display hides the cursor
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # only reached as the first process of a container, which default handlers spare


def _say(sentence: str) -> None:
    """Straight to the terminal: `print` may be in the middle of a line, and must not be entered twice."""
    with contextlib.suppress(OSError):  # a closed terminal must not cost the save
        # Empty lines keep the sentence clear of a live display, which draws its two lines anew below.
        os.write(2, f"\n{sentence}\n\n".encode() if os.isatty(2) else f"{sentence}\n".encode())


class FiniteGuard:
    """Keeps steps whose loss or gradient is NaN or infinite out of the model.

    `total`: bad steps so far; `in_a_row`: those since the last good one. At `max_bad_steps` in a row the run is over.
    """

    def __init__(self, max_bad_steps: int):
        self.max_bad_steps = max_bad_steps
        self.total = 0
        self.in_a_row = 0

    def check(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether the step may be taken; `loss` and gradient `norm`, scalars, are already those of all processes.

        Raises `TrainingError` after `max_bad_steps` bad steps in a row.
        """
        if bool(torch.isfinite(loss) & torch.isfinite(norm)):  # the one place where the device is waited for
            self.in_a_row = 0
            return True
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self.max_bad_steps:
            raise TrainingError(
                f"The loss or its gradient was not finite {self.in_a_row} steps in a row (loss {float(loss):g}, "
                f"gradient norm {float(norm):g})",
                "None of these steps was taken or saved. Lower optimizer.learning_rate (a tenth is a good try), "
                "lengthen optimizer.schedule.warmup, or compute with train.precision=fp32.",
            )
        return False

    def to_dict(self) -> dict[str, int]:
        """State for the checkpoint."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def from_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on counting from a checkpoint's state. Raises `CheckpointError` when it holds no such counts."""
        try:
            self.total, self.in_a_row = int(state["total"]), int(state["in_a_row"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The counts of skipped steps are damaged: {error!r}", "Use another checkpoint."
            ) from None
