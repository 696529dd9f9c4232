"""The one switch that turns every fast path off, to see whether one of them is to blame."""

from __future__ import annotations

import os

SWITCH = "HOMESPUN_PLAIN"


def plain() -> bool:
    """Whether the environment asks for the plain paths: `HOMESPUN_PLAIN=1`."""
    return os.environ.get(SWITCH, "0") not in ("", "0")
