"""The sections a report has for each run: figures, advice, values, samples, and how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from homespun.evaluate.charts import PALETTE, smooth, value_at
from homespun.evaluate.markup import Html, element, join
from homespun.evaluate.story import Row, Story, number, points
from homespun.evaluate.words import UNKNOWN, duration, exact, plain, short

SAMPLES = 40  # steps whose samples are shown: the newest, the first, and some between
TABLE_ROWS = 40

BITS = "Bits per byte: what one byte of text costs that the model has not seen. Lower is better; 8 is knowing nothing."


def figures(story: Story) -> Html:
    """The headline figures; what was not measured is left out."""
    best = story.best
    loss = smooth(points(story.training, "loss"))
    cards = [
        ("Best bits per byte", exact(story.best_bits, 3), f"at step {best['step']:,}" if best else "no validation yet"),
        ("Before tuning", exact(story.untuned_bits, 3), "of the same held-out answers"),
        ("Perplexity", short(story.best_perplexity), "at the same step"),
        ("Training loss", exact(loss[-1][1] if loss else None, 3), "at the end, smoothed"),
        ("Steps", f"{story.steps:,}", f"{story.skipped_steps:,} skipped" if story.skipped_steps else ""),
        ("Tokens", short(story.tokens), "read in training"),
        ("Time", duration(story.seconds), ""),
        ("Tokens per second", short(story.tokens_per_second), "the median"),
        ("Parameters", short(number(story.environment, "parameters")), ""),
    ]
    shown = [
        element("div", element("dt", label), element("dd", value, element("small", note) if note else ""))
        for label, value, note in cards
        if value != UNKNOWN or label == "Best bits per byte"
    ]
    note = element("p", BITS, class_="note")
    return element("section", element("dl", *shown, class_="figures"), note, aria_label="In figures")


def advice(story: Story) -> Html:
    """What the trainer advised, with the step; nothing when it had nothing to say."""
    rows = []
    for row in story.advice:
        step = element("span", f"step {row['step']:,}", class_="step")
        rows.append(element("li", step, str(row["advice"])))
    return section("Advice", element("ul", *rows, class_="advice")) if rows else Html()


def values(story: Story) -> Html:
    """The curves as a table: for those who listen to the page, and for whoever wants the values."""
    training = points(story.training, "loss")
    rows = story.validation or [row for row in story.training if number(row, "loss") is not None]
    if not rows:
        return Html()
    names = ("validation_loss", "validation_bits_per_byte", "validation_perplexity")
    body = []
    for row in _spread(rows, TABLE_ROWS):
        cells = [f"{row['step']:,}", short(number(row, "tokens")), duration(number(row, "seconds"))]
        cells.append(exact(value_at(training, row["step"])))
        body.append(cells + [exact(number(row, name)) for name in names])
    heads = ["Step", "Tokens", "Time", "Training loss", "Validation loss", "Bits per byte", "Perplexity"]
    shown = "" if len(rows) <= TABLE_ROWS else f" ({TABLE_ROWS} of {len(rows):,} rows)"
    return element("details", element("summary", f"The values as a table{shown}"), table(heads, body))


def samples(story: Story) -> Html:
    """What the model wrote while it trained: the newest open, the older ones folded."""
    steps = list(dict.fromkeys(row["step"] for row in story.samples))
    if not steps:
        return Html()
    told = []
    for step in _spread(steps, SAMPLES):
        texts = [row for row in story.samples if row["step"] == step]
        preview = " ".join((_prompt(texts[0]) + _continuation(texts[0])).split())[:110]
        head = element("summary", element("b", f"Step {step:,}"), element("span", preview, class_="preview"))
        told.append(element("details", head, *map(_sample, texts), open=step == steps[0]))
    note = "What the model wrote, newest first."
    note += f" {SAMPLES} of {len(steps):,} are shown." if len(steps) > SAMPLES else ""
    note += " Marked text is the prompt it was given." if any(map(_prompt, story.samples)) else ""
    return section("Samples", element("p", note, class_="note"), *told, class_="samples")


def about(story: Story) -> Html:
    """The settings, the machine, and the commands that do it again."""
    parts = []
    if story.recipe:
        text = element("pre", story.recipe, tabindex=0)
        parts.append(element("details", element("summary", "Settings (recipe.yaml)"), text))
    if story.environment:
        cells = [[key.replace("_", " "), plain(value)] for key, value in story.environment.items()]
        parts.append(element("details", element("summary", "Environment"), table(["What", "Value"], cells, "words")))
    parts.append(element("details", element("summary", "Do it again"), *_again(story), open=True))
    return section("How it was made", *parts)


def section(title: str, *children: str, class_: str = "") -> Html:
    """A part of the page under its own heading."""
    return element("section", element("h2", title), *children, class_=class_ or False)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], class_: str = "") -> Html:
    """A table that scrolls by itself where the page is narrow; the first cell of a row names the row."""
    head = element("thead", element("tr", *(element("th", text, scope="col") for text in heads)))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    inside = element("table", head, element("tbody", *body), class_=class_ or False)
    return element("div", inside, class_="scroll", tabindex=0, role="group", aria_label="Table")


def swatch(index: int) -> Html:
    """The colour of the run at `index`, as a small square."""
    return element("i", class_=f"swatch s{index % PALETTE}")


def _sample(row: Row) -> Html:
    prompt = _prompt(row)
    return element("blockquote", element("mark", prompt) if prompt else "", _continuation(row))


def _prompt(row: Row) -> str:
    return str(row.get("prompt") or "")


def _continuation(row: Row) -> str:
    return str(row["text"]).removeprefix(_prompt(row))


def _again(story: Story) -> list[Html]:
    told = story.environment.get("data")
    data = shlex.join(map(str, told)) if isinstance(told, list) and told else "DATA"
    run, again = shlex.quote(str(story.path)), shlex.quote(f"{story.path}-again")
    commands = [("Let this model write", f"homespun generate {run} -p 'Once'")]
    if base := story.settings.get("tuned.base"):
        rank = story.settings.get("tuned.adapter.rank")
        lora = f" --lora {rank}" if rank else ""
        commands.insert(0, ("Tune once more", f"homespun tune {shlex.quote(str(base))} {data} --out {again}{lora}"))
    elif story.recipe:
        commands.insert(0, ("Train the same model anew", f"homespun train {data} --recipe {run} --out {again}"))
    return [join(element("p", label, class_="note"), element("pre", line, tabindex=0)) for label, line in commands]


def _spread(items: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of them, evenly spaced, with the first and the last."""
    if len(items) <= limit:
        return list(items)
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]
