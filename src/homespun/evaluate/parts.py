"""The parts of a mixture in a report: what each of them costs, and how that fell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from homespun.evaluate.charts import Chart, Series, draw, thin
from homespun.evaluate.markup import Html, element
from homespun.evaluate.sections import section, table
from homespun.evaluate.story import Row, Story, number
from homespun.evaluate.words import exact

NOTE = "Each part of the mixture is measured by itself, on its own held-out text."
SHOWN = 8
"""Parts of which a chart is drawn; of more, some from the cheapest to the dearest."""


def parts(story: Story) -> Html:
    """The section, or nothing for a run that was not trained on a mixture."""
    curves: dict[str, list[tuple[float, Row]]] = {}
    for row in story.validation:
        for name, figures in _whole(row).items():
            curves.setdefault(name, []).append((row["step"], figures))
    if not curves:
        return Html()
    rows = []
    for name, told in curves.items():
        bits = [figures["bits_per_byte"] for _, figures in told]
        rows.append([name, exact(bits[-1], 3), exact(min(bits), 3), exact(told[-1][1]["loss"], 3)])
    drawn = _spread(sorted(curves, key=lambda name: curves[name][-1][1]["bits_per_byte"])) if rows[SHOWN:] else curves
    lines = [
        Series(name, thin([(step, figures["bits_per_byte"]) for step, figures in curves[name]], 600), index, "dots")
        for index, name in enumerate(drawn)
    ]
    chart = draw(Chart("Bits per byte of each part", "steps", lines, wide=True))
    heads = ["Part", "Bits per byte", "Its best", "Loss"]
    note = NOTE + (
        f" The curves are of {SHOWN} of {len(rows)}, from the cheapest to the dearest." if rows[SHOWN:] else ""
    )
    return section("Parts of the mixture", element("p", note, class_="note"), table(heads, rows), chart)


def _spread(names: Sequence[str]) -> list[str]:
    """`SHOWN` of the names, evenly, the first and the last among them."""
    return [names[index * (len(names) - 1) // (SHOWN - 1)] for index in range(SHOWN)]


def _whole(row: Row) -> dict[str, Any]:
    """The parts of a row whose figures are numbers; a hand-edited one is passed over."""
    found = row.get("sources")
    if not isinstance(found, dict):
        return {}
    names = ("loss", "bits_per_byte")
    return {
        str(name): figures
        for name, figures in found.items()
        if isinstance(figures, dict) and all(number(figures, each) is not None for each in names)
    }
