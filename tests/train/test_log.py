"""Rows are strict JSON, one to a line, once for each step; what people see is plain and literal."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path

import pytest

from homespun.errors import TrainingError
from homespun.train.log import (
    MetricsLog,
    PlainConsole,
    RunningMean,
    clock_text,
    open_console,
    read_metrics,
    short,
    visible,
)

# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_come_back_in_order_and_are_there_at_once(tmp_path: Path) -> None:
    log, rows = MetricsLog(tmp_path / "metrics.jsonl"), []
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    for step in range(1, 4):
        rows.append({"step": step, "loss": 1 / 3, "text": "żółw \u2028 \x85 \n 🐢"})
        log.append(rows[-1])
        assert read_metrics(log.path) == rows
    assert len(log.path.read_text(encoding="utf-8").splitlines()) == 3  # also for readers that split at U+2028


def test_numbers_that_are_not_finite_become_null_and_the_file_stays_strict(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m")
    log.append({"step": 1, "loss": math.nan, "deep": {"x": [math.inf, 1.0]}, "text": "half \ud83d"})
    row = json.loads(log.path.read_bytes(), parse_constant=pytest.fail)
    assert row == {"step": 1, "loss": None, "deep": {"x": [None, 1.0]}, "text": "half \ud83d"}


def test_a_torn_last_line_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "m"
    MetricsLog(path).append({"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    MetricsLog(path).append({"step": 2})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    path.write_bytes(b'{"torn')
    MetricsLog(path).append({"step": 1})
    assert path.read_bytes() == b'{"step": 1}\n'


def test_lines_that_are_no_rows_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"step": 1, "loss": NaN}\n\0\0\0\0\n[1]\n\n\xff\n"word"\n' + b"[" * 100_000 + b'\n{"step": 2}\n')
    assert read_metrics(path) == [{"step": 1, "loss": None}, {"step": 2}]


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m")
    for step in range(1, 8):
        log.append({"step": step, "run": 1})
    log.append({"about": "no step"})
    log.rewind(4)
    before = os.listdir(tmp_path)
    for step in range(5, 8):
        log.append({"step": step, "run": 2})
    rows = read_metrics(log.path)
    assert [row["step"] for row in rows if "step" in row] == list(range(1, 8))
    assert [row.get("run") for row in rows] == [1, 1, 1, 1, None, 2, 2, 2]
    assert before == ["m"]  # nothing temporary is left
    MetricsLog(tmp_path / "none").rewind(3)
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "m").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match="cannot be written: No space left"):
        MetricsLog(tmp_path / "m").append({"step": 1})


# -- means -------------------------------------------------------------------------------------------------------------


def test_nothing_but_finite_numbers_enters_a_running_mean() -> None:
    mean = RunningMean(0.5)
    assert mean.value is None
    mean.add(math.nan)
    assert mean.value is None
    mean.add(2.0)
    assert mean.value == pytest.approx(2.0)  # the start does not pull towards zero
    for bad in (math.nan, math.inf, -math.inf, None):
        mean.add(bad)
    assert mean.value == pytest.approx(2.0) and mean.rejected == 5
    mean.add(5.0)
    assert mean.value == pytest.approx(4.0)


# -- plain lines -------------------------------------------------------------------------------------------------------

VALIDATION = {"step": 40, "validation_loss": 1.98, "validation_bits_per_byte": 1.6214, "validation_perplexity": 7.2427}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_plain_lines_tell_the_whole_story_without_control_characters() -> None:
    stream, clock = io.StringIO(), Clock()
    console = PlainConsole(stream, clock=clock)
    console.preparing("encoding", 12_300_000, 200_000_000, 4_500_000)
    console.start(1200, "house-tiny")
    console.note("computing in \x1b[1mbf16")
    console.validation(VALIDATION)
    row = {"loss": 2.5, "tokens_per_second": 41_234.0, "share": 0.634, "seconds_left": 3725.4, "skipped_steps": 2}
    console.update(400, row)
    console.sample("Once [bold]upon[/bold]\x07\r\nthe end")
    console.close()
    assert told(stream) == [
        "encoding the text: 12.3 of 200.0 MB, 4.5M tokens",
        "training house-tiny",
        "computing in ␛[1mbf16",
        "step 40: validation 1.621 bits/byte, loss 1.980, perplexity 7.243",
        "step 400/1,200  loss 2.500  1.621 bits/byte  41.2k tokens/s  63% of peak  2 skipped  1:02:05 left",
        "sample:",
        "  Once [bold]upon[/bold]␇",
        "  the end",
    ]


def test_plain_lines_come_now_and_then_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    console = PlainConsole(stream, clock=clock)
    console.start(None, "x")
    for step in range(1, 3601):  # an hour, a step a second; the total is known after a while
        clock.now += 1.0
        console.update(step, {"loss": 1.0, "total": 3600 if step > 9 else None})
    lines = [line for line in told(stream) if line.startswith("step")]
    assert lines[0] == "step 1  loss 1.000" and lines[1].startswith("step 11/3,600 ")
    assert lines[-1].startswith("step 3,600/3,600 ") and 50 < len(lines) < 200


def test_a_quiet_console_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console = open_console(quiet=True)
    console.preparing("reading", 1, 2, 3)
    console.start(3, "x")
    console.update(3, {"loss": 1.0})
    console.validation(VALIDATION)
    console.sample("text")
    console.note("note")
    console.close()
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_the_console_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    console = open_console(stderr=True)
    console.note("a sentence")
    assert isinstance(console, PlainConsole) and capsys.readouterr() == ("", "a sentence\n")


def test_a_reader_that_goes_away_does_not_stop_the_run() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    console = PlainConsole(stream)
    for _ in range(3):
        console.note("nobody listens")
    with pytest.raises(BrokenPipeError):
        stream.close()  # the stream itself still knows


def test_an_output_that_cannot_show_a_letter_gets_a_question_mark() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    PlainConsole(stream).note("żółw \ud83d ok")
    assert raw.getvalue() == b"???w ? ok\n"


def test_a_validation_without_finite_numbers_says_so() -> None:
    stream = io.StringIO()
    console = PlainConsole(stream)
    console.validation({"step": 3, "validation_loss": None})
    console.validation(VALIDATION | {"best": True})
    assert told(stream)[0] == "step 3: validation not finite" and told(stream)[1].endswith(" (best so far)")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (950, "950"), (41_234, "41.2k"), (1.25e6, "1.25M"), (3e9, "3G"), (999.7, "1000")]
)
def test_short_numbers(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0:00"), (42, "0:42"), (59.6, "1:00"), (725, "12:05"), (11_220, "3:07:00"), (190_800, "2 d 5 h")],
)
def test_clock_texts(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_visible_text_keeps_letters_lines_and_tabs() -> None:
    assert visible("a\tb\nc\u200bd\x9b31m\x7f\x00") == "a\tb\nc\u200bd\ufffd31m␡␀"
