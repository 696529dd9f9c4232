"""Schedules are pure functions of the step with the shapes they are named after."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homespun.config import override, parse, to_dict
from homespun.errors import ConfigError
from homespun.optim import AdamW, Constant, Cosine, Schedule, WarmupStableDecay

warmups = st.one_of(st.integers(0, 5000), st.floats(0, 0.99))
fractions = st.floats(0, 1)
totals = st.integers(1, 3000)
schedules = st.one_of(
    st.builds(WarmupStableDecay, warmup=warmups, decay=fractions, floor=fractions),
    st.builds(Cosine, warmup=warmups, floor=fractions),
    st.builds(Constant, warmup=warmups),
)


def curve(schedule: Schedule, total: int) -> list[float]:
    return [schedule.factor(step, total) for step in range(total)]


@given(schedules, totals)
def test_the_factor_stays_above_zero_and_at_most_one(schedule: Schedule, total: int) -> None:
    assert all(0 < factor <= 1 for factor in curve(schedule, total))
    assert 0 <= schedule.factor(total + 10, total) <= 1


@given(schedules, totals)
def test_the_factor_rises_and_then_falls_and_never_again(schedule: Schedule, total: int) -> None:
    factors = curve(schedule, total)
    top = factors.index(max(factors))
    assert all(a <= b + 1e-12 for a, b in zip(factors[:top], factors[1 : top + 1], strict=True))
    assert all(a >= b - 1e-12 for a, b in zip(factors[top:], factors[top + 1 :], strict=False))


@given(schedules, st.integers(50, 3000))
def test_the_factor_makes_no_jumps(schedule: Schedule, total: int) -> None:
    warmup = getattr(schedule, "warmup", 0)
    rise = min(warmup * total if isinstance(warmup, float) else warmup, total / 2)
    if isinstance(schedule, WarmupStableDecay):
        rise = min(rise, total - schedule.decay * total)
        steepest = 1 / max(1, schedule.decay * total)
    else:
        steepest = math.pi / total  # of half a cosine over at least half of the run
    allowed = max(1 / rise if rise > 1 else 0, steepest) + 1e-9
    factors = curve(schedule, total)
    assert all(abs(a - b) <= allowed for a, b in zip(factors, factors[1:], strict=False))


@given(schedules, totals, st.randoms())
def test_the_factor_depends_on_the_step_alone(schedule: Schedule, total: int, random) -> None:  # type: ignore[no-untyped-def]
    factors, steps = curve(schedule, total), list(range(total))
    random.shuffle(steps)
    again = parse(type(schedule), to_dict(schedule))
    assert all(again.factor(step, total) == factors[step] for step in steps[:50])


def test_warmup_stable_decay_has_its_three_parts() -> None:
    factors = curve(WarmupStableDecay(warmup=10, decay=0.4, floor=0.1), 100)
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:60] == [1.0] * 50
    assert factors[60:] == pytest.approx([0.1 + 0.9 * (40 - i) / 40 for i in range(40)])


def test_a_longer_run_is_the_same_until_the_decay() -> None:
    schedule = WarmupStableDecay(warmup=10, decay=0.2)
    assert curve(schedule, 100)[:80] == curve(schedule, 1000)[:80]


def test_cosine_passes_its_middle_and_ends_at_its_floor() -> None:
    schedule = Cosine(warmup=20, floor=0.1)
    assert schedule.factor(0, 220) == pytest.approx(1 / 20) and schedule.factor(19, 220) == 1
    assert schedule.factor(120, 220) == pytest.approx(0.55)
    assert schedule.factor(219, 220) == pytest.approx(0.1, abs=1e-3) and schedule.factor(10**6, 220) == pytest.approx(
        0.1
    )


def test_constant_stays() -> None:
    assert set(curve(Constant(), 50)) == {1.0} and Constant().factor(10**9, 50) == 1.0


@pytest.mark.parametrize("schedule", [WarmupStableDecay(warmup=1000), Cosine(warmup=1000), Constant(warmup=1000)])
def test_a_warmup_longer_than_the_run_still_reaches_a_high_rate(schedule: Schedule) -> None:
    factors = curve(schedule, 20)
    assert max(factors) > 0.9 and factors[0] <= 0.1


def test_a_warmup_can_be_a_fraction_of_the_run() -> None:
    assert curve(WarmupStableDecay(warmup=0.1), 200) == curve(WarmupStableDecay(warmup=20), 200)


def test_settings_are_read_from_a_command_line() -> None:
    config = override(AdamW(), ["schedule.kind=cosine", "schedule.warmup=2k", "schedule.floor=0.2"])
    assert config.schedule == Cosine(warmup=2000, floor=0.2)
    assert override(AdamW(), ["schedule.warmup=0.05"]).schedule == WarmupStableDecay(warmup=0.05)
    for wrong in ("schedule.kind=linear", "schedule.warmup=2.5", "schedule.warmup=-1", "schedule.decay=1.5"):
        with pytest.raises(ConfigError):
            override(AdamW(), [wrong])
