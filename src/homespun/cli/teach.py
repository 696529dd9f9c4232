"""`homespun teach`: a trained model learns a text, or answers, at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homespun.cli import options, show
from homespun.cli.generate import Checkpoint
from homespun.errors import ConfigError, DataError

if TYPE_CHECKING:
    from homespun.learn.keep import Saved

Texts = Annotated[list[str] | None, options.option("--text", "TEXT", "A text to learn. May be repeated.")]
Replay = Annotated[
    list[str] | None, options.option("--replay", "FILE", "Text to hold on to; the run's own if not given.")
]
Undo = Annotated[bool, options.option("--undo", None, "Take the last lesson back.")]


def teach(
    run: Annotated[Path, options.argument("RUN", "The folder of a run.")],
    pairs: Annotated[
        list[str] | None, options.argument("[QUESTION ANSWER...]", "Questions, each with its answer. And settings.")
    ] = None,
    text: Texts = None,
    file: Annotated[
        list[Path] | None, options.option("--file", "FILE", "Pairs (.jsonl), or a text. May be repeated.")
    ] = None,
    out: Annotated[
        Path | None, options.option("--out -o", "RUN", "A new run; the next checkpoint of RUN if not given.")
    ] = None,
    replay: Replay = None,
    undo: Undo = False,
    checkpoint: Checkpoint = "last",
    json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Teach a trained model by hand: answers, or a text.

    What it could do before is repeated beside the lesson, and measured. Settings are of the lesson: teach.passes=20.

    Example: [bold]homespun teach runs/mine "What is 2+2?" "The answer is 4."[/bold]
    """
    words, settings = _split(pairs)
    if undo:
        if words or settings or text or file or out or replay or checkpoint != "last":
            raise ConfigError("--undo teaches nothing, and takes nothing but the run", "Leave the rest out.")
        _undo(run, json)
        return
    lessons = [*_pairs(words), *({"text": each} for each in text or ()), *_rows(file or ())]
    if not lessons:
        raise DataError("There is no lesson", "Give a question and its answer, --text TEXT, or --file FILE.")
    from homespun import run as runs
    from homespun.config import override
    from homespun.learn import keep
    from homespun.learn.teach import Teaching
    from homespun.train.log import open_console

    chosen = override(Teaching(), [each.removeprefix("teach.") for each in settings])
    loaded = runs.load(run, checkpoint)
    console = open_console(quiet, stderr=json)
    saved = keep.teach(loaded, lessons, out, replay=replay, settings=chosen, console=console)
    if json:
        facts = asdict(saved.taught) | {"drift": saved.taught.drift}
        show.as_json({"folder": str(saved.folder), "step": saved.step, **facts})
        return
    _tell(saved, run)


def _split(given: list[str] | None) -> tuple[list[str], list[str]]:
    """Words and settings: only `teach.` begins a setting here, since a question may hold anything."""
    found: tuple[list[str], list[str]] = ([], [])
    for word in given or ():
        key = word.partition("=")[0]
        found[key.startswith("teach.") and key.replace(".", "").replace("_", "").isalpha()].append(word)
    return found


def _pairs(words: list[str]) -> list[dict[str, Any]]:
    if len(words) % 2:
        raise DataError(f"{words[-1]!r:.60} has no answer", "Write each question with its answer, both in quotes.")
    return [{"prompt": question, "completion": answer} for question, answer in zip(*[iter(words)] * 2, strict=True)]


def _rows(files: list[Path] | tuple[()]) -> Iterator[dict[str, Any]]:
    """The rows of JSON lines; any other file is one text."""
    from homespun.data.formats import Meter, json_rows, opened, suffixes

    for path in files:
        with opened(path, str(path), Meter()) as blocks:
            if suffixes(path)[0] != ".jsonl":
                yield {"text": "".join(blocks)}
                continue
            for place, row in json_rows(blocks, str(path)):
                if not isinstance(row, dict):
                    raise DataError(f"{place} is no row", 'Write {"prompt": "...", "completion": "..."}.')
                yield row


def _undo(run: Path, json: bool) -> None:
    from homespun import run as runs
    from homespun.learn import keep

    runs.load(run)  # says what is wrong with a folder that is no run
    step, before = keep.undo(run)
    if json:
        show.as_json({"folder": str(run), "undone": step, "step": before})
    else:
        typer.echo(f"Step {step} is undone: {run} is at step {before} again.")


def _tell(saved: Saved, run: Path) -> None:
    taught = saved.taught
    typer.echo(
        f"{taught.steps} updates: the lesson's loss fell from {taught.loss_before:.3f} to {taught.loss_after:.3f}; "
        f"{taught.known} of {taught.lessons} are known for certain."
    )
    if taught.replaced:
        typer.echo(f"Of two answers to one question the later one is learnt; {taught.replaced} given before will fade.")
    if taught.drift is not None:
        typer.echo(
            f"Text it has not seen: {taught.held_out_before:.4f} bits per byte before, {taught.held_out_after:.4f} "
            f"after ({taught.drift:+.1%})."
        )
    typer.echo(f"Run: {saved.folder}, step {saved.step}")
    next_ones = {show.command("chat", saved.folder): "ask it"}
    if saved.folder == run:
        next_ones[show.command("teach", run, "--undo")] = "take the lesson back"
    show.next_commands(next_ones)
