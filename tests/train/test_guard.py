"""Signals end a step in good order, and numbers that are not finite never reach the model."""

from __future__ import annotations

import math
import os
import signal
import threading
import time

import pytest
import torch

from homespun.errors import CheckpointError, TrainingError
from homespun.train.guard import ECHO, FiniteGuard, SignalGuard
from tests.train.forks import ended, fork, needs_fork


def loop(pipe: int, patient: bool) -> None:
    """A run of short steps. A patient one takes so long for its last step that a second signal can come."""
    with SignalGuard(say=lambda sentence: None) as guard:
        os.write(pipe, b"r")
        while not guard.signal:
            time.sleep(0.001)
        os.write(pipe, b"s")
        if patient:
            time.sleep(30)
    os._exit(guard.exit_code)


def exit_code(*signals: int, patient: bool, pause: float = ECHO + 0.1) -> int:
    """What a shell would say of a loop that gets these signals; -9 when it has to be killed."""
    heard, pipe = os.pipe()
    child = fork(lambda: loop(pipe, patient))
    assert os.read(heard, 1) == b"r"
    for number, sent in enumerate(signals):
        if number:
            time.sleep(pause)
        os.kill(child, sent)
        if not number:
            assert os.read(heard, 1) == b"s"
    if patient and pause < ECHO:
        time.sleep(0.1)
        os.kill(child, signal.SIGKILL)
    code = ended(child)
    return code if code in (0, -signal.SIGKILL) or code > 0 else 128 - code


@needs_fork
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_lets_the_step_end_and_tells_the_exit_code(sent: int, code: int) -> None:
    assert exit_code(sent, patient=False) == code


@needs_fork
@pytest.mark.parametrize(
    ("first", "second", "code"),
    [(signal.SIGINT, signal.SIGINT, 130), (signal.SIGTERM, signal.SIGTERM, 143), (signal.SIGINT, signal.SIGTERM, 143)],
)
def test_a_second_signal_quits_at_once(first: int, second: int, code: int) -> None:
    assert exit_code(first, second, patient=True) == code


@needs_fork
def test_one_signal_that_arrives_twice_does_not_cost_the_save() -> None:
    assert exit_code(signal.SIGTERM, signal.SIGTERM, patient=True, pause=0.01) == -signal.SIGKILL  # it went on


def test_the_handlers_from_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with SignalGuard() as guard:
        assert signal.getsignal(signal.SIGTERM) == guard._caught
        assert guard.signal is None and guard.exit_code == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with SignalGuard() as guard:
            os.kill(os.getpid(), signal.SIGINT)
            assert guard.signal is None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_signal_says_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with SignalGuard() as guard:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert guard.exit_code == 143
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and "SIGTERM" in told and "saving" in told and "\x1b" not in told


def test_outside_the_main_thread_no_handler_is_touched() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with SignalGuard() as guard:
            seen.append((signal.getsignal(signal.SIGTERM), guard.signal))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1.0])
@pytest.mark.parametrize("norm", [math.nan, math.inf, 1.0])
def test_a_step_is_good_only_if_loss_and_norm_are_finite(loss: float, norm: float) -> None:
    guard = FiniteGuard(3)
    good = loss == norm == 1.0
    assert guard.check(torch.tensor(loss), torch.tensor(norm)) is good
    assert (guard.total, guard.in_a_row) == (0 if good else 1, 0 if good else 1)


def test_bad_steps_in_a_row_end_the_run_and_single_ones_do_not() -> None:
    guard, one, bad = FiniteGuard(3), torch.tensor(1.0), torch.tensor(math.nan)
    for _ in range(10):
        assert not guard.check(bad, one) and not guard.check(one, bad) and guard.check(one, one)
    assert (guard.total, guard.in_a_row) == (20, 0)
    guard.check(bad, one)
    again = FiniteGuard(3)
    again.from_dict(guard.to_dict())
    again.check(bad, one)
    with pytest.raises(TrainingError, match="3 steps in a row.*learning_rate"):
        again.check(bad, one)
    assert again.total == 23


@pytest.mark.parametrize("state", [{}, {"total": 1}, {"total": "x", "in_a_row": 0}, {"total": None, "in_a_row": 0}])
def test_damaged_counts_are_refused(state: dict) -> None:
    with pytest.raises(CheckpointError, match="skipped steps"):
        FiniteGuard(3).from_dict(state)
