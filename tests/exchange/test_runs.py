"""What is imported is a run like any other, and what was trained here leaves with its true figures."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer

import homespun as hs
from homespun.data.tokenizer import Tokenizer
from homespun.train.log import read_metrics
from tests.cli.conftest import Command, homespun, trained  # noqa: F401 - fixtures
from tests.exchange.models import load, make, save

KEPT = ("train.precision=fp32", "train.compile=off", "train.batch_tokens=256", "optimizer.learning_rate=0.001")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


def test_export_import_export_is_byte_equal(tmp_path: Path, homespun: Command) -> None:  # noqa: F811
    recipe = ("model.feed_forward.kind=swiglu", "model.width=32", "model.layers=2", "model.context=32", *KEPT)
    done = homespun(
        "train", "stories:60", "--steps", 3, "--out", tmp_path / "run", "--tokenizer", "bytes", "-q", *recipe
    )
    assert done.code == 0, done.err
    assert homespun("export", tmp_path / "run", "--to", "hf", tmp_path / "first").code == 0
    assert homespun("import", tmp_path / "first", "--out", tmp_path / "again").code == 0
    done = homespun("export", tmp_path / "again", tmp_path / "second", "--json")
    assert json.loads(done.out) == {"folder": str(tmp_path / "second"), "class": "Qwen3ForCausalLM", "step": 0}
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
            "chat_template.jinja", "special_tokens_map.json"} == contents(tmp_path / "first").keys()  # fmt: skip
    _check_card(tmp_path / "run", (tmp_path / "first" / "README.md").read_text())
    first, again = hs.load(tmp_path / "run"), hs.load(tmp_path / "again")
    assert first.generate("Once", seed=1, max_tokens=20) == again.generate("Once", seed=1, max_tokens=20)
    theirs = load(tmp_path / "first")
    x = torch.randint(256, (2, 30))
    with torch.no_grad():
        assert torch.equal(theirs(x).logits, first.model(x))


def _check_card(run: Path, card: str) -> None:
    """Every figure on the card is in the run's own files."""
    rows = read_metrics(run / "metrics.jsonl")
    measured = [row for row in rows if row.get("validation_loss") is not None][-1]
    last = [row for row in rows if row.get("tokens")][-1]
    said = dict(line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ") and line[2] != "|")
    assert said["trained on"] == "stories:60"
    assert said["step"] == "3"
    assert said["tokens read"] == f"{last['tokens']:,}"
    assert said["validation loss"].startswith(f"{measured['validation_loss']:.4f} ")
    assert said["validation bits per byte"].startswith(f"{measured['validation_bits_per_byte']:.4f} ")
    assert "time" in " ".join(said) and str(run) not in card


def test_an_imported_run_trains_on_and_resumes(tmp_path: Path, homespun: Command) -> None:  # noqa: F811
    folder, run = save(make("Qwen3Moe", 1), tmp_path / "theirs"), tmp_path / "run"
    assert homespun("import", folder, "--out", run, *KEPT).code == 0
    before = hs.load(run)
    assert homespun("info", run).code == 0 and homespun("plan", "--recipe", run, "--steps", 2).code == 0
    assert homespun("generate", run, "-p", "Once", "--max-tokens", 5).code == 0
    for steps in (2, 4):
        done = homespun("train", "stories:60", "--out", run, "--steps", steps, "-q")
        assert done.code == 0, done.err
    after = hs.load(run)
    assert after.step == 4 and after.tokenizer.identity == before.tokenizer.identity
    assert not torch.equal(after.model.head_weight, before.model.head_weight)
    assert after.summary()["validation"]["validation_loss"] < 20
    assert homespun("export", run, tmp_path / "out").code == 0
    x = torch.randint(256, (2, 30))
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out")(x).logits, after.model(x))
    assert "imported from theirs" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


def test_weights_that_were_trained_on_leave_as_fp32(tmp_path: Path, homespun: Command) -> None:  # noqa: F811
    save(make("Llama", 0), tmp_path / "full")
    save(load(tmp_path / "full", torch.bfloat16), tmp_path / "half")
    run = hs.import_model(tmp_path / "half", tmp_path / "run", *KEPT)
    hs.export(run, tmp_path / "untouched")
    assert homespun("train", "stories:60", "--out", tmp_path / "run", "--steps", 1, "-q").code == 0
    hs.export(tmp_path / "run", tmp_path / "trained")
    kinds = [json.loads((tmp_path / name / "config.json").read_text())["dtype"] for name in ("untouched", "trained")]
    assert kinds == ["bfloat16", "float32"]


def test_a_damaged_memory_is_named(tmp_path: Path, homespun: Command) -> None:  # noqa: F811
    hs.import_model(save(make("Llama", 0), tmp_path / "theirs"), tmp_path / "run")
    (tmp_path / "run" / "imported.json").write_text('{"source": 1}')
    ended = homespun("generate", tmp_path / "run")
    assert ended.code == 2 and "imported.json" in ended.err


def test_a_public_checkpoint_writes_the_published_text(shared: Path, tmp_path: Path, homespun: Command) -> None:  # noqa: F811
    golden = json.loads((shared / "stories260k" / "golden_greedy.json").read_text())
    original, run = shared / "stories260k" / "hf", tmp_path / "run"
    assert homespun("import", original, "--out", run).code == 0
    assert homespun("generate", run).out == golden["text"] + "\n"  # its own settings say not to sample
    bold = homespun("generate", run, "-t", 2, "--seed", 1).out
    assert bold != golden["text"] + "\n"
    first = golden["text"].split(".")[0]
    assert homespun("generate", run, "-p", first, "-t", 0, "--max-tokens", 60).out.startswith(golden["text"][:150])
    hs.export(run, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    theirs, text = AutoTokenizer.from_pretrained(tmp_path / "out"), "Once upon a time, Tim's café"
    assert theirs(text)["input_ids"] == AutoTokenizer.from_pretrained(original)(text)["input_ids"]
    assert theirs(text)["input_ids"] == [1, *Tokenizer.load(run).encode(text)]
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    for name in ("generation_config.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((original / name).read_text())


def test_a_run_of_no_class_is_refused_in_a_sentence(trained: Path, tmp_path: Path, homespun: Command) -> None:  # noqa: F811
    ended = homespun("export", trained, tmp_path / "out")
    assert ended.code == 2 and "model.feed_forward.kind = 'relu2'" in ended.err and ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
