"""Every command of the guides to writing text does what it says: each is run, in a folder with a small trained run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import homespun as hs
from homespun.cli.main import main

DOCS = Path(__file__).parent.parent / "docs"
SMALL = ("model.width=32", "model.layers=1", "model.attention.heads=2", "model.context=64", "train.batch_tokens=128",
         "train.steps=4", "train.precision=fp32", "train.compile=off", "tokenizer.kind=bytes")  # fmt: skip


def commands(page: str) -> list[str]:
    """The command lines of a page; those that end in a backslash are joined."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands find the runs that the guides speak of."""
    folder = tmp_path_factory.mktemp("guides")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMESPUN_CACHE", str(folder / "cache"))
        for name in ("mine", "small", "large"):
            hs.train("stories:40", hs.recipe("house-tiny", *SMALL), out=folder / "runs" / name)
    (folder / "notes.txt").write_text("Once upon a time\n", encoding="utf-8")
    schema = {"type": "object", "properties": {"name": {"enum": ["Ann", "Ben"]}}, "required": ["name"]}
    (folder / "person.json").write_text(json.dumps(schema), encoding="utf-8")
    return folder


@pytest.mark.parametrize("line", commands("generation.md"))
def test_a_command_of_the_guide_to_writing_works(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = shlex.split(line, comments=True)
    if words[0] != "homespun":
        subprocess.run(["bash", "-ec", line], check=True)
        return
    with pytest.raises(SystemExit) as end:
        main(words[1:])
    out, err = capfd.readouterr()
    assert not end.value.code and out.strip(), err


def test_the_python_of_the_guide_to_writing_works(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    text = (DOCS / "generation.md").read_text(encoding="utf-8")
    names = {"hs": hs}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/generation.md", "exec"), names)
    assert names["run"].generator.weights == "int8"  # the last of them was run, too


def test_the_guides_have_commands() -> None:
    assert len(commands("generation.md")) > 5
