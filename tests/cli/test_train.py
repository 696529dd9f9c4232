"""`homespun train`, `prepare`, `plan`, `info`, `report`: the verbs around a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import SMALL, Command

OFFLINE = """
import socket, sys

def refuse(*arguments, **named):
    raise RuntimeError(f"the network was asked for: {arguments}")

class Offline(socket.socket):
    def connect(self, address):
        refuse(address)
    connect_ex = connect

socket.socket, socket.getaddrinfo, socket.create_connection = Offline, refuse, refuse
from homespun.cli.main import main
main(sys.argv[1:])
"""


def test_a_run_folder_holds_the_whole_story(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"recipe.yaml", "tokenizer.json", "environment.json", "metrics.jsonl", "report.html", "checkpoints"} <= names


def test_train_says_where_the_run_lies_and_what_to_try(homespun: Command, tmp_path: Path) -> None:
    ended = homespun("train", "stories:60", "--steps", 2, "--out", tmp_path / "a run", *SMALL)
    assert ended.code == 0
    assert "2 steps" in ended.out and "bits per byte" in ended.out and str(tmp_path / "a run") in ended.out
    assert f"homespun generate '{tmp_path / 'a run'}' -p" in ended.out


def test_the_same_command_continues_a_run(homespun: Command, tmp_path: Path) -> None:
    command = ("train", "stories:60", "--out", tmp_path / "run", "--json", *SMALL)
    first = json.loads(homespun(*command, "--steps", 2).out)
    second = json.loads(homespun(*command, "--steps", 3, "--resume").out)
    assert (first["step"], second["step"]) == (2, 3)
    other = homespun(*command, "--steps", 3, "model.layers=2")
    assert other.code == 2 and "model.layers" in other.err


def test_a_run_that_got_worse_says_where_the_best_is(homespun: Command, tmp_path: Path) -> None:
    wild = ("optimizer.learning_rate=5", "optimizer.adam_learning_rate=5", "train.evaluate_every=1")
    ended = homespun("train", "stories:60", "--steps", 6, "--out", tmp_path / "run", *wild, *SMALL)
    assert "The best was step" in ended.out and "--checkpoint best" in ended.out
    best = homespun("generate", tmp_path / "run", "--checkpoint", "best", "--max-tokens", 3)
    assert best.code == 0


def test_json_stands_alone_on_standard_output(homespun: Command, tmp_path: Path) -> None:
    ended = homespun("train", "stories:60", "--steps", 2, "--out", tmp_path / "run", "--json", *SMALL)
    summary = json.loads(ended.out)
    assert summary["step"] == 2 and summary["reason"] == "budget" and Path(summary["report"]).is_file()


def test_quiet_prints_only_the_result(homespun: Command, tmp_path: Path) -> None:
    loud = homespun("train", "stories:60", "--steps", 2, "--out", tmp_path / "loud", *SMALL)
    quiet = homespun("train", "stories:60", "--steps", 2, "--out", tmp_path / "quiet", "--quiet", *SMALL)
    assert len(quiet.out) < len(loud.out) and not quiet.err
    assert quiet.out.startswith("Trained 2 steps")


def test_a_prepared_corpus_can_be_trained_on(homespun: Command, tmp_path: Path) -> None:
    made = json.loads(homespun("prepare", "stories:60", "--tokenizer", "bytes", "--out", tmp_path / "c", "--json").out)
    assert made["train"]["documents"] + made["valid"]["documents"] == 60 and made["vocabulary"] == 260
    ended = homespun("train", tmp_path / "c", "--steps", 1, "--out", tmp_path / "run", "--json", *SMALL)
    assert json.loads(ended.out)["vocabulary"] == 260


def test_prepare_tells_counts_and_the_next_step(homespun: Command, tmp_path: Path) -> None:
    ended = homespun("prepare", "stories:60", "--tokenizer", "bytes", "--out", tmp_path / "c")
    assert ended.code == 0
    assert "documents" in ended.out and f"homespun train {tmp_path / 'c'}" in ended.out


def test_plan_says_whether_it_fits(homespun: Command) -> None:
    plan = json.loads(homespun("plan", "--recipe", "house-tiny", "--no-measure", "--json", "--steps", "100").out)
    assert plan["fits"] is True and plan["parameters"] > 0 and plan["steps"] == 100
    shown = homespun("plan", "--recipe", "house-tiny", "--no-measure", "model.width=64").out
    assert "will it fit?" in shown and "parameters" in shown
    huge = json.loads(homespun("plan", "--no-measure", "--json", "model.width=65532", "model.layers=400").out)
    assert huge["fits"] is False


def test_info_lists_recipes_and_machine(homespun: Command) -> None:
    known = json.loads(homespun("info", "--json").out)
    assert {"house-tiny", "gpt2", "kimbho-v1", "alen-micro"} <= known["recipes"].keys()
    assert known["default"] in known["recipes"] and known["environment"]["torch"]
    shown = homespun("info").out
    assert all(name in shown for name in known["recipes"]) and f"{known['default']} is used" in shown
    assert 120e6 < known["recipes"]["gpt2"] < 130e6


def test_info_tells_the_story_of_a_run(homespun: Command, trained: Path) -> None:
    summary = json.loads(homespun("info", trained, "--json").out)
    assert summary["step"] == 4 and summary["recipe"] == "house-tiny"
    shown = homespun("info", trained).out
    assert "bits per byte" in shown and "step 4" in shown


def test_report_writes_one_page(homespun: Command, trained: Path, tmp_path: Path) -> None:
    ended = homespun("report", trained, "--out", tmp_path / "page.html")
    assert str(tmp_path / "page.html") in ended.out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<html" in page and 'src="http' not in page


def test_the_main_job_opens_no_connection(tmp_path: Path) -> None:
    def offline(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-c", OFFLINE, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    offline("train", "stories:60", "--steps", "2", "--out", "run", *SMALL)
    assert offline("generate", "run", "-p", "Once", "--max-tokens", "5").startswith("Once")
