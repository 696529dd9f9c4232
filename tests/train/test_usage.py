"""The experts of a run: their use in the metrics, their bias after each update, both the same after a resume."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from homespun.evaluate.report import write_report
from homespun.model.feedforward import Experts, SigmoidRouter
from homespun.train.log import read_metrics
from homespun.train.usage import add, expert_use
from tests.train.house import CONTEXT, RECIPE, ROWS, assert_equal, trainer

SPARSE = Experts(experts=4, hidden=16, dense_layers=(0,), router=SigmoidRouter(bias_rate=0.001))
RECIPE_SPARSE = RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update={"feed_forward": SPARSE})})


def test_the_figures_of_use_are_arithmetic() -> None:
    counts = add([(None, torch.tensor([3, 0, 1, 0])), (None, torch.tensor([3, 0, 1, 0]))])
    layer = expert_use(counts)["experts"]["1"]
    assert layer["share"] == [0.75, 0.0, 0.25, 0.0]
    assert layer["max_violation"] == 2.0  # three times a fair share
    assert layer["dead"] == 2
    assert layer["entropy"] == pytest.approx(0.4056, abs=1e-3)  # of 0.75 and 0.25, in units of log 4
    even = expert_use((torch.tensor([5, 5, 5, 5]),))["experts"]["0"]
    assert (even["max_violation"], even["entropy"], even["dead"]) == (0.0, 1.0, 0)
    assert expert_use((None, None)) == {}


def test_a_run_logs_its_experts_and_moves_their_bias_once_a_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, "train.micro_batch=1", "train.steps=11", recipe=RECIPE_SPARSE)
    gate = run.model.model.layers[1].mlp.gate
    seen = []
    gate.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output.chosen)) if module.training else None
    )
    run.fit()
    assert seen[:ROWS] == [CONTEXT] * ROWS
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "experts" in row]
    assert [row["step"] for row in rows] == list(range(1, 12))
    for row in rows:
        assert list(row["experts"]) == ["1"]  # layer 0 is dense
        assert sum(row["experts"]["1"]["share"]) == pytest.approx(1.0, abs=1e-3)
        assert 0.9 < row["balance_loss"] < 4.0 and row["router_z_loss"] >= 0
        assert row["loss"] < 7  # the language-model loss alone
    bias = gate.e_score_correction_bias
    steps = bias / 0.001  # each update moves by whole steps, less their mean
    torch.testing.assert_close(4 * steps, (4 * steps).round(), atol=1e-3, rtol=0)
    assert 0 < bias.abs().max() <= 12 * 0.001 * 1.5


def test_a_stopped_run_goes_on_with_its_bias(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", recipe=RECIPE_SPARSE)
    whole.fit()
    first = trainer(tmp_path / "parts", "train.save_every=5", recipe=RECIPE_SPARSE)
    for _ in range(5):
        first.step()
    first._save()
    second = trainer(tmp_path / "parts", "train.save_every=5", recipe=RECIPE_SPARSE)
    assert second.progress.step == 5 and second.model.model.layers[1].mlp.gate.e_score_correction_bias.any()
    second.fit()
    assert_equal(whole, second)


def test_the_report_pictures_the_experts(tmp_path: Path) -> None:
    trainer(tmp_path, recipe=RECIPE_SPARSE).fit()
    page = write_report([tmp_path]).read_text("utf-8")
    assert (
        "<h2>Experts</h2>" in page
        and "A fair share is 25.0%" in page
        and len(re.findall(r'class="expert( dead)?"', page)) == 4
    )
    dense = trainer(tmp_path / "dense")
    dense.fit()
    assert "<h2>Experts</h2>" not in write_report([tmp_path / "dense"]).read_text("utf-8")
