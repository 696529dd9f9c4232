"""`homespun generate`: text from a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from homespun.cli import options, show
from homespun.cli.options import argument, option
from homespun.cli.retrieving import Passages, Retrieve, grounding, retrieved, tell_sources
from homespun.cli.sampling import sampled
from homespun.errors import ConfigError, DataError

if TYPE_CHECKING:
    from homespun.generate.speculative import Report
    from homespun.retrieve.prompt import Grounded, Grounding
    from homespun.run import Run


Prompts = Annotated[list[str] | None, option("--prompt -p", "TEXT", "May be repeated; - reads standard input.")]
PromptFile = Annotated[Path | None, option("--file", "FILE", "Prompts, one per line.")]
Number = Annotated[int, typer.Option("-n", metavar="N", min=1, help="How many texts for each prompt.")]
Checkpoint = Annotated[str, typer.Option("--checkpoint", metavar="WHICH", help="last, best, or a step.")]
Weights = Annotated[
    Literal["fp32", "bf16", "int8", "int4"] | None,
    typer.Option("--weights", help="How matrices are kept while writing; fewer bits are faster and less exact."),
]
Draft = Annotated[str | None, option("--draft", "RUN|lookup", "A smaller run, or the text itself, proposes tokens.")]
Stream = Annotated[bool, option("--stream", None, "Show the text while it is written.")]


@sampled()
def generate(
    run: Annotated[Path, argument("RUN", "The folder of a run.")],
    prompt: Prompts = None,
    file: PromptFile = None,
    *,
    settings: dict[str, Any],
    number: Number = 1,
    checkpoint: Checkpoint = "last",
    weights: Weights = None,
    draft: Draft = None,
    retrieve: Retrieve = None,
    passages: Passages = None,
    stream: Stream = False,
    json: options.AsJson = False,
) -> None:
    """Write text with a trained model.

    Example: [bold]homespun generate runs/demo -p "Once upon a time" --temperature 0.7 --seed 1[/bold]
    """
    prompts = _prompts(prompt, file)
    if stream and (json or number > 1 or len(prompts) > 1):
        raise ConfigError("--stream shows one text", "Leave out --json and -n, and give one prompt.")
    from homespun.run import load

    loaded = load(run, checkpoint, weights, draft)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    asked = _grounded(loaded, prompts, grounding(retrieve, passages, loaded), settings)
    if stream:
        _stream(loaded, *asked[0], settings)
    else:
        _write(loaded, asked, number, settings, json)
    if draft is not None:
        _tell_gain(loaded.generator.report)


def _tell_gain(report: Report) -> None:
    typer.echo(
        f"draft: {report.acceptance:.0%} of {report.proposed} proposed tokens accepted, "
        f"{report.tokens_per_step:.2f} tokens per step",
        err=True,
    )


Asked = tuple[str, "Grounded[str]"]  # a prompt as it was given, and as it is read


def _grounded(run: Run, prompts: list[str], found: Grounding | None, settings: dict[str, Any]) -> list[Asked]:
    from homespun.retrieve.prompt import Grounded

    if found is None:
        return [(prompt, Grounded(prompt)) for prompt in prompts]
    most = settings.get("max_tokens", run.sampling.max_tokens)
    return [(prompt, found.prompt(prompt, run.generator, most)) for prompt in prompts]


def _stream(run: Run, prompt: str, grounded: Grounded[str], settings: dict[str, Any]) -> None:
    pieces = run.stream(grounded.prompt, **settings)  # a mistake is told before anything is shown
    show.write(prompt, end="")
    for piece in pieces:
        show.write(piece, end="")
    show.write("")
    tell_sources(grounded)


def _write(run: Run, asked: list[Asked], number: int, settings: dict[str, Any], json: bool) -> None:
    given = {grounded.prompt: (prompt, grounded) for prompt, grounded in asked}
    records = run.records([grounded.prompt for _, grounded in asked], count=number, **settings)
    for index, record in enumerate(records):
        prompt, grounded = given[record.prompt]
        if json:
            show.as_json(record.to_dict() | {"prompt": prompt} | retrieved(grounded), indent=None)
            continue
        if len(records) > 1:
            typer.secho(f"--- {index + 1} of {len(records)}", dim=True)
        show.write(prompt + record.text)
        tell_sources(grounded)


def _prompts(given: list[str] | None, file: Path | None) -> list[str]:
    """The prompts in their order: an empty one when none is given, so that the model starts a document of its own."""
    prompts = [standard_input() if prompt == "-" else prompt for prompt in given or ()]
    if file is not None:
        prompts += lines_of(file)
        if not prompts:
            raise DataError(f"{file} holds no prompt", "Write one on each line.")
    return prompts or [""]


def lines_of(file: Path) -> list[str]:
    """The lines of a file that are not blank. Raises `DataError` where it cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}", "Give UTF-8 text, one on each line.") from None
    return [line.rstrip("\r") for line in lines if line.strip()]


def standard_input() -> str:
    """All of it, as text. Raises `DataError` where it is none."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 text: {error}", "Convert it first.") from None
