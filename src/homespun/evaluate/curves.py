"""Which curves a report shows: of one run, and of several laid over each other."""

from __future__ import annotations

from collections.abc import Sequence

from homespun.evaluate.charts import Chart, Point, Series, draw, smooth, thin
from homespun.evaluate.markup import Html, element, join
from homespun.evaluate.story import Story, number, points

_CLOCKS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def curves(story: Story) -> list[Html]:
    """The charts of one run over its steps: loss, bits per byte, learning rate, gradient norm, tokens per second."""
    training, validation = points(story.training, "loss"), points(story.validation, "validation_loss")
    best = story.best
    loss = Chart(
        title="Loss, nats per token",
        x_name="steps",
        series=[
            Series("training", thin(training), 0, "faint"),
            Series("training, smoothed", thin(smooth(training), 600), 0),
            Series("validation", thin(validation, 600), 1, "dots"),
        ],
        best=_mark((best["step"], number(best, "validation_loss")) if best else None, 1),
        skipped=[x for x, _ in thin(story.skipped, 200)],
        wide=True,
    )
    bits = points(story.validation, "validation_bits_per_byte")
    mark = _mark((best["step"], number(best, "validation_bits_per_byte")) if best else None, 1)
    small = [
        Chart("Validation, bits per byte", "steps", [Series("", thin(bits, 600), 1, "dots")], best=mark),
        _of_steps(story, "Learning rate", "learning_rate"),
        _of_steps(story, "Gradient norm", "gradient_norm", smoothed=True),
        _of_steps(story, "Tokens per second", "tokens_per_second", smoothed=True),
        _of_steps(story, "Contrastive loss, nats per pair", "contrastive", smoothed=True),
        _of_steps(story, "Spread of the embeddings, 1 is even", "spread", smoothed=True),
    ]
    return [draw(loss), *(draw(chart) for chart in small if chart.series[0].points)]


def compared_curves(names: Sequence[str], stories: Sequence[Story]) -> Html:
    """Loss and bits per byte of several runs, over tokens, time or steps: the reader switches without a script."""
    seconds = max((story.seconds or 0.0 for story in stories), default=0.0)
    unit, clock = next(((size, name) for size, name in _CLOCKS if seconds >= 2 * size), (1.0, "seconds"))
    axes = [("Tokens", "tokens", 1.0, "tokens"), ("Time", "seconds", unit, clock), ("Steps", "step", 1.0, "steps")]
    switch: list[Html] = []
    plots: list[Html] = []
    for title, key, size, x_name in axes:
        charts = [_overlay(kind, names, stories, key, size, x_name) for kind in ("bits", "loss")]
        if not any(series.points for chart in charts for series in chart.series):
            continue
        identity = f"over-{key}"
        switch.append(element("input", type="radio", name="axis", id=identity, checked=not plots))
        switch.append(element("label", title, for_=identity))
        plots.append(element("div", *map(draw, charts), class_=f"axis {identity}"))
    if not plots:
        return element("p", "Nothing measured yet.", class_="empty")
    return element("div", *switch, join(*plots), class_="switch")


def _overlay(kind: str, names: Sequence[str], stories: Sequence[Story], x: str, unit: float, x_name: str) -> Chart:
    series = []
    best: list[tuple[Point, int]] = []
    column = {"bits": "validation_bits_per_byte", "loss": "validation_loss"}[kind]
    for index, (name, story) in enumerate(zip(names, stories, strict=True)):
        if kind == "loss":
            series.append(Series(name, thin(smooth(points(story.training, "loss", x, unit)), 600), index))
        else:
            series.append(Series(name, thin(points(story.validation, column, x, unit), 600), index, "dots"))
            if story.best and (at := number(story.best, x)) is not None:
                best += _mark((at / unit, number(story.best, column)), index)
    title = {"bits": "Validation, bits per byte", "loss": "Training loss, nats per token (smoothed)"}[kind]
    note = (
        "Losses per token compare only runs of the same tokenizer; bits per byte compare all." if kind == "loss" else ""
    )
    return Chart(title, x_name, series, best=best, note=note, wide=True)


def _of_steps(story: Story, title: str, column: str, smoothed: bool = False) -> Chart:
    raw = points(story.training, column)
    if not smoothed:
        return Chart(title, "steps", [Series("", thin(raw, 600))], from_zero=True)
    lines = [Series("measured", thin(raw, 800), 0, "faint"), Series("smoothed", thin(smooth(raw), 400), 0)]
    return Chart(title, "steps", lines, from_zero=True)


def _mark(point: tuple[float, float | None] | None, colour: int) -> list[tuple[Point, int]]:
    return [((point[0], point[1]), colour)] if point is not None and point[1] is not None else []
