"""However a command ends, it says so in a sentence and a code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import homespun as package
from homespun.cli import info
from homespun.cli.main import VERBS
from tests.cli.conftest import Command

PROGRAM = [sys.executable, "-m", "homespun"]


def test_help_names_every_verb(homespun: Command) -> None:
    ended = homespun("--help")
    assert ended.code == 0
    assert all(verb in ended.out for verb in VERBS)


def test_version_is_the_package_version(homespun: Command) -> None:
    assert package.__version__ in homespun("--version").out


def test_an_unknown_verb_names_the_nearest(homespun: Command) -> None:
    ended = homespun("tain", "my.txt")
    assert ended.code == 2
    assert "train" in ended.err and "Traceback" not in ended.err


def test_an_unknown_option_is_a_mistake_of_the_user(homespun: Command) -> None:
    ended = homespun("train", "--stepps", "4")
    assert ended.code == 2 and "--stepps" in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "no-such-file.txt"), "no-such-file.txt"),
        (("train",), "stories:1000"),
        (("train", "stories:10", "--recipe", "house-tinny"), "house-tiny"),
        (("train", "stories:10", "model.attention.head=4"), "heads"),
        (("train", "stories:10", "--minutes", "soon"), "soon"),
        (("train", "stories:10", "--config", "none.yaml"), "none.yaml"),
        (("train", "stories:10", "--resume", "--out", "nowhere"), "nowhere"),
        (("plan", "my.txt"), "my.txt"),
        (("plan", "model.attention.heads=7"), "heads"),
        (("prepare", "stories:10", "--tokenizer", "bep:400"), "bpe"),
        (("generate", "nowhere", "-p", "Once"), "nowhere"),
        (("info", "nowhere"), "nowhere"),
        (("report", "nowhere"), "nowhere"),
        (("demo", "--steps", "2", "--seconds", "5"), "--seconds"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_next_step(
    homespun: Command, arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = homespun(*arguments)
    assert ended.code == 2
    assert said in ended.err and ended.err.startswith("Error: ")
    assert "Traceback" not in ended.err and ended.err.count("\n") == 1
    assert not ended.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_the_traceback_wherever_it_stands(before: bool, tmp_path: Path) -> None:
    words = ["--debug", "info", "nowhere"] if before else ["info", "nowhere", "--debug"]
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, cwd=tmp_path)
    assert "Traceback" in done.stderr and "CheckpointError" in done.stderr
    assert done.returncode == 1


def test_a_fault_of_ours_is_said_without_a_traceback(homespun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(json: bool) -> None:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(info, "_house", fail)
    ended = homespun("info")
    assert ended.code == 1
    assert "ZeroDivisionError: by accident" in ended.err and "--debug" in ended.err and "Traceback" not in ended.err


def test_ctrl_c_ends_with_130(homespun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(json: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "_house", interrupt)
    assert homespun("info").code == 130


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*PROGRAM, "info"], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    finally:
        os.close(writing)
    assert done.stderr == ""
