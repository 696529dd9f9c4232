"""Figures as a reader wants them: short, exact, or as a length of time. What is not known is a dash."""

from __future__ import annotations

import json
from typing import Any

UNKNOWN = "–"


def short(value: float | None) -> str:
    """Three or four digits: `3e-4`, `0.25`, `1,500`, `12k`, `3.4M`."""
    if value is None:
        return UNKNOWN
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.3g}{name}"
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def exact(value: float | None, digits: int = 4) -> str:
    """With so many decimals, so that neighbours in a column can be compared."""
    return UNKNOWN if value is None else f"{value:.{digits}f}" if abs(value) < 1000 else short(value)


def duration(seconds: float | None) -> str:
    """`4.2 s`, `42 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds is None:
        return UNKNOWN
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def counted(number: float, noun: str) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def plain(value: Any) -> str:
    """A setting's value on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
