"""What the log hears of a fault."""

from __future__ import annotations

import logging
import traceback


def log_fault(error: Exception) -> None:
    """What failed and where, without its message: that may hold what a client wrote."""
    where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-3:]]
    logging.getLogger("homespun.serve").error("A fault: %s at %s", type(error).__name__, " < ".join(reversed(where)))
