"""`homespun demo`: the main job with no arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homespun.cli import demo
from tests.cli.conftest import Command


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "CORPUS", "stories:300")
    monkeypatch.setattr(demo, "SCORED", 4)


def test_the_demo_shows_samples_and_where_they_lie(homespun: Command) -> None:
    ended = homespun("demo", "--steps", 2)
    assert ended.code == 0
    assert "The model writes" in ended.out and "runs/demo/report.html" in ended.out.replace("\\", "/")
    assert "homespun generate runs/demo" in ended.out
    assert Path("runs/demo/report.html").is_file()


def test_each_demo_gets_a_folder_of_its_own(homespun: Command) -> None:
    folders = [json.loads(homespun("demo", "--steps", 1, "--json").out)["folder"] for _ in range(2)]
    assert [Path(folder).name for folder in folders] == ["demo", "demo-2"]


def test_the_judge_counts_sentences_of_the_grammar() -> None:
    from homespun.data.stories import stories

    told = list(stories(5))
    sentences, parsed = demo._judge(told)
    assert sentences == parsed > 5
    assert demo._judge([told[0] + " Fox the ran very."]) == (demo._judge(told[:1])[0] + 1, demo._judge(told[:1])[1])
