"""The live display: all figures on two lines that fit the terminal, other texts above it, literally."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console as Terminal

from homespun.train.live import LiveConsole, suits
from tests.train.test_log import VALIDATION

ROW = {
    "step": 412, "total": 1200, "seconds": 22.0, "loss": 2.314, "tokens_per_second": 41_234.0, "share": 0.634,
    "seconds_left": 42.0,
}  # fmt: skip
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def console(width: int = 80, color: str | None = "standard") -> tuple[LiveConsole, io.StringIO]:
    stream = io.StringIO()
    terminal = Terminal(file=stream, force_terminal=True, width=width, color_system=color, highlight=False)
    return LiveConsole(terminal=terminal), stream


def frame(live: LiveConsole) -> list[str]:
    """What the display would draw now."""
    with live.terminal.capture() as capture:
        live.terminal.print(live)
    return [line.rstrip() for line in CONTROL.sub("", capture.get()).splitlines()]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_display_is_two_lines_that_fit(width: int) -> None:
    live, _ = console(width)
    live._smooth.add_validation(VALIDATION)
    live.update(412, ROW)
    lines = frame(live)
    assert len(lines) == 2 and max(map(len, lines)) <= width
    assert lines[0].startswith("412/1,200 ") and lines[0].endswith(" 0:42 left")
    assert lines[1].startswith("loss 2.314   1.621 bits/byte")


def test_eighty_columns_hold_every_figure() -> None:
    live, _ = console(80)
    live._smooth.add_validation(VALIDATION)
    live.update(412, ROW)
    assert frame(live)[1] == "loss 2.314   1.621 bits/byte   41.2k tokens/s   63% of peak   0:22 so far"


def test_the_display_stands_before_anything_is_known() -> None:
    live, _ = console()
    assert len(frame(live)) == 2
    live.update(3, {"loss": None, "total": None, "seconds_left": None})
    assert frame(live)[0].startswith("step 3 ")


def test_events_stand_above_the_bar_and_text_is_literal() -> None:
    live, stream = console()
    live.preparing("encoding", 10, 20, 5)
    live.start(1200, "house-tiny")
    live.update(412, ROW)
    live.validation(VALIDATION)
    live.sample("Once [bold]upon[/bold] :smile: a\x1b[2J\x07 time " + "word " * 30 + "\n\nend")
    live.note("a [red]note[/red] https://example.org 123")
    live.close()
    live.close()
    text = CONTROL.sub("", stream.getvalue())
    assert "house-tiny" in text and "step 40: validation 1.621 bits/byte, loss 1.980, perplexity 7.243" in text
    assert "  │ Once [bold]upon[/bold] :smile: a␛[2J␇ time word" in text and "  │ end" in text
    assert "a [red]note[/red] https://example.org 123" in text
    assert "\x1b[2J" not in stream.getvalue() and "\x07" not in stream.getvalue()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")  # the cursor is back
    assert max(map(len, re.split(r"[\r\n]", text))) <= 80


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    def colours() -> list[str]:
        live, stream = console(color="standard")
        live.validation(VALIDATION)
        return re.findall(r"\x1b\[[0-9;]*m", stream.getvalue())

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[36m" in colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in colours()


def test_a_terminal_that_hangs_up_does_not_stop_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    live = LiveConsole(terminal=Terminal(file=Gone(), force_terminal=True, width=80))
    live.validation(VALIDATION)
    live.note("nobody listens")


def test_only_a_terminal_that_can_draw_gets_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert suits(Tty()) and not suits(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not suits(Tty())
