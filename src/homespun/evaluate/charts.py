"""Line charts as inline SVG: lines stretch with the page, words are HTML and keep their size, no library.

The drawing holds the data: the read-out under the pointer (report.js) turns the coordinates back into values.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from homespun.evaluate.markup import Html, element
from homespun.evaluate.words import short

Point = tuple[float, float]

PALETTE = 8  # colours in report.css; later series repeat them dashed


@dataclass(frozen=True)
class Series:
    """One named curve. `look`: a full line, a faint one behind it, or a line with a dot at each point."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    look: Literal["line", "faint", "dots"] = "line"


@dataclass(frozen=True)
class Chart:
    """What to draw: curves over a common x, the points to mark as best, and the x of skipped steps.

    `x_name` is the unit of x in the plural; `from_zero` starts the y axis at 0; `wide` gives a taller frame.
    """

    title: str
    x_name: str
    series: Sequence[Series]
    best: Sequence[tuple[Point, int]] = ()
    skipped: Sequence[float] = ()
    note: str = ""
    from_zero: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Frame:
    """The rectangle of values that is shown; it maps to 0..1000 on both axes of the drawing."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return (value - self.left) / (self.right - self.left) * 1000

    def y(self, value: float) -> float:
        return (self.high - value) / (self.high - self.low) * 1000


def smooth(points: Sequence[Point], share: float = 0.02) -> list[Point]:
    """A running mean over about `2 * share` of the points.

    The window is symmetric while it fits on the left, so the steep start is not dragged upwards.
    """
    reach = max(2, round(len(points) * share))
    sums = [0.0, *accumulate(y for _, y in points)]
    smoothed = []
    for index, (x, _) in enumerate(points):
        near = min(index, reach)
        first, end = index - near, min(len(points), index + near + 1)
        smoothed.append((x, (sums[end] - sums[first]) / (end - first)))
    return smoothed


def thin(points: Sequence[Point], limit: int = 1500) -> list[Point]:
    """At most `limit` points: first, last, and the lowest and highest of each bucket, so that no spike is lost."""
    if len(points) <= limit:
        return list(points)
    buckets = (limit - 2) // 2
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        indices = range(len(points) * bucket // buckets, len(points) * (bucket + 1) // buckets)
        kept |= {min(indices, key=lambda i: points[i][1]), max(indices, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(kept)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) between `low` and `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * index, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def draw(chart: Chart) -> Html:
    """The chart as a `<figure>`: heading, legend, plot, note. Without points it says so in words."""
    drawn = [series for series in chart.series if series.points]
    heading = element("h3", chart.title)
    if not drawn:
        return element("figure", element("figcaption", heading), element("p", "Nothing measured yet.", class_="empty"))
    frame = _frame(chart, drawn)
    highest = max(y for series in drawn for _, y in series.points)
    note = f"The highest value, {short(highest)}, lies above the frame." if highest > frame.high else ""
    notes = " ".join(text for text in (chart.note, note) if text)
    legend = [element("span", element("i", class_=_classes(series)), series.name) for series in drawn if series.name]
    if chart.skipped:
        legend.append(element("span", element("i", class_="skipped"), "skipped step"))
    return element(
        "figure",
        element("figcaption", heading, element("div", *legend, class_="legend") if len(legend) > 1 else ""),
        _plot(chart, drawn, frame),
        element("p", notes, class_="note") if notes else "",
        class_="wide" if chart.wide else "small",
    )


def value_at(points: Sequence[Point], x: float) -> float | None:
    """The y of the last point at or before `x`, else of the first; None without points."""
    if not points:
        return None
    index = bisect_left(points, (x, math.inf))
    return points[max(0, index - 1)][1]


def _frame(chart: Chart, drawn: Sequence[Series]) -> Frame:
    xs = [x for series in drawn for x, _ in series.points]
    ys = sorted(y for series in drawn for _, y in series.points)
    low, high = ys[0], ys[math.floor(0.95 * (len(ys) - 1))]
    if len(ys) < 8 or ys[-1] - low <= 1.3 * (high - low):
        high = ys[-1]  # else the few highest would flatten all the rest: they leave the frame, and a note says so
    low = min(0.0, low) if chart.from_zero else low
    room = (high - low) * 0.07 or abs(high) * 0.1 or 1.0
    margin = (max(xs) - min(xs)) * 0.012 or 0.5
    bottom = low if chart.from_zero else low - room
    return Frame(min(xs) - margin, max(xs) + margin, bottom, high + room)


def _plot(chart: Chart, drawn: Sequence[Series], frame: Frame) -> Html:
    whole = chart.x_name in ("steps", "tokens")
    x_ticks = [
        (frame.x(value) / 10, short(value))
        for value in ticks(frame.left, frame.right)
        if value >= 0 and (value.is_integer() or not whole)
    ]
    y_ticks = [(frame.y(value) / 10, short(value)) for value in ticks(frame.low, frame.high, 5 if chart.wide else 4)]
    grid = "".join(f"M0 {round(at * 10, 2):g}H1000" for at, _ in y_ticks)
    drawing = [element("path", d=grid, class_="grid")]
    for x in chart.skipped:
        drawing.append(element("path", d=f"M{round(frame.x(x), 2):g} 965V1000", class_="skipped"))
    for series in sorted(drawn, key=lambda series: series.look != "faint"):
        drawing += _lines(series, frame)
    for (x, y), colour in chart.best:
        drawing.append(element("path", d=_path([(x, y)], frame, dots=True), class_=f"best s{colour % PALETTE}"))
    labels = [element("span", text, class_="y", style=f"top:{at:.2f}%") for at, text in y_ticks]
    labels += [element("span", text, class_="x", style=f"left:{at:.2f}%") for at, text in x_ticks]
    labels.append(element("span", chart.x_name, class_="unit"))
    if len(chart.best) == 1:
        labels.append(_best_label(chart.best[0][0], frame))
    svg = element(
        "svg",
        *drawing,
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        role="img",
        aria_label=_describe(chart, drawn),
    )
    limits = f"{frame.left:.9g} {frame.right:.9g} {frame.low:.9g} {frame.high:.9g}"
    return element("div", svg, *labels, class_="plot", data_frame=limits, data_x=chart.x_name, data_title=chart.title)


def _lines(series: Series, frame: Frame) -> list[Html]:
    paths = [element("path", d=_path(series.points, frame), class_=_classes(series), data_name=series.name or "value")]
    if series.look == "dots" or len(series.points) == 1:
        dots = _path(series.points, frame, dots=True)
        paths.append(element("path", d=dots, class_=f"points s{series.colour % PALETTE}"))
    return paths


def _path(points: Sequence[Point], frame: Frame, dots: bool = False) -> str:
    """SVG path data; a dot is a line of no length, which keeps its round cap however the drawing is stretched."""
    places = [f"{round(frame.x(x), 2):g} {round(frame.y(y), 2):g}" for x, y in points]
    return "".join(f"M{place}h0" for place in places) if dots else "M" + "L".join(places)


def _classes(series: Series) -> str:
    dashed = " dashed" if series.colour >= PALETTE else ""
    return f"{series.look} s{series.colour % PALETTE}{dashed}"


def _best_label(point: Point, frame: Frame) -> Html:
    x, y = frame.x(point[0]) / 10, frame.y(point[1]) / 10
    side = " before" if x > 75 else " after" if x < 25 else ""
    return element("span", f"best {point[1]:.3f}", class_=f"flag{side}", style=f"left:{x:.2f}%;top:{y:.2f}%")


def _describe(chart: Chart, drawn: Sequence[Series]) -> str:
    """The chart in a sentence, for those who listen to the page."""
    parts = []
    for series in drawn:
        ys = [y for _, y in series.points]
        if series.look != "faint":
            name = series.name or chart.title
            parts.append(f"{name} from {short(ys[0])} to {short(ys[-1])}, lowest {short(min(ys))}")
    return f"{chart.title} over {chart.x_name}: " + "; ".join(parts) + "."
