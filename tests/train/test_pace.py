"""The speed of a run is that of its newer half."""

import pytest

from homespun.train import pace as module
from homespun.train.pace import MEASURE, Pace


def test_the_newer_half_counts_and_the_first_step_never(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    pace = Pace()
    for seconds in (9.0, 1.0, 1.0):
        now[0] += seconds
        assert pace.lap() == pytest.approx(seconds) and pace.per_step is None
    now[0] += 1.0
    pace.lap()
    assert MEASURE == 4 and pace.per_step == pytest.approx(1.0)
    for _ in range(4):  # the machine became faster
        now[0] += 0.25
        pace.lap()
    assert pace.per_step == pytest.approx(0.25)
    pace.start()
    assert pace.per_step is None
