"""What a run tells: rows of JSON for programs, lines for people."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from homespun.errors import TrainingError
from homespun.train.disk import replace

Row = dict[str, Any]
Metrics = Mapping[str, Any]

SHOWN_SOURCES = 8
"""Parts of a mixture that one line shows by their names."""

_ESCAPES = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}  # JSON allows them, readers by lines do not
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}  # to their Unicode pictures
_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class MetricsLog:
    """Appends rows to a file of JSON lines; each is with the system when `append` returns."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._file: Any = None

    def append(self, row: Metrics) -> None:
        """Adds a row; numbers that are not finite become null. Raises `TrainingError` on a full disk."""
        line = json.dumps(_finite(row), allow_nan=False, ensure_ascii=False).translate(_ESCAPES) + "\n"
        try:
            if self._file is None:
                self._cut_torn_line()
                self._file = self.path.open("ab")
            self._file.write(line.encode("utf-8", "backslashreplace"))  # half a surrogate pair becomes a JSON escape
            self._file.flush()
        except OSError as error:
            raise TrainingError(
                f"{self.path} cannot be written: {error.strerror}",
                "Make room on the disk; the same command goes on from the last checkpoint.",
            ) from None

    def rewind(self, step: int) -> None:
        """Drops the rows beyond `step`, which a run resumed there will write again, and lines that were torn."""
        self.close()
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        kept = b"".join(line + b"\n" for line, row in _parse(data) if not _beyond(row, step))
        if kept != data:
            replace(self.path, kept)

    def close(self) -> None:
        """Closes the file; the next row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _cut_torn_line(self) -> None:
        if self.path.is_file():
            data = self.path.read_bytes()
            if not data.endswith(b"\n") and data:
                replace(self.path, data[: data.rfind(b"\n") + 1])


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics or samples file, in order; none if there is no file.

    Lines that hold no JSON object are left out: a kill tears the last line, and a power cut may leave zeros.
    """
    return [row for _, row in _parse(Path(path).read_bytes())] if Path(path).is_file() else []


def _parse(data: bytes) -> Iterator[tuple[bytes, Row]]:
    for line in data.split(b"\n"):
        try:
            row = json.loads(line, parse_constant=lambda word: None)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield line, row


def _beyond(row: Row, step: int) -> bool:
    return isinstance(row.get("step"), (int, float)) and row["step"] > step


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


class RunningMean:
    """A mean in which older values count less and less, by `decay` each. What is not finite only adds to `rejected`."""

    def __init__(self, decay: float = 0.9):
        self.decay = decay
        self.rejected = 0
        self._sum = self._weight = 0.0

    def add(self, value: float | None) -> None:
        """Takes a value in; None, NaN and infinity only raise `rejected`."""
        if value is None or not math.isfinite(value):
            self.rejected += 1
            return
        self._sum = self.decay * self._sum + (1 - self.decay) * value
        self._weight = self.decay * self._weight + (1 - self.decay)

    @property
    def value(self) -> float | None:
        """The mean; none before the first finite value."""
        return self._sum / self._weight if self._weight else None


class Console(Protocol):
    """Where a person sees how a run goes. Metrics are rows of `metrics.jsonl`, with `total` (steps), `seconds_left` and
    `share` (of this machine's measured ceiling, 0 to 1) as far as they are known."""

    def preparing(self, phase: str, done: int, total: int | None, tokens: int) -> None:
        """Tells how far the reading of the text is, in bytes."""

    def start(self, total: int | None, description: str) -> None:
        """Training begins, or goes on; `total` steps, if that is known."""

    def update(self, step: int, metrics: Metrics) -> None:
        """A training row. May be called often: what is shown is up to the console."""

    def validation(self, metrics: Metrics) -> None:
        """A validation row."""

    def sample(self, text: str) -> None:
        """A text that the model wrote."""

    def note(self, text: str) -> None:
        """A sentence."""

    def close(self) -> None:
        """Nothing more will come."""


def open_console(quiet: bool = False, stderr: bool = False) -> Console:
    """The console that suits the output: live in a terminal, plain lines elsewhere, nothing when `quiet`."""
    stream = sys.stderr if stderr else sys.stdout
    if quiet:
        return PlainConsole(stream, quiet=True)
    from homespun.train.live import LiveConsole, suits  # rich takes a tenth of a second to import

    return LiveConsole(stream) if suits(stream) else PlainConsole(stream)


class PlainConsole:
    """Quiet plain lines, without control characters. A training line appears every ten seconds, in long runs every
    fiftieth of the time so far. An output that is closed (`| head`) ends the lines, not the training."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False, clock: Callable[[], float] = time.monotonic):
        self._stream = None if quiet else stream or sys.stdout
        self._clock = clock
        self._begin = self._printed = -math.inf
        self._phase = ""
        self._total: int | None = None
        self._smooth = Smooth()

    def preparing(self, phase: str, done: int, total: int | None, tokens: int) -> None:
        if phase != self._phase or self._clock() - self._printed >= 10:
            self._phase, self._printed = phase, self._clock()
            self._line(preparing_text(phase, done, total, tokens))

    def start(self, total: int | None, description: str) -> None:
        self._total, self._begin, self._printed = total, self._clock(), -math.inf
        self._line(f"training {description}")

    def update(self, step: int, metrics: Metrics) -> None:
        self._smooth.add(metrics)
        self._total = metrics.get("total", self._total)
        now = self._clock()
        if now - self._printed < max(10.0, 0.02 * (now - self._begin)) and step != self._total:
            return
        self._printed = now
        left = metrics.get("seconds_left")
        parts = [f"step {step:,}" + (f"/{self._total:,}" if self._total else ""), *self._smooth.figures()]
        self._line("  ".join(parts + ([f"{clock_text(left)} left"] if left is not None else [])))

    def validation(self, metrics: Metrics) -> None:
        self._smooth.add_validation(metrics)
        self._line(validation_text(metrics))

    def sample(self, text: str) -> None:
        self._line("\n".join(["sample:", *("  " + line for line in visible(text).split("\n"))]))

    def note(self, text: str) -> None:
        self._line(visible(text))

    def close(self) -> None:
        pass  # each line was flushed when it was written

    def _line(self, text: str) -> None:
        if self._stream is None:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            print(text.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)
        except (OSError, ValueError):  # the reader went away, or the stream was closed
            self._stream = None


class Smooth:
    """The figures of a training line: the newest of each, and a running mean of the loss."""

    def __init__(self) -> None:
        self.loss = RunningMean(0.8)
        self.newest: Row = {}
        self.bits: float | None = None

    def add(self, metrics: Metrics) -> None:
        """Takes in a training row."""
        self.newest = dict(metrics)
        self.loss.add(metrics.get("loss"))

    def add_validation(self, metrics: Metrics) -> None:
        """Takes in a validation row."""
        self.bits = metrics.get("validation_bits_per_byte")

    def figures(self) -> list[str]:
        """Loss, bits per byte, speed and share of the ceiling, as far as they are known, the dearest first."""
        speed, share, skipped = (self.newest.get(name) for name in ("tokens_per_second", "share", "skipped_steps"))
        told = [
            self.loss.value is not None and f"loss {self.loss.value:.3f}",
            self.bits is not None and f"{self.bits:.3f} bits/byte",
            speed is not None and f"{short(speed)} tokens/s",
            share is not None and f"{share:.0%} of peak",
            bool(skipped) and f"{skipped} skipped",
        ]
        return [text for text in told if isinstance(text, str)]


def validation_text(metrics: Metrics) -> str:
    """`step 400: validation 1.621 bits/byte, loss 1.981, perplexity 7.25`."""
    bits, loss, perplexity = (metrics.get(f"validation_{name}") for name in ("bits_per_byte", "loss", "perplexity"))
    told = [
        bits is not None and f"{bits:.3f} bits/byte",
        loss is not None and f"loss {loss:.3f}",
        perplexity is not None and f"perplexity {perplexity:.4g}",
    ]
    told += _sources_text({name: part["bits_per_byte"] for name, part in metrics.get("sources", {}).items()})
    figures = ", ".join(text for text in told if isinstance(text, str)) or "not finite"
    return f"step {metrics['step']:,}: validation {figures}" + (" (best so far)" if metrics.get("best") else "")


def _sources_text(bits: Mapping[str, float]) -> list[str]:
    """Each part of a mixture, or of many the cheapest and the dearest; those without a figure are left out."""
    known = sorted((value, name) for name, value in bits.items() if math.isfinite(value))
    if len(known) <= SHOWN_SOURCES:
        return [f"{name} {value:.3f}" for name, value in bits.items() if math.isfinite(value)]
    (least, easy), (most, hard) = known[0], known[-1]
    return [f"{len(known)} parts from {least:.3f} ({easy}) to {most:.3f} ({hard})"]


def preparing_text(phase: str, done: int, total: int | None, tokens: int) -> str:
    """`encoding 12.3 of 200.0 MB, 4.5M tokens`."""
    size = f"{done / 1e6:,.1f}" + (f" of {total / 1e6:,.1f} MB" if total else " MB") if done else ""
    return f"{phase} the text" + (f": {size}" if size else "") + (f", {short(tokens)} tokens" if tokens else "")


def visible(text: str) -> str:
    """The text without the control characters that a model of bytes may write and a terminal would obey."""
    return text.replace("\r\n", "\n").translate(_CONTROLS).encode("utf-8", "replace").decode("utf-8")


def short(number: float) -> str:
    """`950`, `41.2k`, `1.25M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def clock_text(seconds: float) -> str:
    """`0:42`, `12:05`, `3:07:00`, `2 d 5 h`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
