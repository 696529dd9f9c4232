"""The picture of a mixture's experts in a report: who takes how many tokens, layer by layer, and how that settled."""

from __future__ import annotations

from typing import Any

from homespun.evaluate.charts import Chart, Point, Series, draw, smooth, thin
from homespun.evaluate.markup import Html, element
from homespun.evaluate.sections import section
from homespun.evaluate.story import Story, number
from homespun.evaluate.words import exact

LEGIBLE = 16  # experts up to which a cell has room for its figure

NOTE = (
    "Each row is a layer, each cell an expert, shaded by its share of the tokens at the end of the run. Busiest: that "
    "expert's share over a fair one. Evenness: 1 when all have the same."
)


def experts(story: Story) -> Html:
    """The section, or nothing for a model without experts."""
    rows = [(row["step"], layers) for row in story.training if (layers := _layers(row))]
    if not rows:
        return Html()
    last = rows[-1][1]
    heads = ["Layer", "Tokens of each expert", "Busiest", "Evenness", "Idle"]
    head = element("thead", element("tr", *(element("th", text, scope="col") for text in heads)))
    body = [_row(name, layer) for name, layer in last.items()]
    table = element("table", head, element("tbody", *body), class_="experts")
    picture = element("div", table, class_="scroll", tabindex=0, role="group", aria_label="Use of the experts by layer")
    fair = ", ".join(sorted({f"{1 / len(layer['share']):.1%}" for layer in last.values()}))
    note = element("p", f"{NOTE} A fair share is {fair}.", class_="note")
    charts = element("div", draw(_over_steps(rows)), draw(_balance(story)), class_="curves")
    return section("Experts", note, picture, charts)


def _row(name: str, layer: dict[str, Any]) -> Html:
    shares = layer["share"]
    cells = []
    for index, share in enumerate(shares):
        use = min(2.0, share * len(shares))  # 1 is fair
        text = f"{share:.0%}" if len(shares) <= LEGIBLE else ""
        told = f"expert {index}: {share:.1%} of the tokens"
        dead = " dead" if share == 0 else ""
        cells.append(element("i", text, class_=f"expert{dead}", style=f"--use:{use * 40:.0f}%", title=told))
    strip = element("div", *cells, class_="strip", role="img", aria_label=_spoken(shares))
    figures = (f"{1 + layer['max_violation']:.2f} x", exact(layer["entropy"], 3), str(layer["dead"]))
    return element(
        "tr", element("th", name, scope="row"), element("td", strip), *(element("td", each) for each in figures)
    )


def _spoken(shares: list[float]) -> str:
    return f"{len(shares)} experts, shares from {min(shares):.1%} to {max(shares):.1%}"


def _over_steps(rows: list[tuple[float, dict[str, Any]]]) -> Chart:
    """How far the busiest expert is above its fair share: the worst layer, and the mean of them."""
    worst: list[Point] = [(step, max(layer["max_violation"] for layer in layers.values())) for step, layers in rows]
    mean = [(step, sum(layer["max_violation"] for layer in layers.values()) / len(layers)) for step, layers in rows]
    lines = [
        Series("worst layer", thin(smooth(worst), 600), 1),
        Series("mean of layers", thin(smooth(mean), 600), 0),
    ]
    return Chart("Excess of the busiest expert (0 is even)", "steps", lines, from_zero=True)


def _balance(story: Story) -> Chart:
    points = [(row["step"], value) for row in story.training if (value := number(row, "balance_loss")) is not None]
    return Chart("Balance loss (1 is even)", "steps", [Series("", thin(smooth(points), 600))])


def _layers(row: dict[str, Any]) -> dict[str, Any]:
    """The layers of a row whose figures are whole; a hand-edited one is passed over."""
    layers = row.get("experts")
    if not isinstance(layers, dict):
        return {}
    names = ("share", "max_violation", "entropy", "dead")
    return {name: layer for name, layer in layers.items() if isinstance(layer, dict) and all(n in layer for n in names)}
