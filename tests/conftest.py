"""Fixtures shared by all tests: one thread, no user settings, and the real data where it is present."""

import os
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def quiet_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores are shared by the test workers: one thread each. Caches go to a temporary folder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setenv("HOMESPUN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real texts, vocabularies and checkpoints; the test is skipped where it is absent."""
    place = Path(os.environ.get("HOMESPUN_SHARED") or PROJECT.parent / "shared")
    if not (place / "data" / "MANIFEST.json").is_file():
        pytest.skip(f"no shared data at {place} (set HOMESPUN_SHARED)")
    return place / "data"
