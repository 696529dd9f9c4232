"""The gate: the new must fall, the old may not rise past its tolerance, not even step by step."""

from __future__ import annotations

import math

import pytest

from homespun.learn.gate import judge

BEFORE = {"old": 2.0, "new": 4.0}


def test_what_helps_and_does_no_harm_is_kept() -> None:
    verdict = judge(BEFORE, {"old": 2.01, "new": 3.0}, {}, {"new"}, {"old"}, 0.02)
    assert verdict.kept and "new fell by 25%" in verdict.reason
    little = judge(BEFORE, {"old": 2.0, "new": 3.9999}, {}, {"new"}, {"old"}, 0.02)
    assert little.kept and "new fell by 0.0025%" in little.reason
    assert verdict.drift == {"old": pytest.approx(0.01), "new": 0.0}


def test_an_old_domain_may_not_rise_past_the_tolerance() -> None:
    verdict = judge(BEFORE, {"old": 2.05, "new": 3.0}, {}, {"new"}, {"old"}, 0.04)
    assert not verdict.kept and verdict.reason.startswith("The loss on old rose from 2.000 to 2.050")
    assert judge(BEFORE, {"old": 2.05, "new": 3.0}, {}, {"new"}, {"old"}, 0.06).kept  # half of it


def test_small_rises_do_not_add_up() -> None:
    drift: dict[str, float] = {}
    loss, rises = 2.0, []
    while len(rises) < 20:
        rise = 0.015
        while rise > 1e-9:
            verdict = judge({"old": loss, "new": 4.0}, {"old": loss + rise, "new": 3.9}, drift, {"new"}, {"old"}, 0.02)
            if verdict.kept:
                break
            rise /= 2
        loss, drift, rises = loss + rise, verdict.drift, [*rises, rise]
    assert rises[0] == 0.015 and rises[1] < 0.01 and loss <= 2.0 * 1.02
    assert not judge({"old": loss, "new": 4.0}, {"old": 2.041, "new": 1.0}, drift, {"new"}, {"old"}, 0.02).kept
    better = judge({"old": loss, "new": 4.0}, {"old": 1.9, "new": 3.9}, drift, {"new"}, {"old"}, 0.02)
    assert better.kept and better.drift["old"] == 0  # the lowest is a new one


def test_the_new_must_fall_in_the_mean() -> None:
    assert not judge(BEFORE, {"old": 1.9, "new": 4.0}, {}, {"new"}, {"old"}, 0.02).kept
    before, after = {"a": 2.0, "b": 4.0}, {"a": 2.1, "b": 3.0}
    assert judge(before, after, {}, {"a", "b"}, set(), 0.02).kept
    assert not judge(before, {"a": 2.6, "b": 3.0}, {}, {"a", "b"}, set(), 0.02).kept


def test_what_is_not_finite_is_never_kept() -> None:
    verdict = judge(BEFORE, {"old": math.nan, "new": 3.0}, {}, {"new"}, {"old"}, 0.02)
    assert not verdict.kept and verdict.reason == "The loss on old is not finite."
