"""The command `homespun`: its verbs, and what happens when one fails."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from homespun import __version__
from homespun.cli import (
    bench,
    chat,
    demo,
    embed,
    evaluate,
    export,
    generate,
    import_,
    index,
    info,
    learn,
    plan,
    prepare,
    report,
    serve,
    teach,
    train,
    tune,
)
from homespun.errors import HomespunError

app = typer.Typer(
    name="homespun",
    help="Trains small language models from scratch on your own text.",
    epilog="Start with: homespun demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Train": {
        "demo": demo.demo,
        "train": train.train,
        "tune": tune.tune,
        "teach": teach.teach,
        "learn": learn.learn,
        "plan": plan.plan,
        "prepare": prepare.prepare,
    },
    "Use": {
        "generate": generate.generate,
        "chat": chat.chat,
        "embed": embed.embed,
        "index": index.index,
        "serve": serve.serve,
        "export": export.export,
        "import": import_.import_,
    },
    "Look": {"evaluate": evaluate.evaluate, "info": info.info, "report": report.report, "bench": bench.bench},
}
for _panel, _verbs in _PANELS.items():
    for _name, _verb in _verbs.items():
        app.command(_name, rich_help_panel=_panel)(_verb)

VERBS = tuple(name for verbs in _PANELS.values() for name in verbs)
"""The verbs that exist."""


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"homespun {__version__}, Python {platform.python_version()}")
        raise typer.Exit()


@app.callback()
def _homespun(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error, with any verb.")] = False,
) -> None:
    pass  # both options are dealt with before any verb runs


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0 done, 1 a fault of Homespun, 2 a mistake a user can mend, 130 Ctrl-C.

    Ctrl-C, closed pipes and unknown verbs or options are dealt with by typer, in the same way.
    """
    given, debug = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    try:
        app(args=given, prog_name="homespun", obj=given)
    except HomespunError as error:
        if debug:
            raise
        _say(error.problem, error.hint)
        code = 2
    except Exception as error:
        if debug:
            raise
        _say(*_unexpected(error))
        code = 1
    else:
        code = 0
    sys.exit(code)


def _take_debug(given: list[str]) -> tuple[list[str], bool]:
    """Takes `--debug` out wherever it stands before a lone `--`, so that it works before and after the verb."""
    end = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:end] or bool(os.environ.get("HOMESPUN_DEBUG"))
    return [word for word in given[:end] if word != "--debug"] + given[end:], debug


def _unexpected(error: Exception) -> tuple[str, str]:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"The system says: {error.strerror}{where}", "Run it again with --debug to see where."
    if isinstance(error, MemoryError):
        return "There is not enough memory", "Try a smaller model, or a smaller train.micro_batch."
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"A fault inside Homespun: {type(error).__name__}: {first}", "Run it again with --debug to see where."


def _say(problem: str, hint: str) -> None:
    typer.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(f"{problem.rstrip('.')}. {hint}", err=True)
