"""Will it fit, and how many rows at a time."""

from __future__ import annotations

from homespun.errors import ConfigError
from homespun.model.cost import Cost

SHARE = 0.6  # of the free memory that one run may plan with: the operating system and the data need the rest


def human_bytes(count: float) -> str:
    """`1536` -> `1.5 KB` (powers of 1024)."""
    for unit in ("bytes", "KB", "MB", "GB", "TB", "PB"):
        if count < 1024 or unit == "PB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def rows_that_fit(cost: Cost, context: int, rows: int, free: int) -> int:
    """The largest number of rows, dividing `rows`, whose training step fits into a share of `free` bytes.

    Raises `ConfigError` where not even one row does.
    """
    for fitting in sorted((n for n in range(1, rows + 1) if rows % n == 0), reverse=True):
        if cost.training_bytes(fitting * context) <= SHARE * free:
            return fitting
    need = cost.training_bytes(context)
    raise ConfigError(
        f"Training this model needs about {human_bytes(need)}, but {human_bytes(free)} are free",
        "Lower model.width, model.layers or model.context, or set train.checkpoint_activations=true.",
    )
