"""The small run that the tests of learning copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.learn import learners


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run; to be copied, not changed."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMESPUN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return learners.trained(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    """A run of the test's own."""
    return learners.copy(base, tmp_path / "run")
