"""`homespun serve`: a model for other programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homespun.cli.generate import Checkpoint, Weights
from homespun.cli.options import argument, option
from homespun.cli.retrieving import Passages, Retrieve, grounding
from homespun.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from homespun.serve.limits import Limits
    from homespun.serve.served import Runs

Host = Annotated[str, typer.Option("--host", metavar="HOST", help="Where to listen; others than loopback need a key.")]
Port = Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")]
KeyFile = Annotated[Path | None, option("--api-key-file", "FILE", "A key of 16 characters or more that all must know.")]
Names = Annotated[list[str] | None, option("--name", "HOST", "A further name of this server; may be repeated.")]
MaxRows = Annotated[int | None, option("--max-rows", "N", "Texts that a model writes at a time: 32.")]
Queue = Annotated[int | None, option("--queue", "N", "Texts that may wait: 256.")]
MaxPrompt = Annotated[int | None, option("--max-prompt-tokens", "N", "Tokens in the prompts of a request: 8192.")]
MaxTokens = Annotated[int | None, option("--max-tokens", "N", "Tokens of a text: 4096.")]
MaxTexts = Annotated[int | None, option("--max-texts", "N", "Texts of a request: 32.")]
MaxInputs = Annotated[int | None, option("--max-inputs", "N", "Texts of a request for vectors: 2048.")]
MaxInput = Annotated[int | None, option("--max-input-tokens", "N", "Tokens in the texts of such a request: 65536.")]
Timeout = Annotated[float | None, option("--timeout", "S", "Seconds for a request: 300.")]
Patience = Annotated[float | None, option("--client-timeout", "S", "Seconds for a client to send or to take: 20.")]
Grace = Annotated[float | None, option("--grace", "S", "Seconds in which texts may end after a signal: 5.")]
BodyLimit = Annotated[int | None, option("--body-limit", "BYTES", "Size of a request: 1048576.")]
Connections = Annotated[int | None, option("--connections", "N", "Open at a time: 256.")]


def serve(
    runs: Annotated[list[Path], argument("RUN...", "The folders of runs; each is a model.")],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: KeyFile = None,
    name: Names = None,
    checkpoint: Checkpoint = "last",
    weights: Weights = None,
    retrieve: Retrieve = None,
    passages: Passages = None,
    max_rows: MaxRows = None,
    queue: Queue = None,
    max_prompt_tokens: MaxPrompt = None,
    max_tokens: MaxTokens = None,
    max_texts: MaxTexts = None,
    max_inputs: MaxInputs = None,
    max_input_tokens: MaxInput = None,
    timeout: Timeout = None,
    client_timeout: Patience = None,
    grace: Grace = None,
    body_limit: BodyLimit = None,
    connections: Connections = None,
) -> None:
    """Serve models to programs and browsers, as OpenAI does.

    Only this machine can ask, unless --host and --api-key-file say otherwise. See docs/serving.md.

    Example: [bold]homespun serve runs/demo --port 8000[/bold]
    """
    with _extra():
        from homespun.serve.server import check_host, read_key
        from homespun.serve.server import serve as listen
    from homespun.serve.served import open_runs

    limits = _limits(
        {"rows": max_rows, "queue": queue, "prompt_tokens": max_prompt_tokens, "tokens": max_tokens,
         "texts": max_texts, "inputs": max_inputs, "input_tokens": max_input_tokens, "seconds": timeout,
         "patience": client_timeout, "grace": grace, "body": body_limit, "connections": connections}
    )  # fmt: skip
    key = read_key(api_key_file) if api_key_file is not None else None
    check_host(host, key)
    opened = open_runs(runs, checkpoint, weights, limits)
    _tell_notes(opened)
    _give_index(opened, retrieve, passages)

    def ready(address: str) -> None:
        _tell(address, opened, key is not None)

    code = listen(opened, host, port, limits, key, name or (), ready, lambda sentence: typer.echo(sentence, err=True))
    raise typer.Exit(code)


OPTIONS = {"rows": "max-rows", "prompt_tokens": "max-prompt-tokens", "tokens": "max-tokens", "texts": "max-texts",
           "inputs": "max-inputs", "input_tokens": "max-input-tokens", "seconds": "timeout",
           "patience": "client-timeout", "body": "body-limit"}  # fmt: skip
"""How the limits are called on the command line, where that differs."""


@contextmanager
def _extra() -> Iterator[None]:
    """Says what has to be installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("starlette", "uvicorn", "anyio", "h11"):
            raise MissingExtraError("homespun serve", error.name, "serve") from None
        raise


def _limits(given: dict[str, Any]) -> Limits:
    """The limits, where they are not the usual ones. One that is impossible is named as it was written."""
    from homespun import config
    from homespun.serve.limits import Limits

    try:
        return config.parse(Limits, {name: value for name, value in given.items() if value is not None}, "the limits")
    except ConfigError as error:
        name = error.problem.split()[0]
        option = f"--{OPTIONS.get(name, name)}"
        raise ConfigError(error.problem.replace(name, option, 1), f"Change {option} and try again.") from None


def _give_index(runs: Runs, retrieve: str | None, passages: int | None) -> None:
    from homespun.serve.retrieving import ServedMeaning

    for served in runs.models.values():
        assert served.run is not None
        served.grounding = grounding(retrieve, passages, served.run, ServedMeaning(served))


def _tell_notes(runs: Runs) -> None:
    for served in runs.all.values():
        for note in served.run.notes if served.run is not None else ():
            typer.echo(f"note: {note}", err=True)
        if served.run is None:
            typer.echo(f"note: {served.folder} has no checkpoint yet, so its training can only be watched", err=True)


def _tell(address: str, runs: Runs, keyed: bool) -> None:
    """Where the server is, what it has, and how to ask it."""
    typer.echo(f"Listening at {address}")
    for name, served in runs.models.items():
        assert served.run is not None
        typer.echo(f"Model: {name}, step {served.run.step:,}, {served.folder}")
    if runs.models:
        body = json.dumps({"model": next(iter(runs.models)), "prompt": "Once", "max_tokens": 50}, ensure_ascii=False)
        secret = " -H 'Authorization: Bearer KEY'" if keyed else ""
        typer.echo(
            f"Try: curl {address}/v1/completions{secret} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
        )
    typer.echo("Ctrl-C stops it.")
