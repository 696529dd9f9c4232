"""The benchmarks: contestants work in turn, and what comes out is lines of JSON and one table for each benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import contest

    return contest


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / script), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_training_is_measured_beside_plain_code(tmp_path: Path) -> None:
    words = ["--size", "tiny", "--rounds", "1", "--compile", "off", "--results", str(tmp_path)]
    done = run("train.py", *words, "--only", "plain: fp32", "nanoGPT: fp32")
    assert done.returncode == 0, done.stderr
    ours, plain = map(json.loads, done.stdout.splitlines())
    assert ours["contestant"].startswith("ours") and ours["ours / it"] == 1.0
    assert plain["contestant"] == "plain: fp32"
    for row in (ours, plain):
        assert row["least"] <= row["tokens/s"] <= row["most"] and row["tokens/s"] > 0
        assert row["threads"] == "1" and row["rounds"] == 1 and row["load"] >= 0
        assert 50 < row["peak MiB"] < 5000
    assert "left out: nanoGPT: fp32, as it comes: RuntimeError: no clone of nanoGPT was named" in done.stderr
    (table,) = tmp_path.glob(f"{ours['date']}-*.md")
    text = table.read_text(encoding="utf-8")
    assert "## Training, tiny\n" in text and "| plain: fp32 |" in text and "nanoGPT" not in text


def test_a_section_is_replaced_where_it_stands(contest, tmp_path: Path) -> None:
    path = tmp_path / "results" / "day.md"
    contest.write_section(path, "# Day", "First", "one\n")
    contest.write_section(path, "# Day", "Second", "two")
    before = path.read_text(encoding="utf-8")
    assert before == "# Day\n\n## First\n\none\n\n## Second\n\ntwo\n"
    contest.write_section(path, "# Another heading", "First", "three")
    assert path.read_text(encoding="utf-8") == before.replace("one", "three")


def test_a_table_has_a_line_for_each_contestant(contest) -> None:
    rows = [{"contestant": "ours", "tokens/s": 12345, "share": None}, {"contestant": "b", "tokens/s": 1, "share": 0.5}]
    assert contest.table(rows).splitlines() == [
        "| contestant | tokens/s | share |",
        "| --- | --- | --- |",
        "| ours | 12,345 |  |",
        "| b | 1 | 0.5 |",
    ]


def test_nanogpt_s_loss_counts_only_where_it_was_reached(contest) -> None:
    import time_to_loss

    ended = {
        "nanoGPT, its README": [time_to_loss.Ended(2000, 1.9, 48.0, 60.0)],
        "nanoGPT, learning rate tuned": [time_to_loss.Ended(2000, 1.8, 50.0, 60.0)],
        "ours, cold": [time_to_loss.Ended(300, loss, 8.0, 12.0) for loss in (1.84, 1.85, 1.95)],
    }
    ours = time_to_loss._rows(ended)[-1]
    assert (ours["loss"], ours["worst"], ours["tokens"]) == (1.85, 1.95, 300 * 768)
    assert (ours["README's training / its"], ours["README's process / its"]) == (6.0, 5.0)
    assert ours["tuned training / its"] is None and ours["tuned process / its"] is None


def test_validation_reads_every_window_once(contest) -> None:
    import torch
    from validation import mean_loss

    ids = list(range(10)) * 20  # 200 ids: 12 windows of 16, the rest left out

    def knows(tokens: torch.Tensor) -> torch.Tensor:
        return 20.0 * torch.nn.functional.one_hot((tokens + 1) % 10, 10).float()

    assert mean_loss(knows, ids, 16) == pytest.approx(0.0, abs=1e-6)
    assert mean_loss(lambda tokens: torch.zeros(*tokens.shape, 10), ids, 16) == pytest.approx(2.302585, abs=1e-5)
