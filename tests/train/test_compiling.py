"""Compiled training steps equal eager ones, are taken only where they repay, and never stop a run."""

import pytest
import torch

from homespun.train.compiling import Compiling
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

    run.updater.compiling.hidden = broken
    assert run.fit().steps == RECIPE.train.steps
    assert not run.updater.compiling.active
    assert len(notes) == 1 and "\n" not in notes[0] and "going on without" in notes[0]


def test_an_error_of_the_model_is_not_taken_for_one_of_the_compiler(tmp_path):
    run = trainer(tmp_path, "train.compile=on")

    def broken(*given):
        raise RuntimeError("the model is wrong")

    run.updater.compiling.hidden = broken
    with pytest.raises(RuntimeError, match="the model is wrong"):
        run.step()


def test_auto_compiles_long_runs_only(tmp_path):
    model, notes = trainer(tmp_path).model, []
    compiling = Compiling("auto", model, notes.append)
    assert not compiling.consider(30.0, CPU) and not compiling.active and not notes
    if compiling.consider(3600.0, CPU):  # false where there is no compiler
        assert compiling.active and len(notes) == 1
        assert not compiling.consider(3600.0, CPU)  # only once
    off = Compiling("off", model, notes.append)
    assert not off.consider(1e9, CPU) and not off.active
