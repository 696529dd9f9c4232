"""`homespun bench` measures what it is asked to, and says it for people and for programs."""

from __future__ import annotations

import dataclasses
import json

import pytest

from homespun import run
from homespun.benchmark.bench import Bench
from tests.cli.conftest import SMALL, Command

QUICK = ("--seconds", "0.01", *SMALL, "model.vocab=300")


def test_the_tables_are_for_people(homespun: Command) -> None:
    ended = homespun("bench", *QUICK)
    assert ended.code == 0
    for said in ("ceilings in fp32", "GFLOP/s", "GB/s", "Training house-tiny", "share of the ceiling", "batch 8",
                 "Where the time goes", "matrix products", "Measured on"):  # fmt: skip
        assert said in ended.out


def test_json_holds_the_same_as_python(homespun: Command) -> None:
    ended = homespun("bench", "train", "--json", *QUICK)
    assert ended.code == 0
    told = json.loads(ended.out)
    assert set(told) == {field.name for field in dataclasses.fields(Bench)} | {"busy"}
    assert told["decoding"] == [] and told["recipe"] == "house-tiny"
    assert sum(told["training"]["where"].values()) == pytest.approx(1)
    assert json.loads(json.dumps(told)) == told


def test_only_the_named_parts_are_measured(homespun: Command) -> None:
    ended = homespun("bench", "ceiling", *QUICK)
    assert ended.code == 0 and "one row x a large matrix" in ended.out
    assert "Training" not in ended.out and "Where" not in ended.out


def test_a_busy_machine_is_a_warning(homespun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = dataclasses.replace(run.bench(run.recipe("house-tiny", *SMALL[2:8]), ["ceiling"], 0.01), load=99.0)
    monkeypatch.setattr(run, "bench", lambda *arguments, **named: measured)
    ended = homespun("bench", "ceiling")
    assert ended.code == 0 and "load average 99.00" in ended.out and "Warning: other work" in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--recipe", "house-tinny"), "house-tiny"),
        (("model.attention.head=4",), "heads"),
        (("trian",), "train"),
        (("train", "my.txt"), "my.txt"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_next_step(homespun: Command, arguments: tuple[str, ...], said: str) -> None:
    ended = homespun("bench", *arguments)
    assert ended.code == 2
    assert said in ended.err and ended.err.startswith("Error: ") and ended.err.count("\n") == 1
    assert not ended.out
