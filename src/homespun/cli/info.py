"""`homespun info`: recipes and machine, or the story of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from homespun.cli import options, show


def info(
    run: Annotated[Path | None, options.argument("[RUN]", "The folder of a run.")] = None,
    json: options.AsJson = False,
) -> None:
    """List the recipes and what this machine offers; with RUN, tell the story of that run."""
    if run is None:
        _house(json)
    else:
        _story(run, json)


def _house(json: bool) -> None:
    from homespun.run import DEFAULT_RECIPE, recipe, recipes
    from homespun.train.log import short
    from homespun.train.machine import environment

    chosen = [recipe(name) for name in recipes()]
    if json:
        sizes = {one.name: _parameters(one) for one in chosen}
        show.as_json({"recipes": sizes, "default": DEFAULT_RECIPE, "environment": environment()})
        return
    columns = ("recipe", "parameters", "width", "layers", "context", "attention", "feed-forward", "optimizer")
    rows = []
    for one in chosen:
        m = one.model
        name = one.name + (" (default)" if one.name == DEFAULT_RECIPE else "")
        kinds = (m.attention.kind, m.feed_forward.kind, one.optimizer.kind)
        rows.append((name, short(_parameters(one)), m.width, m.layers, m.context, *kinds))
    show.table("Recipes (parameters without the vocabulary, where the text decides it)", rows, columns)
    show.table("This machine", _pairs(environment()))


def _parameters(recipe: Any) -> int:
    """Parameters of the recipe's model; where its vocabulary waits for a text, of all but the embedding."""
    from homespun.config import override
    from homespun.model.cost import cost

    if recipe.model.vocab is not None:
        return cost(recipe.model).parameters
    found = cost(override(recipe.model, ["vocab=64"]))
    return found.parameters - found.embedding - (0 if recipe.model.tie_embeddings else 64 * recipe.model.width)


def _story(folder: Path, json: bool) -> None:
    from homespun.run import load
    from homespun.train.log import short

    run = load(folder)
    summary = run.summary()
    if json:
        show.as_json(summary | {"notes": run.notes})
        return
    rows = [
        ("recipe", summary["recipe"]),
        ("parameters", short(summary["parameters"])),
        ("vocabulary", f"{summary['vocabulary']:,} tokens"),
        ("checkpoint", f"step {summary['step']}"),
        *_progress(summary),
        *(("note", note) for note in run.notes),
        *(("advice", said) for said in summary["advice"]),
    ]
    show.table(str(folder), rows)
    show.table("Trained on", _pairs(summary["environment"]))
    show.next_commands({show.command("generate", folder, "-p", "Once"): "let it write"})


def _progress(summary: dict[str, Any]) -> list[tuple[str, str]]:
    from homespun.train.estimate import human_time
    from homespun.train.log import short

    last, validation, best = summary["last"], summary["validation"], summary["best"]
    rows = []
    if last:
        rows.append(("tokens", short(last["tokens"])))
        rows.append(("time", human_time(last["seconds"])))
        rows.append(("training loss", f"{show.figure(last['loss'])} nats per token"))
    for name, row in (("validation", validation), ("best", best)):
        if row:
            bits, loss = show.figure(row.get("validation_bits_per_byte")), show.figure(row.get("validation_loss"))
            rows.append((name, f"{bits} bits per byte, {loss} nats per token, at step {row['step']}"))
    return rows


def _pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), str(value)) for name, value in values.items() if value is not None]
