"""The report: one self-contained HTML page that tells how a run went, or how several compare.

It opens without a network: styles, drawings and the few lines of script are in the page, and its own policy forbids it
to load anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from homespun.errors import DataError
from homespun.evaluate.curves import compared_curves, curves
from homespun.evaluate.experts import experts
from homespun.evaluate.markup import Html, element, join
from homespun.evaluate.parts import parts
from homespun.evaluate.sections import BITS, about, advice, figures, samples, section, swatch, table, values
from homespun.evaluate.story import Story, number
from homespun.evaluate.words import UNKNOWN, counted, duration, exact, plain, short
from homespun.train.disk import replace


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page about one run, or a comparison of several, and returns where it lies.

    Without `out` that is `RUN/report.html` for one run and `comparison.html` beside the first of several; a folder
    as `out` gets `report.html`. Raises `CheckpointError` for what is no run, `DataError` when it cannot be written.
    """
    if not runs:
        raise DataError("No run to report on", "Give the folder of a run, for example runs/NAME.")
    stories = [Story.read(Path(run)) for run in runs]
    if out is None:
        out = stories[0].path / "report.html" if len(stories) == 1 else stories[0].path.parent / "comparison.html"
    elif out.is_dir():
        out = out / "report.html"
    page = _one(stories[0]) if len(stories) == 1 else _several(stories)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace(out, page.encode("utf-8", errors="replace"))  # half a character in a sample is no reason to fail
    except OSError as error:
        raise DataError(f"The report cannot be written to {out}: {error.strerror}", "Choose another place.") from None
    return out


def _one(story: Story) -> Html:
    name = _names([story])[0]
    body = join(
        _header(name, "Training report", _summary(story)),
        figures(story),
        advice(story),
        section("Curves", *curves(story), class_="curves"),
        parts(story),
        experts(story),
        values(story),
        samples(story),
        about(story),
    )
    return _page(f"{name}: training report", body)


def _several(stories: Sequence[Story]) -> Html:
    names = _names(stories)
    told = []
    for index, (name, story) in enumerate(zip(names, stories, strict=True)):
        parts = (advice(story), values(story), samples(story), about(story))
        told.append(element("details", element("summary", swatch(index), name), *parts, class_="run"))
    body = join(
        _header(f"{len(stories)} runs compared", "Comparison", _verdict(names, stories)),
        section("At a glance", _compared(names, stories), element("p", BITS, class_="note")),
        section("Curves", compared_curves(names, stories)),
        _differences(names, stories),
        section("The runs", *told),
    )
    return _page(" · ".join(names), body)


def _page(title: str, body: Html) -> Html:
    files = resources.files(__package__)
    style, script = (files.joinpath(name).read_text("utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=f"{allowed}; script-src 'sha256-{digest}'"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    )
    footer = element("footer", "Written by Homespun from metrics.jsonl. This page loads nothing from anywhere.")
    content = element("body", element("main", body), footer, element("script", Html(script)))
    return Html("<!doctype html>\n" + element("html", head, content, lang="en") + "\n")


def _header(title: str, kind: str, summary: str) -> Html:
    above = element("p", f"Homespun · {kind}", class_="kind")
    return element("header", above, element("h1", title), element("p", summary, class_="summary"))


def _summary(story: Story) -> str:
    if not story.training and not story.validation:
        return "Nothing has been measured yet: the run has not reached its first report."
    effort = counted(story.steps, "step")
    effort += f", {short(story.tokens)} tokens" if story.tokens else ""
    effort += f", {duration(story.seconds)}" if story.seconds else ""
    device, processor = (story.environment.get(key) for key in ("device", "cpu"))
    place = plain((processor if device == "cpu" else device) or device or processor or "")
    recipe = story.settings.get("name") if story.recipe else None
    made = "Trained" + (f" with the recipe {recipe}" if recipe else "") + (f" on {place}" if place else "")
    return f"{made}: {effort}."


def _verdict(names: Sequence[str], stories: Sequence[Story]) -> str:
    ranked = sorted((story.best_bits, name) for name, story in zip(names, stories, strict=True) if story.best_bits)
    if not ranked:
        return "No run was validated yet."
    return f"{ranked[0][1]} reached the fewest bits per byte: {exact(ranked[0][0], 3)}."


def _compared(names: Sequence[str], stories: Sequence[Story]) -> Html:
    heads = ["Run", "Best bits per byte", "Perplexity", "At step", "Steps", "Tokens", "Time", "Tokens/s", "Parameters"]
    lowest = min((story.best_bits for story in stories if story.best_bits is not None), default=None)
    badge = element("span", "best", class_="badge")
    rows: list[list[str]] = []
    for index, (name, story) in enumerate(zip(names, stories, strict=True)):
        bits, wins = exact(story.best_bits), story.best_bits is not None and story.best_bits == lowest
        rows.append(
            [
                join(swatch(index), name),
                element("strong", bits, " ", badge) if wins else bits,
                short(story.best_perplexity),
                f"{story.best['step']:,}" if story.best else UNKNOWN,
                f"{story.steps:,}",
                short(story.tokens),
                duration(story.seconds),
                short(story.tokens_per_second),
                short(number(story.environment, "parameters")),
            ]
        )
    return table(heads, rows)


def _differences(names: Sequence[str], stories: Sequence[Story]) -> Html:
    """The settings in which the runs differ: what the comparison is about."""
    settings = [{key: plain(value) for key, value in story.settings.items()} for story in stories]
    keys = dict.fromkeys(key for each in settings for key in each)
    differing = [key for key in keys if len({each.get(key, UNKNOWN) for each in settings}) > 1]
    if not differing:
        return section("Settings that differ", element("p", "The recipes are equal.", class_="note"))
    rows = [[element("code", key), *(each.get(key, UNKNOWN) for each in settings)] for key in differing]
    return section("Settings that differ", table(["Setting", *names], rows))


def _names(stories: Sequence[Story]) -> list[str]:
    """The runs' folder names, with the folder above where two are equal."""
    paths = [story.path.resolve() for story in stories]
    last = [path.name for path in paths]
    return [f"{path.parent.name}/{path.name}" if last.count(path.name) > 1 else path.name for path in paths]
