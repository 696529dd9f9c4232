"""The look of a run in a terminal: one bar with its figures below, and everything else as lines above it."""

from __future__ import annotations

import atexit
import contextlib
import time
from typing import TextIO

from rich.console import Console as Terminal
from rich.console import ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from homespun.train.log import Metrics, Smooth, clock_text, preparing_text, validation_text, visible

REFRESHES = 4  # a second; each takes about a millisecond


def suits(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can draw over its own lines."""
    terminal = Terminal(file=stream)
    return terminal.is_terminal and not terminal.is_dumb_terminal


class LiveConsole:
    """A `homespun.train.log.Console` for a terminal. It obeys NO_COLOR, and shows any text literally."""

    def __init__(self, stream: TextIO | None = None, terminal: Terminal | None = None):
        self.terminal = terminal or Terminal(file=stream, highlight=False)
        self._live: Live | None = None
        self._phase: Text | None = None  # while the text is being prepared, what is shown in place of the figures
        self._fraction: tuple[int, int | None] = (0, None)  # done, of
        self._left: float | None = None
        self._before, self._begin = 0.0, 0.0  # seconds of training before this start; the clock at this start
        self._smooth = Smooth()

    def preparing(self, phase: str, done: int, total: int | None, tokens: int) -> None:
        self._phase, self._fraction = Text(preparing_text(phase, done, total, tokens)), (done, total)
        self._show()

    def start(self, total: int | None, description: str) -> None:
        self.close()
        self._phase, self._fraction, self._begin = None, (0, total), time.monotonic()
        self._print(Text(description, style="bold"))
        self._show()

    def update(self, step: int, metrics: Metrics) -> None:
        self._smooth.add(metrics)
        self._fraction = (step, metrics.get("total", self._fraction[1]))
        self._left = metrics.get("seconds_left")
        if "seconds" in metrics:
            self._before, self._begin = metrics["seconds"], time.monotonic()

    def validation(self, metrics: Metrics) -> None:
        self._smooth.add_validation(metrics)
        self._print(Text(validation_text(metrics), style="cyan"))

    def sample(self, text: str) -> None:
        for line in Text(visible(text).strip("\n")).wrap(self.terminal, max(20, self.terminal.width - 4)):
            self._print(Text.assemble(("  │ ", "dim"), line))

    def note(self, text: str) -> None:
        self._print(Text(visible(text), style="dim"))

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            atexit.unregister(self.close)
            with contextlib.suppress(OSError):  # as in _print
                live.stop()

    def __rich_console__(self, console: Terminal, options: ConsoleOptions) -> RenderResult:
        """Two lines: how far it is, and how it goes. Called several times a second by the display's own thread."""
        done, of = self._fraction
        count = "" if self._phase else f"{done:,}/{of:,}" if of else f"step {done:,}"
        left = f"{clock_text(self._left)} left" if self._left is not None and not self._phase else ""
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        row.add_row(Text(count), self._bar(), Text(left))
        yield row
        yield self._phase or self._figures(options.max_width)

    def _bar(self) -> ProgressBar:
        done, of = self._fraction
        return ProgressBar(total=of, completed=done, pulse=not of, complete_style="cyan", finished_style="green")

    def _figures(self, width: int) -> Text:
        """As many of the figures as fit on the line; those on the left matter most."""
        elapsed = self._before + time.monotonic() - self._begin
        line = Text()
        for figure in [*self._smooth.figures(), f"{clock_text(elapsed)} so far"]:
            gap = "   " if line else ""
            if len(line) + len(gap) + len(figure) <= width:
                line.append(gap + figure)
        return line

    def _show(self) -> None:
        if self._live is None:
            preparing = self._phase is not None  # what it showed is of no use afterwards
            self._live = Live(self, console=self.terminal, refresh_per_second=REFRESHES, transient=preparing)
            atexit.register(self.close)  # whatever ends the run, the cursor comes back
            self._live.start()

    def _print(self, text: Text) -> None:
        with contextlib.suppress(OSError):  # a terminal that was closed must not cost the training
            self.terminal.print(text, soft_wrap=False)
