"""`homespun chat`: talk with a trained model."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homespun.cli import show
from homespun.cli.generate import Checkpoint, Weights
from homespun.cli.options import argument, option
from homespun.cli.retrieving import Passages, Retrieve, grounding
from homespun.cli.sampling import sampled
from homespun.errors import ConfigError, DataError, HomespunError

if TYPE_CHECKING:
    from homespun.generate.dialogue import Dialogue, Messages
    from homespun.retrieve.prompt import Grounded, Grounding

System = Annotated[str | None, option("--system", "TEXT", "What the model is told before the conversation.")]
Load = Annotated[Path | None, option("--load", "FILE", "Go on with a conversation that /save wrote.")]

BASE = (
    "this model was not trained to answer, as far as its run tells: it goes on with the text. "
    "To teach it: homespun tune (docs/tuning.md)."
)


SETTINGS = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
            "frequency_penalty", "presence_penalty", "stop", "seed")  # fmt: skip
"""Those of `Sampling` that steer an answer."""


@sampled(*SETTINGS)
def chat(
    run: Annotated[Path, argument("RUN", "The folder of a run.")],
    system: System = None,
    load: Load = None,
    *,
    settings: dict[str, Any],
    checkpoint: Checkpoint = "last",
    weights: Weights = None,
    retrieve: Retrieve = None,
    passages: Passages = None,
) -> None:
    """Talk with a trained model; /help tells what can be changed on the way.

    Through a pipe each line is a question, and only the answers are printed.

    Example: [bold]homespun chat runs/mine --system "Answer briefly." --temperature 0.7[/bold]
    """
    from homespun import config
    from homespun import run as runs
    from homespun.generate.dialogue import Dialogue
    from homespun.generate.sampling import Sampling
    from homespun.generate.template import template_of

    loaded = runs.load(run, checkpoint, weights)
    sampling = config.parse(Sampling, config.to_dict(loaded.sampling) | settings, "the sampling settings")
    template = template_of(loaded)
    dialogue = Dialogue(loaded.generator, template, sampling, system)
    if load is not None:
        dialogue.load(load)
        dialogue.system = system if system is not None else dialogue.system
    for note in loaded.notes:
        _note(note)
    if not template.conversational:
        _note(BASE)
    Session(dialogue, grounding(retrieve, passages, loaded)).run()


class Session:
    """What is typed, and what comes of it. Answers go to standard output, everything else to standard error."""

    def __init__(self, dialogue: Dialogue, grounding: Grounding | None = None):
        self.dialogue = dialogue
        self.grounding = grounding
        self.grounded: Grounded[Messages] | None = None  # the last question
        if grounding is not None:
            dialogue.look_up = self._look_up
        self.ended = False
        self._dropped = 0  # turns, of which was told
        self.commands: dict[str, Callable[[str], None]] = {
            name.removeprefix("_do_"): method for name, method in inspect.getmembers(self) if name.startswith("_do_")
        }
        self.settings = {name.replace("_", "-"): name for name in _numbers()}

    def run(self) -> None:
        """Reads lines until /quit, Ctrl-D or the end of a pipe."""
        person = sys.stdin.isatty()
        if person:
            with suppress(ImportError):  # Windows has none; its terminal edits lines itself
                import readline  # noqa: F401 - input() uses it
            _say("Type to talk. /help lists the commands, Ctrl-D ends.")
        while not self.ended:
            try:
                self._take(_line(person))
            except EOFError:
                if person:
                    _say("")
                return
            except KeyboardInterrupt:
                if not person:
                    raise
                _say("\nType /quit or press Ctrl-D to end.")
            except HomespunError as error:
                if not person:
                    raise
                _say(f"{error.problem.rstrip('.')}. {error.hint}", fg="red")

    def _take(self, line: str) -> None:
        if not line.startswith("/"):
            if line.strip():
                self._answer(self.dialogue.reply(line))
            return
        name, rest = [*line[1:].split(maxsplit=1), "", ""][:2]
        if name in self.settings:
            self._set(self.settings[name], rest.strip())
        elif name in self.commands:
            self.commands[name](rest.strip())
        else:
            from homespun.config import nearest

            known = nearest(f"/{name}", [f"/{other}" for other in (*self.commands, *self.settings)])
            raise ConfigError(f"There is no command /{name}", f"{known} A text may start with a space instead.")

    def _answer(self, pieces: Iterator[str]) -> None:
        """Writes a reply; Ctrl-C ends it, and what was written stays."""
        if (dropped := self.dialogue.dropped) > self._dropped:
            one = "1 earlier turn no longer fits and was left out"
            _note(one if dropped == 1 else f"{dropped} earlier turns no longer fit and were left out")
        self._dropped = dropped
        stopped = False
        try:
            for piece in pieces:
                show.write(piece, end="")
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            stopped = True
        finally:
            show.write("")
        if stopped:
            _say("Stopped. /retry answers again.")
        self._tell_sources()

    def _look_up(self, messages: Messages, fits: Callable[[Messages], bool]) -> Messages:
        assert self.grounding is not None
        self.grounded = self.grounding.messages(messages, fits)
        return self.grounded.prompt

    def _tell_sources(self) -> None:
        if self.grounded is None:
            return
        if self.grounded.passages:
            _say(f"sources: {', '.join(passage.cited for passage in self.grounded.passages)}", dim=True)
        if self.grounded.note is not None:
            _note(self.grounded.note)

    def _set(self, name: str, text: str) -> None:
        from homespun import config

        if text:
            value = "null" if text in ("none", "off") else text
            self.dialogue.sampling = config.override(self.dialogue.sampling, [f"{name}={value}"], "the settings")
        _say(f"{name.replace('_', '-')} {_shown(getattr(self.dialogue.sampling, name))}")

    def _do_help(self, _: str) -> None:
        """this list"""
        for name, method in self.commands.items():
            _say(f"  /{name:<20} {inspect.getdoc(method)}")
        for name in self.settings:
            _say(f"  /{name + ' X':<20} {_shown(getattr(self.dialogue.sampling, self.settings[name]))} now")
        _say("  A backslash at the end of a line goes on in the next. Ctrl-C stops an answer, Ctrl-D ends.")

    def _do_settings(self, _: str) -> None:
        """how the answers are written"""
        for name, field in self.settings.items():
            _say(f"  {name:<20} {_shown(getattr(self.dialogue.sampling, field))}")
        _say(f"  {'system':<20} {_shown(self.dialogue.system)}")

    def _do_system(self, text: str) -> None:
        """TEXT: what the model is told before the conversation; without TEXT nothing"""
        self.dialogue.system = text or None
        _say("The system prompt is set." if text else "There is no system prompt.")

    def _do_retry(self, _: str) -> None:
        """another answer to the last question"""
        self._answer(self.dialogue.retry())

    def _do_undo(self, _: str) -> None:
        """takes the last question and its answer back"""
        self.dialogue.undo()
        _say(f"Taken back. Left: {_turns(self.dialogue)}.")

    def _do_clear(self, _: str) -> None:
        """forgets the conversation; the system prompt stays"""
        self.dialogue.clear()
        _say("The conversation is forgotten.")

    def _do_save(self, text: str) -> None:
        """FILE: writes the conversation"""
        place = _file(text)
        self.dialogue.save(place)
        _say(f"Saved in {place}: {_turns(self.dialogue)}.")

    def _do_load(self, text: str) -> None:
        """FILE: goes on with one that was saved"""
        self.dialogue.load(_file(text))
        _say(f"Loaded: {_turns(self.dialogue)}.")

    def _do_quit(self, _: str) -> None:
        """ends, as Ctrl-D does"""
        self.ended = True


def _numbers() -> list[str]:
    """The settings that are numbers, which a command can change."""
    from homespun.generate.sampling import Sampling

    fields = Sampling.model_json_schema()["properties"]
    kinds = {name: {kind.get("type") for kind in fields[name].get("anyOf", [fields[name]])} for name in SETTINGS}
    return [name for name, found in kinds.items() if found & {"number", "integer"}]


def _line(person: bool) -> str:
    """What is typed, over several lines where they end in a backslash. Raises `EOFError` at the end."""
    lines: list[str] = []
    while True:
        mark = (". " if lines else "> ") if person and sys.stdout.isatty() else ""
        try:
            line = input(_coloured(mark)).rstrip("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"What was typed is no UTF-8 text: {error}", "Convert it first.") from None
        except EOFError:
            if not lines:
                raise
            return "\n".join(lines)
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _coloured(mark: str) -> str:
    """The mark in colour, so that readline knows how wide it is."""
    if not mark or _colourless() or "readline" not in sys.modules:
        return mark
    before, after = typer.style(mark, fg="green", bold=True).split(mark)
    return f"\001{before}\002{mark}\001{after}\002"


def _colourless() -> bool:
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def _say(text: str, **style: Any) -> None:
    from homespun.train.log import visible  # a conversation that was loaded may hold anything

    typer.secho(visible(text), err=True, color=False if _colourless() else None, **style)


def _note(text: str) -> None:
    _say(f"note: {text}", dim=True)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _turns(dialogue: Dialogue) -> str:
    return f"{dialogue.turns} turn{'s' * (dialogue.turns != 1)}"


def _file(text: str) -> Path:
    if not text:
        raise ConfigError("A file has to be named", "Write for example: /save talk.json")
    return Path(text).expanduser()
