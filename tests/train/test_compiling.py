"""Compiled training steps equal eager ones, are taken only where they repay, and never stop a run."""

import os
from pathlib import Path

import pytest
import torch

from homespun.train.compiling import Compiling
from homespun.train.machine import available_cores
from homespun.train.rehearsal import Rehearsal, compiled_folder
from tests.train.house import RECIPE, trainer

CPU = torch.device("cpu")


@pytest.mark.slow
def test_compiled_equals_eager(tmp_path):
    settings = ("model.dropout=0", "train.steps=5")
    eager = trainer(tmp_path / "eager", *settings)
    compiled = trainer(tmp_path / "compiled", *settings, "train.compile=on")
    assert compiled.updater.compiling.active
    for _ in range(3):
        one, other = eager.step(), compiled.step()
        torch.testing.assert_close(one.loss / one.count, other.loss / other.count, atol=1e-5, rtol=1e-5)
    assert compiled.updater.compiling.active, "the compile failed, and eager was compared with eager"
    assert compiled.validation(compiled.model, compiled.updater.precision)  # evaluations run eager


def test_a_failing_compile_falls_back_with_one_line(tmp_path):
    notes = []
    run = trainer(tmp_path, "train.compile=on")
    run.updater.compiling.note = notes.append

    def broken(*given):
        from torch._dynamo.exc import BackendCompilerFailed

        raise BackendCompilerFailed(lambda: None, RuntimeError("no compiler here\nand much more"), None)

    run.updater.compiling.forward = broken
    assert run.fit().steps == RECIPE.train.steps
    assert not run.updater.compiling.active
    assert len(notes) == 1 and "\n" not in notes[0] and "going on without" in notes[0]


def test_an_error_of_the_model_is_not_taken_for_one_of_the_compiler(tmp_path):
    run = trainer(tmp_path, "train.compile=on")

    def broken(*given):
        raise RuntimeError("the model is wrong")

    run.updater.compiling.forward = broken
    with pytest.raises(RuntimeError, match="the model is wrong"):
        run.step()


class Acted:
    """Stands for a rehearsal."""

    ready = running = started = stopped = False
    failed = ""

    def start(self) -> bool:
        self.started = self.running = True
        return True

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr("homespun.train.compiling.shutil.which", lambda name: f"/usr/bin/{name}")


def test_auto_compiles_long_runs_only(tmp_path, compiler):
    model, notes = trainer(tmp_path).model, []
    compiling = Compiling("auto", model, notes.append)
    assert not compiling.consider(30.0, CPU) and not compiling.active and not notes
    assert compiling.consider(3600.0, CPU) and compiling.active and len(notes) == 1
    assert not compiling.consider(3600.0, CPU)  # only once
    off = Compiling("off", model, notes.append)
    assert not off.consider(1e9, CPU) and not off.active


def test_auto_rehearses_first_and_changes_over_when_that_is_done(tmp_path, compiler):
    model, notes, rehearsal = trainer(tmp_path).model, [], Acted()
    compiling = Compiling("auto", model, notes.append, rehearsal)
    assert not compiling.consider(30.0, CPU) and not rehearsal.started
    assert compiling.consider(3600.0, CPU) and rehearsal.started and not compiling.active
    assert not compiling.consider(3600.0, CPU)  # at work
    rehearsal.running, rehearsal.ready = False, True
    assert not compiling.consider(5.0, CPU)  # too late
    assert compiling.consider(60.0, CPU) and compiling.active
    compiling.close()
    assert rehearsal.stopped and len(notes) == 2


def test_a_failed_rehearsal_ends_it(tmp_path, compiler):
    notes, rehearsal = [], Acted()
    compiling = Compiling("auto", trainer(tmp_path).model, notes.append, rehearsal)
    rehearsal.failed = "exit status 1"
    assert compiling.consider(3600.0, CPU) and not compiling.active and "exit status 1" in notes[0]
    assert not compiling.consider(3600.0, CPU) and len(notes) == 1


def test_the_switch_for_plain_paths_turns_it_off(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMESPUN_PLAIN", "1")
    assert not Compiling("on", trainer(tmp_path).model, print).active


@pytest.mark.parametrize(
    ("given", "kept"), [("", "ours"), ("torchinductor_someone", "ours"), ("elsewhere", "elsewhere")]
)
def test_where_compiled_code_is_kept(tmp_path, monkeypatch, given, kept):
    monkeypatch.setenv("HOMESPUN_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
    folder = tmp_path / "compiled" if kept == "ours" else Path(kept)
    assert compiled_folder() == folder and os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)


def test_a_rehearsal_leaves_a_core_and_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    rehearsal, threads = Rehearsal(RECIPE, 2, "fp32"), torch.get_num_threads()
    assert rehearsal.start() and rehearsal.running and not rehearsal.ready
    assert torch.get_num_threads() <= max(1, threads - 1) or threads < available_cores()
    child = rehearsal.process
    rehearsal.stop()
    assert child.poll() is not None and not rehearsal.running and torch.get_num_threads() == threads


@pytest.mark.slow
def test_a_rehearsal_makes_the_compile_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = trainer(tmp_path / "run").recipe
    rehearsal = Rehearsal(model, 2, "fp32")
    assert rehearsal.start()
    assert rehearsal.process.wait(timeout=300) == 0
    assert rehearsal.ready and not rehearsal.failed
    assert Rehearsal(model, 2, "fp32").ready and not Rehearsal(model, 4, "fp32").ready
