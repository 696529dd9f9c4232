"""Retrievers of others are found through an entry point, and nothing but the asked-for kind is imported."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from homespun.errors import ConfigError, DataError
from homespun.retrieve import protocol
from homespun.retrieve.index import Index
from homespun.retrieve.protocol import GROUP, Meaning, Passage, open_retriever


class Echo:
    """A retriever that finds its own specification."""

    notes = ("an echo",)

    def __init__(self, spec: str, meaning: Meaning | None):
        self.spec = spec

    def retrieve(self, query: str, count: int) -> list[Passage]:
        return [Passage(f"{self.spec} {query}", "echo", str(number), 1 / number) for number in range(1, count + 1)]


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs two kinds: an echo, and one whose package is broken."""

    def entry_points(**asked: Any) -> list[EntryPoint]:
        assert asked == {"group": GROUP}
        return [
            EntryPoint("echo", f"{__name__}:Echo", GROUP),
            EntryPoint("broken", "no_such_package:open", GROUP),
            EntryPoint("index", f"{__name__}:Echo", GROUP),  # ours stays ours
        ]

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Echo.__module__])
    monkeypatch.setattr(protocol, "entry_points", entry_points)


@pytest.mark.usefixtures("plugins")
def test_a_kind_of_another_package_is_found() -> None:
    found = open_retriever("echo:a:b")
    assert found.retrieve("query", 2)[1] == Passage("a:b query", "echo", "2", 0.5)


@pytest.mark.usefixtures("plugins")
def test_a_file_is_our_index_whatever_its_name(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Index.build(notes, "echo:x")
    Index.build(notes, "plain")
    for place in ("echo:x", "plain", "index:plain", str(tmp_path / "plain")):
        assert isinstance(open_retriever(place), Index)
    with pytest.raises(DataError, match="There is no index missing"):
        open_retriever("missing")


@pytest.mark.usefixtures("plugins")
def test_an_unknown_kind_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no retriever of the kind 'ecko'.*Known: broken, echo, index"):
        open_retriever("ecko:x")


@pytest.mark.usefixtures("plugins")
def test_a_kind_that_cannot_be_imported_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="'broken' cannot be imported: No module named 'no_such_package'"):
        open_retriever("broken:x")
