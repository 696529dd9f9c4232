"""A run directory, read back: what was measured, said and written while it trained."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homespun.config import read_yaml
from homespun.errors import CheckpointError
from homespun.objectives.metrics import perplexity
from homespun.train.log import read_metrics

Row = dict[str, Any]


@dataclass(frozen=True)
class Story:
    """What a run's files tell. Curves and figures come from metrics.jsonl alone.

    Rows are in the order of their steps; what a resumed run did again stands there once, and its clock goes on.
    """

    path: Path
    training: list[Row]
    validation: list[Row]
    advice: list[Row]
    samples: list[Row]
    recipe: str
    environment: Row

    @classmethod
    def read(cls, run: Path) -> Story:
        """Reads the run at `run`; only metrics.jsonl must be there.

        Raises `CheckpointError` when it is not, or when environment.json is damaged.
        """
        if not run.is_dir():
            raise CheckpointError(f"There is no run at {run}", "Give the folder of a run, for example runs/NAME.")
        if not (run / "metrics.jsonl").is_file():
            raise CheckpointError(
                f"{run} holds no metrics.jsonl", "Give the folder of a run that `homespun train` made."
            )
        rows = _one_clock(_without_abandoned(read_metrics(run / "metrics.jsonl")))
        validation = {row["step"]: row for row in rows if any(name.startswith("validation_") for name in row)}
        advice = {str(row["advice"]): row for row in rows if "advice" in row}
        return cls(
            path=run,
            training=[row for row in rows if "loss" in row],
            validation=sorted(validation.values(), key=lambda row: row["step"]),
            advice=list(advice.values()),
            samples=_samples(run / "samples.jsonl"),
            recipe=(run / "recipe.yaml").read_text("utf-8", errors="replace")
            if (run / "recipe.yaml").is_file()
            else "",
            environment=_environment(run / "environment.json"),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe as dotted keys and values, in its own order."""
        return dict(_flat(read_yaml(self.recipe, str(self.path / "recipe.yaml"))))

    @property
    def best(self) -> Row | None:
        """The validation with the fewest bits per byte (where those are missing, the lowest loss); None without one."""
        for name in ("validation_bits_per_byte", "validation_loss"):
            if rows := [row for row in self.validation if number(row, name) is not None]:
                return min(rows, key=lambda row: row[name])
        return None

    @property
    def untuned_bits(self) -> float | None:
        """Bits per byte of the base, where the run is a tuned one."""
        first = self.validation[0] if self.validation and "tuned.base" in self.settings else None
        return number(first, "validation_bits_per_byte") if first and first["step"] == 0 else None

    @property
    def best_bits(self) -> float | None:
        """Bits per byte at the best validation."""
        return number(self.best, "validation_bits_per_byte") if self.best else None

    @property
    def best_perplexity(self) -> float | None:
        """Perplexity at the best validation."""
        if self.best is None or (loss := number(self.best, "validation_loss")) is None:
            return None
        return number(self.best, "validation_perplexity") or perplexity(loss, 1)

    @property
    def steps(self) -> int:
        """The last step measured."""
        return max((row["step"] for row in self.training + self.validation), default=0)

    @property
    def tokens(self) -> float | None:
        """Tokens trained on."""
        return self._largest("tokens")

    @property
    def seconds(self) -> float | None:
        """Seconds of work, over all resumptions."""
        return self._largest("seconds")

    @property
    def tokens_per_second(self) -> float | None:
        """The median of the training rows: the first steps, slow while things warm up, do not count."""
        rates = [rate for _, rate in points(self.training, "tokens_per_second")]
        return statistics.median(rates) if rates else None

    @property
    def skipped(self) -> list[tuple[float, float]]:
        """(step, how many so far) of the training rows in which updates were left out: non-finite loss or gradient."""
        found, so_far = [], 0.0
        for row in self.training:
            counted = number(row, "skipped_steps")
            total = counted if counted is not None else so_far + (number(row, "loss") is None)
            if total > so_far:
                found.append((row["step"], total))
            so_far = max(so_far, total)
        return found

    @property
    def skipped_steps(self) -> int:
        """How many updates were left out."""
        return round(self.skipped[-1][1]) if self.skipped else 0

    def _largest(self, name: str) -> float | None:
        return max(
            (value for row in self.training + self.validation if (value := number(row, name)) is not None), default=None
        )


def number(row: Row, name: str) -> float | None:
    """The value as a finite number; None when it is missing, null, NaN or no number at all."""
    value = row.get(name)
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if finite else None


def points(rows: Iterable[Row], name: str, x: str = "step", unit: float = 1.0) -> list[tuple[float, float]]:
    """(x / unit, value) of every row that has both."""
    pairs = ((number(row, x), number(row, name)) for row in rows)
    return [(at / unit, value) for at, value in pairs if at is not None and value is not None]


def _without_abandoned(rows: Sequence[Row]) -> list[Row]:
    """Drops the rows past the checkpoint a run was resumed from; it did those steps again."""
    kept: list[Row] = []
    reached = -1.0
    for row in rows:
        step = number(row, "step")
        if step is None:
            continue
        if "loss" in row:
            if step <= reached:
                kept = [old for old in kept if old["step"] < step or (old["step"] == step and "loss" not in old)]
            reached = step
        kept.append(row)
    return kept


def _one_clock(rows: Sequence[Row]) -> list[Row]:
    """The rows with `seconds` that never go back: a clock that started again is added to what was before."""
    told, before, last = [], 0.0, 0.0
    for row in rows:
        seconds = number(row, "seconds")
        if seconds is None:
            told.append(row)
            continue
        if seconds < last:
            before += last
        last = seconds
        told.append(row | {"seconds": before + seconds})
    return told


def _samples(path: Path) -> list[Row]:
    """Samples, newest step first; those of steps that a resumed run did again stand there once."""
    kept: list[Row] = []
    for row in read_metrics(path) if path.is_file() else []:
        if number(row, "step") is None or "text" not in row:
            continue
        if kept and row["step"] < kept[-1]["step"]:
            kept = [old for old in kept if old["step"] < row["step"]]
        if row not in kept[-50:]:
            kept.append(row)
    return sorted(kept, key=lambda row: -row["step"])


def _environment(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}", "Remove it; the report does without.") from None
    if not isinstance(told, dict):
        raise CheckpointError(f"{path} should hold names and values", "Remove it; the report does without.")
    return told


def _flat(tree: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(tree, dict) or not tree:
        return [(path, tree)] if path else []
    return [pair for key, value in tree.items() for pair in _flat(value, f"{path}.{key}" if path else str(key))]
