"""`homespun chat`: through a pipe, by commands, and on a terminal where Ctrl-C stops an answer only."""

from __future__ import annotations

import io
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from homespun.cli import chat
from tests.cli.conftest import Command, Ended

SHORT = ("--max-tokens", 12, "--seed", 3)
Talk = Callable[..., Ended]


class Typed(io.StringIO):
    """Standard input as a person types it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def talk(homespun: Command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Calls `homespun chat` with lines on standard input, from a pipe or from a person."""

    def call(*lines: str, options: tuple[object, ...] = SHORT, person: bool = False) -> Ended:
        kind = Typed if person else io.StringIO
        monkeypatch.setattr(sys, "stdin", kind("".join(f"{line}\n" for line in lines)))
        return homespun("chat", trained, *options)

    return call


def test_through_a_pipe_each_line_is_a_question_and_only_answers_are_printed(talk: Talk, tmp_path: Path) -> None:
    ended = talk("Who?", "", "And\\", "then?", f"/save {tmp_path / 'talk.json'}")
    assert ended.code == 0, ended.err
    messages = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[2]["content"] == "And\nthen?"
    assert ended.out == "".join(f"{message['content']}\n" for message in messages[1::2])
    assert talk("Who?").out == f"{messages[1]['content']}\n"


def test_a_base_model_is_named_one(talk: Talk) -> None:
    ended = talk("Who?")
    assert chat.BASE in ended.err and chat.BASE not in ended.out


def test_the_last_line_needs_no_end(talk: Talk) -> None:
    assert talk("Who\\").out == talk("Who").out != ""


def test_a_conversation_goes_on_from_a_file(talk: Talk, tmp_path: Path) -> None:
    place = tmp_path / "talk.json"
    talk("One?", f"/save {place}", options=(*SHORT, "--system", "Be kind."))
    ended = talk("/settings", "/undo", options=(*SHORT, "--load", place))
    assert "Be kind." in ended.err and "Left: 0 turns" in ended.err
    assert "Be brief." in talk("/settings", options=("--load", place, "--system", "Be brief.")).err


def test_every_command_is_listed_and_does_something(talk: Talk, tmp_path: Path) -> None:
    place = tmp_path / "talk.json"
    ended = talk(
        "/help", "Who?", "/retry", f"/save {place}", "/undo", f"/load {place}", "/system Be kind.", "/settings",
        "/system", "/clear", "/undo", "/quit", "never read", person=True,
    )  # fmt: skip
    assert ended.code == 0
    lines = [line for line in ended.err.splitlines() if line.startswith("  /")]
    listed = {line.split()[0][1:] for line in lines}
    assert {"help", "retry", "undo", "save", "load", "clear", "system", "settings", "quit"} <= listed
    assert {name.replace("_", "-") for name in chat.SETTINGS if name != "stop"} <= listed
    for told in (
        "talk.json: 1 turn.",
        "Loaded: 1 turn.",
        "Be kind.",
        "no system prompt",
        "forgotten",
        "Nothing was asked",
    ):
        assert told in ended.err, told
    assert ended.out.count("\n") >= 2 and "never" not in ended.out


def test_settings_change_the_next_answer(talk: Talk, tmp_path: Path) -> None:
    place = tmp_path / "talk.json"
    plain = talk("Who?", options=("--temperature", 0, "--max-tokens", 5)).out
    ended = talk("/temperature 0", "/max-tokens 5", "/top-p 0.5", "/top-k 3", "/top-k none", "Who?", f"/save {place}")
    assert ended.out == plain
    assert "top-p 0.5" in ended.err and "top-k 3\ntop-k none" in ended.err


@pytest.mark.parametrize(
    ("line", "told"),
    [("/tempratur 1", "'/temperature'"), ("/temperature hot", "temperature = 'hot'"), ("/top-p 2", "top_p = 2"),
     ("/seed -1", "seed = -1"), ("/max-tokens 0", "max_tokens = 0"), ("/save", "file"), ("/load nowhere", "nowhere"),
     ("/retry", "Nothing was asked"), ("/", "no command"), ("/temperature [1", "temperature")],
)  # fmt: skip
def test_mistakes_are_one_sentence_and_the_session_goes_on(talk: Talk, line: str, told: str) -> None:
    ended = talk(line, "Who?", person=True)
    assert ended.code == 0 and told in ended.err and "Traceback" not in ended.err
    assert ended.out == talk("Who?").out
    piped = talk(line, "Who?")
    assert piped.code == 2 and told in piped.err and not piped.out


def test_turns_that_no_longer_fit_are_told_once_each_time(talk: Talk) -> None:
    ended = talk("Question one?", "Question two?", "/settings", "Question three?")
    assert ended.err.count("1 earlier turn no longer fits and was left out") == 1
    assert ended.err.count("2 earlier turns no longer fit and were left out") == 1


@pytest.mark.parametrize("options", [("--temperature", -1), ("--load", "nowhere"), ("--weights", "int3")])
def test_impossible_wishes_are_refused(talk: Talk, options: tuple[object, ...]) -> None:
    ended = talk("Who?", options=options)
    assert ended.code == 2 and not ended.out and "Traceback" not in ended.err


COLOUR = re.compile(r"\x1b\[[0-9;]+m")
START = """
import fcntl, termios
from homespun.cli.main import main
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C, typed there, is a signal to this process
main()
"""


class Terminal:
    """A terminal with `homespun chat` in it."""

    def __init__(self, *words: object, **environment: str):
        import pty

        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, "chat", *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, env={**os.environ, "TERM": "xterm", **environment},
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait_for(self, text: str, again: str = "") -> str:
        """What is shown until `text` is, with it. `again` is typed once more every few seconds: a signal that comes
        just before readline waits is noticed with the next key only."""
        started, typed = time.monotonic(), 0
        while text not in self.shown:
            passed = time.monotonic() - started
            assert passed < 60, self.shown
            if again and passed > 3 * (typed + 1):
                self.type(again)
                typed += 1
            if select.select([self.ours], [], [], 0.2)[0]:
                self.shown += os.read(self.ours, 4096).decode("utf-8", "replace")
        before, found, self.shown = self.shown.partition(text)
        return before + found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


@pytest.mark.skipif(os.name == "nt", reason="terminals as POSIX knows them")
def test_ctrl_c_stops_the_answer_only_and_keeps_it(trained: Path, tmp_path: Path) -> None:
    place = tmp_path / "talk.json"
    terminal = Terminal(trained, "--temperature", 0, "--max-tokens", 10**7)
    try:
        shown = terminal.wait_for("> ")
        assert COLOUR.search(shown), shown
        terminal.type("Who?\n")
        terminal.wait_for("Who?\r\n")
        while len(terminal.shown) < 20:  # an answer is being written
            terminal.shown += os.read(terminal.ours, 64).decode("utf-8", "replace")
        terminal.type("\x03")
        terminal.wait_for("Stopped.")
        terminal.wait_for("> ")
        terminal.type("\x03")
        terminal.wait_for("/quit", again="\x03")
        terminal.wait_for("> ")
        terminal.type(f"/save {place}\n")
        terminal.wait_for("1 turn.", again=f"/save {place}\n")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()
    question, answer = json.loads(place.read_text(encoding="utf-8"))["messages"]
    assert question["content"] == "Who?" and answer["role"] == "assistant" and answer["content"]


@pytest.mark.skipif(os.name == "nt", reason="terminals as POSIX knows them")
def test_there_is_no_colour_where_none_is_wanted(trained: Path) -> None:
    terminal = Terminal(trained, NO_COLOR="1")
    try:
        shown = terminal.wait_for("> ")
        terminal.type("/nonsense\n")
        shown += terminal.wait_for("no command")
        assert not COLOUR.search(shown)
    finally:
        terminal.close()
