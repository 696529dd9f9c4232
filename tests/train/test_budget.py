"""The plan of a run: known at once, or measured."""

import pytest

from homespun.errors import ConfigError
from homespun.train.budget import Budget
from homespun.train.recipe import TrainConfig


def test_the_smallest_budget_wins():
    assert Budget.of(TrainConfig(steps=50, tokens=1000, epochs=3), 10, 100).total == 10
    assert Budget.of(TrainConfig(steps=50, epochs=3), 10, 100).total == 30
    assert Budget.of(TrainConfig(epochs=0.25), 10, 100).total == 3
    with pytest.raises(ConfigError):
        Budget.of(TrainConfig(), 10, 100)


def test_a_time_budget_follows_the_speed_and_then_stays():
    budget = Budget.of(TrainConfig(minutes=1), 10, 100)
    assert budget.total is None and budget.horizon(3) > 1000
    budget.plan(step=10, spent=5.0, pace=0.5)
    assert budget.total == 10 + 110
    budget.plan(step=20, spent=10.0, pace=1.0)
    assert budget.total == 20 + 50
    budget.plan(step=40, spent=31.0, pace=1.2)  # more than half is gone, and the plan will about do
    assert budget.total == 70
    assert not budget.spent(69, 61.0) and budget.spent(70, 50.0) and budget.spent(69, 70.0)


def test_a_time_budget_uses_time_that_was_won_back():
    budget = Budget.of(TrainConfig(minutes=1), 10, 100)
    budget.plan(step=20, spent=20.0, pace=1.0)
    assert budget.total == 60
    budget.plan(step=40, spent=40.0, pace=0.2)  # the company has left: 20 steps would take 4 of 20 seconds
    assert budget.total == 40 + 100
    budget.plan(step=60, spent=44.0, pace=1.0)  # and is back
    assert budget.total == 60 + 16
    budget.plan(step=70, spent=55.0, pace=0.1)  # too late to move
    assert budget.total == 76


def test_steps_bound_a_time_budget():
    budget = Budget.of(TrainConfig(minutes=1, steps=30), 10, 100)
    budget.plan(step=10, spent=1.0, pace=0.01)
    assert budget.total == 30
