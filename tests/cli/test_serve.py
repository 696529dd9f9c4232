"""`homespun serve`: limits that are impossible."""

from __future__ import annotations

import pytest

from homespun.cli.serve import OPTIONS
from tests.cli.conftest import Command


@pytest.mark.parametrize("option", [*(f"--{name}" for name in OPTIONS.values()), "--queue", "--grace", "--connections"])
def test_an_impossible_limit_is_named_as_it_was_given(homespun: Command, option: str) -> None:
    pytest.importorskip("uvicorn")
    done = homespun("serve", "run", option, -1)
    assert done.code == 2 and done.err.startswith(f"Error: {option} = -1")
    assert f"Change {option} and try again" in done.err
