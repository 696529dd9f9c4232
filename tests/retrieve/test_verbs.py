"""Index, generate and chat on the command line, and the server: passages are used, and their sources told."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import homespun as hs
from homespun.cli.main import main
from homespun.errors import ConfigError
from homespun.retrieve.index import Index
from homespun.retrieve.prompt import Grounding
from homespun.serve.app import build
from homespun.serve.house import House
from homespun.serve.limits import Limits
from homespun.serve.retrieving import ServedMeaning
from homespun.serve.served import open_runs

SMALL = ("model.width=32", "model.layers=1", "model.attention.heads=2", "model.context=256", "train.batch_tokens=512",
         "train.steps=2", "train.precision=fp32", "train.compile=off", "tokenizer.kind=bytes")  # fmt: skip
ASKED = "Where does the fox sleep?"
FOUND = "# Foxes\n\nThe fox sleeps in the old barn."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows nothing."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMESPUN_CACHE", str(place / "cache"))
        hs.train("stories:40", hs.recipe("house-tiny", *SMALL), out=place / "mine")
    return place / "mine"


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return (int(end.value.code or 0), *capsys.readouterr())


def test_generate_reads_passages_and_tells_their_sources(
    run: Path, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, more = tmp_path / "notes.index", ("--max-tokens", 8, "--seed", 1)
    code, out, _ = call(capsys, "index", notes, "--out", index, "--run", run)
    assert code == 0 and "Passages: 4, found by words, and by meaning" in out and "Sources: 3." in out
    asked = ("generate", run, "-p", ASKED, *more)
    code, out, err = call(capsys, *asked, "--retrieve", index, "--passages", 1)
    assert code == 0 and re.search(r"^\[1\] \S+:1 \(score 0\.\d{4}\)$", err, re.MULTILINE) and "[2]" not in err
    assert out.startswith(ASKED) and "barn" not in out
    assert call(capsys, *asked, "--retrieve", index, "--passages", 1, "--stream")[1:] == (out, err)
    record = json.loads(call(capsys, *asked, "--retrieve", index, "--passages", 1, "--json")[1])
    assert record["prompt"] == ASKED and out == ASKED + record["text"] + "\n"
    (passage,) = record["retrieved"]
    assert passage.keys() == {"source", "place", "score", "text"}
    read = f"{passage['text']}\n\n{ASKED}"  # the same text comes from the same prompt written out
    assert call(capsys, "generate", run, "-p", read, *more)[1] == f"{read}{record['text']}\n"


def test_chat_tells_its_sources(
    run: Path, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.build(notes, tmp_path / "i")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ASKED}\nzebra\n"))
    code, _, err = call(capsys, "chat", run, "--retrieve", tmp_path / "i", "--max-tokens", 4, "--seed", 1)
    assert code == 0 and err.count("sources: fox.md:1") == 1
    assert err.count("note: no passage is used: none was found") == 1


def test_another_run_is_told_that_the_vectors_are_not_its(
    run: Path, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Other:
        identity = "other"

        def embed(self, texts: list[str]) -> Any:
            return hs.load(run).embed(texts)

    from homespun.retrieve.build import build as make

    make([notes], tmp_path / "i", Other())
    code, _, err = call(capsys, "generate", run, "-p", ASKED, "--retrieve", tmp_path / "i", "--max-tokens", 2)
    assert code == 0 and err.count("were made by another model") == 1 and "[1] fox.md:1" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--passages", 2), "--passages says how many --retrieve finds"),
        (("--retrieve", "nowhere"), "There is no index nowhere"),
        (("--retrieve", "wiki:x"), "There is no retriever of the kind 'wiki'"),
    ],
)
def test_a_mistake_is_one_sentence(run: Path, capsys: pytest.CaptureFixture[str], words: Any, told: str) -> None:
    code, _, err = call(capsys, "generate", run, "-p", ASKED, *words)
    assert code == 2 and told in err and "Traceback" not in err


def served(run: Path, index: Path | None, **settings: int) -> TestClient:
    limits = Limits(**settings)
    runs = open_runs([run], "last", None, limits)
    if index is not None:
        model = runs.model("mine")
        model.grounding = Grounding(Index(index, ServedMeaning(model)), 1)
    return TestClient(build(House(runs, limits)), base_url="http://127.0.0.1")


def test_the_server_tells_what_it_retrieved(run: Path, notes: Path, tmp_path: Path) -> None:
    Index.build(notes, tmp_path / "i", hs.load(run))  # so the question is embedded in the writing thread
    fields = {"model": "mine", "max_tokens": 6, "seed": 1, "temperature": 0}
    with served(run, tmp_path / "i") as client:
        plain = client.post("/v1/completions", json=fields | {"prompt": ASKED, "retrieve": False}).json()
        assert "retrieved" not in plain
        whole = client.post("/v1/completions", json=fields | {"prompt": [ASKED, [65, 66]], "echo": True}).json()
        (passage,) = whole["retrieved"]
        assert passage.keys() == {"prompt", "source", "place", "score", "text"} and passage["prompt"] == 0
        assert whole["choices"][0]["text"].startswith(ASKED)
        read = f"{passage['text']}\n\n{ASKED}"
        again = client.post("/v1/completions", json=fields | {"prompt": read, "retrieve": False}).json()
        assert whole["choices"][0]["text"] == ASKED + again["choices"][0]["text"]
        said = {"messages": [{"role": "user", "content": ASKED}], "n": 2}
        chat = client.post("/v1/chat/completions", json=fields | said).json()
        told = client.post("/v1/chat/completions", json=fields | said | {"stream": True}).text
        events = [json.loads(line.removeprefix("data: ")) for line in told.split("\n\n")[:-2]]
        assert chat["retrieved"] and events[-1]["retrieved"] == chat["retrieved"]
        assert not any("retrieved" in event for event in events[:-1])
        silent = client.post("/v1/chat/completions", json=fields | {"messages": [{"role": "system", "content": "x"}]})
        assert silent.json()["retrieved"] == []
    with served(run, None) as client:
        answer = client.post("/v1/completions", json=fields | {"prompt": ASKED, "retrieve": True})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "retrieve"


def test_passages_never_go_beyond_the_servers_limit(run: Path, notes: Path, tmp_path: Path) -> None:
    Index.build(notes, tmp_path / "i")
    with served(run, tmp_path / "i", prompt_tokens=len(ASKED) + 10) as client:
        answer = client.post("/v1/completions", json={"model": "mine", "prompt": ASKED, "max_tokens": 2})
    assert answer.status_code == 200 and answer.json()["retrieved"] == []


def test_python_does_the_same(run: Path, notes: Path, tmp_path: Path) -> None:
    loaded = hs.load(run)
    index = hs.Index.build(notes, tmp_path / "i", loaded)
    found = hs.Grounding(index, passages=4).prompt(ASKED, loaded.generator, max_tokens=8)
    assert FOUND in found.prompt and found.prompt.endswith(f"\n\n{ASKED}")
    assert [passage.source for passage in found.passages or ()] == [
        passage.source for passage in index.retrieve(ASKED, 4)
    ]
    with pytest.raises(ConfigError):
        hs.Grounding(index, passages=0)
