"""`homespun generate`: the same text by every way of asking."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from homespun.cli import show
from tests.cli.conftest import Command

SHORT = ("--max-tokens", 12, "--seed", 3)


def test_a_seed_decides_the_text(homespun: Command, trained: Path) -> None:
    first, again = (homespun("generate", trained, "-p", "Once", *SHORT) for _ in range(2))
    other = homespun("generate", trained, "-p", "Once", "--max-tokens", 12, "--seed", 4)
    assert first.code == 0 and first.out.startswith("Once")
    assert first.out == again.out != other.out


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_weights_may_have_fewer_bits(homespun: Command, trained: Path, weights: str) -> None:
    words = ("generate", trained, "-p", "the", "--max-tokens", 8, "--temperature", 0, "--weights", weights)
    ended = homespun(*words)
    assert ended.code == 0 and ended.out.startswith("the"), ended.err
    if weights == "fp32":
        assert ended.out == homespun(*words[:-2]).out


def test_streaming_writes_the_same_text(homespun: Command, trained: Path) -> None:
    plain = homespun("generate", trained, "-p", "Once", *SHORT)
    assert homespun("generate", trained, "-p", "Once", "--stream", *SHORT).out == plain.out


def test_json_has_one_record_per_text(homespun: Command, trained: Path) -> None:
    ended = homespun("generate", trained, "-p", "Once", "-p", "A fox", "-n", 2, "--json", *SHORT)
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert [record["prompt"] for record in records] == ["Once", "Once", "A fox", "A fox"]
    plain = homespun("generate", trained, "-p", "Once", *SHORT).out
    assert "Once" + records[0]["text"] + "\n" == plain


def test_prompts_come_from_standard_input_or_a_file(
    homespun: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = homespun("generate", trained, "-p", "Der Bär", *SHORT).out
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("Der Bär".encode())))
    assert homespun("generate", trained, "-p", "-", *SHORT).out == direct
    (tmp_path / "prompts.txt").write_text("Der Bär\n", encoding="utf-8")
    assert homespun("generate", trained, "--file", tmp_path / "prompts.txt", *SHORT).out == direct


def test_several_texts_are_told_apart(homespun: Command, trained: Path) -> None:
    out = homespun("generate", trained, "-p", "Once", "-n", 3, *SHORT).out
    assert all(f"--- {number} of 3" in out for number in (1, 2, 3))


@pytest.mark.parametrize(
    "wrong",
    [("--temperature", -1), ("--top-p", 2), ("--max-tokens", 0), ("--stream", "--json"), ("--checkpoint", "77")],
)
def test_impossible_wishes_are_refused(homespun: Command, trained: Path, wrong: tuple[object, ...]) -> None:
    ended = homespun("generate", trained, "-p", "Once", *wrong)
    assert ended.code == 2 and not ended.out and "Error: " in ended.err


def test_no_control_character_reaches_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dangerous = "a\x1b[2J\x07\x9b\x7f\tb\n"
    show.write(dangerous, end="")
    assert capsys.readouterr().out == dangerous  # a pipe gets the text as it is
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show.write(dangerous, end="")
    shown = capsys.readouterr().out
    assert shown[0] == "a" and shown.endswith("\tb\n") and not set(shown) & set("\x1b\x07\x9b\x7f")


def test_beams_are_neither_streamed_nor_drafted_and_nothing_is_shown_before_the_mistake(
    homespun: Command, trained: Path
) -> None:
    for extra in (["--stream"], ["--draft", "lookup"]):
        ended = homespun("generate", trained, "-p", "Once", "--beams", 2, "--max-tokens", 4, *extra)
        assert ended.code == 2 and ended.out == "" and ended.err.startswith("Error: Beams"), ended
