"""Kenga's trainer learns from sources by itself, in a run of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

import homespun as hs
from homespun.errors import ConfigError
from homespun.families.kenga import AutonomousTrainer, KengaConfig, KengaModel
from tests.learn.learners import SETTINGS, consistent, sums, write_rows

CONFIG = KengaConfig(300, 16, 1, 2, 32, 0.0, 32)


def test_kenga_learns_from_sources_and_goes_on(tmp_path: Path) -> None:
    texts = sums(30)
    write_rows(tmp_path / "a.jsonl", texts[:15])
    write_rows(tmp_path / "b.jsonl", texts[15:])
    settings = SETTINGS.model_copy(update={"cycle_tokens": 10**6, "learning_rate": 1.0})
    trainer = AutonomousTrainer(KengaModel(CONFIG))
    before = trainer.model.model.norm.weight.detach().clone()
    done = asyncio.run(trainer.run(str(tmp_path / "a.jsonl"), tmp_path / "run", settings=settings))
    assert done.kept == 1 and done.step > 0 and not torch.equal(trainer.model.model.norm.weight, before)
    again = AutonomousTrainer(KengaModel(CONFIG))
    more = asyncio.run(
        again.run([str(tmp_path / f"{name}.jsonl") for name in "ab"], tmp_path / "run", settings=settings)
    )
    assert more.step > done.step and consistent(tmp_path / "run", texts)["learned"] > 20
    run = hs.load(tmp_path / "run")
    state = again.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in run.model.state_dict().items())
    assert run.recipe.objective.kind == "joint" and run.embed(["1 plus 1"]).shape == (1, 16)


def test_a_run_of_another_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    small = AutonomousTrainer(KengaModel(CONFIG))
    asyncio.run(small.run(str(tmp_path / "a.txt"), tmp_path / "run", settings=SETTINGS))
    wide = AutonomousTrainer(KengaModel(KengaConfig(300, 32, 1, 2, 32, 0.0, 32)))
    with pytest.raises(ConfigError, match="another model"):
        asyncio.run(wide.run(str(tmp_path / "a.txt"), tmp_path / "run"))
    with pytest.raises(ConfigError, match="holds no run"):
        asyncio.run(wide.run(str(tmp_path / "a.txt"), tmp_path))
