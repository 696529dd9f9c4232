"""`homespun tune`: answers are learnt, from Python and from the command line; a run that is stopped goes on exactly."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import homespun as hs
from homespun.config import override
from homespun.errors import CheckpointError, ConfigError, DataError
from homespun.generate.dialogue import Dialogue
from homespun.generate.template import Plain, Trained, template_of
from homespun.learn.tune import FEW, few_steps, tuned_recipe
from homespun.model.lora import LoRA
from homespun.train.checkpoint import Checkpoints
from homespun.train.log import PlainConsole, read_metrics

QUIET = PlainConsole(quiet=True)
FAST = ("train.batch_tokens=256", "train.precision=fp32")
STEADY = ("optimizer.schedule.kind=constant", "model.dropout=0.1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    """A very small run that has read a few stories."""
    small = ("model.width=32", "model.layers=1", "model.context=32", "train.compile=off", "tokenizer.kind=bytes")
    recipe = hs.recipe("house-tiny", *small, *FAST, "train.steps=3")
    return hs.train("stories:50", recipe, out=tmp_path_factory.mktemp("runs") / "base", console=QUIET)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Questions that all have the same answer."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{n}", "completion": "yes"}) + "\n" for n in range(60)))
    return str(path)


def weights(folder: Path, file: str = "model") -> dict[str, torch.Tensor]:
    checkpoints = Checkpoints(folder / "checkpoints")
    return checkpoints.read(checkpoints.find("last", lambda note: None), only=(file,))[0][file]


def validation(folder: Path) -> list[dict]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if "validation_loss" in row]


def test_a_tuned_run_answers(base: hs.Run, rows: str, tmp_path: Path) -> None:
    rate = "optimizer.learning_rate=0.02"
    tuned = hs.tune(base, rows, tmp_path / "run", *FAST, rate, "train.steps=60", console=QUIET)
    first, *_, last = validation(tmp_path / "run")
    assert first["step"] == 0 and last["validation_loss"] < 0.2 * first["validation_loss"]
    template = template_of(tuned)
    assert isinstance(template, Trained) and isinstance(template_of(base), Plain)
    assert "".join(Dialogue(tuned.generator, template, hs.Sampling(temperature=0)).reply("q77")) == "yes"
    assert tuned.result is not None and tuned.result.steps == 60 and (tmp_path / "run" / "report.html").is_file()


def test_an_adapter_learns(base: hs.Run, rows: str, tmp_path: Path) -> None:
    """As far as the small frozen embeddings of a base that has seen three steps let it."""
    rate = "optimizer.learning_rate=0.05"
    hs.tune(base, rows, tmp_path / "run", *FAST, rate, "train.steps=30", lora=4, console=QUIET)
    first, *_, last = validation(tmp_path / "run")
    assert first["step"] == 0 and last["validation_loss"] < first["validation_loss"] - 0.5


def test_before_tuning_stands_the_base_itself(base: hs.Run, rows: str, tmp_path: Path) -> None:
    for number, lora in enumerate((None, 2)):
        hs.tune(base, rows, tmp_path / str(number), *FAST, "train.steps=1", lora=lora, console=QUIET)
    one, other = (validation(tmp_path / name)[0] for name in "01")
    assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-5)
    from homespun.learn.conversations import read_conversations
    from homespun.objectives.next_token import NextToken

    found = read_conversations([rows], base.tokenizer, 32, 0.1)
    losses = [NextToken().build()(base.model, batch) for _, batch in found.validation(32, 8)]
    expected = sum(float(each.loss) for each in losses) / sum(each.count for each in losses)
    assert one["validation_loss"] == pytest.approx(expected, rel=1e-5)
    assert one["validation_bits_per_byte"] == pytest.approx(
        sum(float(each.loss) for each in losses) / 0.6931471805599453 / (3 * len(found.valid.lengths)), rel=1e-5
    )


@pytest.mark.parametrize("lora", [None, 2])
def test_a_stopped_run_goes_on_exactly(base: hs.Run, rows: str, tmp_path: Path, lora: int | None) -> None:
    settings = (*FAST, *STEADY)
    hs.tune(base, rows, tmp_path / "once", *settings, "train.steps=8", lora=lora, console=QUIET)
    hs.tune(base, rows, tmp_path / "twice", *settings, "train.steps=3", lora=lora, console=QUIET)
    hs.tune(base, rows, tmp_path / "twice", *settings, "train.steps=8", lora=lora, console=QUIET)
    for file in ("model", "optimizer", *(["adapter"] if lora else [])):
        one, other = weights(tmp_path / "once", file), weights(tmp_path / "twice", file)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    steps = [row["step"] for row in validation(tmp_path / "twice")]
    assert steps == sorted(set(steps)) and steps[0] == 0


@pytest.mark.parametrize("lora", [None, 2])
def test_steps_do_not_depend_on_how_many_rows_are_computed_at_a_time(
    base: hs.Run, rows: str, tmp_path: Path, lora: int | None
) -> None:
    for name in ("train.micro_batch=100", "train.micro_batch=3"):
        hs.tune(base, rows, tmp_path / name, *FAST, "train.steps=3", name, lora=lora, console=QUIET)
    one, other = weights(tmp_path / "train.micro_batch=100"), weights(tmp_path / "train.micro_batch=3")
    assert all(torch.allclose(one[name], other[name], atol=2e-5) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--lora", "2")], ids=["all", "adapter"])
def test_two_processes_tune_as_one(base: hs.Run, rows: str, tmp_path: Path, words: tuple[str, ...]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    settings = (*FAST, "model.dropout=0", "train.batch_tokens=200", "--steps", "4", *words)
    command = [sys.executable, "-m", "homespun", "tune", str(base.folder), rows, *settings]
    ranks = [os.environ | group | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    processes = [subprocess.Popen([*command, "--out", str(tmp_path / "two")], env=rank) for rank in ranks]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    subprocess.run([*command, "--out", str(tmp_path / "one")], check=True, timeout=200)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    losses = [[row["validation_loss"] for row in validation(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) > 2


def test_the_base_stays_as_it_was(base: hs.Run, rows: str, tmp_path: Path) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(base.folder.rglob("*")) if path.is_file()}

    before, model = content(), {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    for lora in (None, 2):
        hs.tune(base, rows, tmp_path / str(lora), *FAST, "train.steps=2", lora=lora, console=QUIET)
    assert content() == before
    assert all(torch.equal(tensor, model[name]) for name, tensor in base.model.state_dict().items())


def test_evaluate_measures_answers_as_tuning_does(base: hs.Run, rows: str, tmp_path: Path) -> None:
    held = ("data.validation_fraction=0.5", "train.evaluate_tokens=100000")
    hs.tune(base, rows, tmp_path / "run", *FAST, *held, "train.steps=1", console=QUIET)
    from homespun.learn.conversations import read_conversations

    kept = read_conversations([rows], base.tokenizer, 32, 0.5).valid
    texts = [base.tokenizer.decode(part.tolist(), special=True) for part in np.split(kept.tokens, kept.starts[1:])]
    questions = [re.search(r"q\d+", text)[0] for text in texts]
    (tmp_path / "held.jsonl").write_text(
        "".join(json.dumps({"prompt": question, "completion": "yes"}) + "\n" for question in questions)
    )
    found = base.evaluate([tmp_path / "held.jsonl"])
    first = validation(tmp_path / "run")[0]
    assert found["answers"]["loss"] == pytest.approx(first["validation_loss"], rel=1e-5)
    assert found["answers"]["bits_per_byte"] == pytest.approx(first["validation_bits_per_byte"], rel=1e-5)
    assert found["answers"]["bytes"] == 3 * len(questions) < found["text"]["bytes"]
    assert "answers" not in base.evaluate(["stories:20"])


def test_few_steps_are_told(base: hs.Run, rows: str, tmp_path: Path) -> None:
    hs.tune(base, rows, tmp_path / "run", *FAST, console=QUIET)
    advice = [row["advice"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "advice" in row]
    assert len(advice) == 1 and re.match(r"\d steps are few to learn in: .* train.batch_tokens=128\.", advice[0])
    assert few_steps(FEW, 4096) is None and few_steps(None, 4096) is None
    assert "batch_tokens=256" in (few_steps(5, 4096) or "")


def test_an_adapter_on_a_base_that_knows_no_end_is_advised_against(base: hs.Run, rows: str, tmp_path: Path) -> None:
    other = hs.load(base.folder)
    with torch.no_grad():
        other.model.head_weight[other.tokenizer.end] = 1.001 * other.model.head_weight[7]
    said = {}
    for name, run, lora in (("known", base, 2), ("unknown", other, 2), ("all", other, None)):
        hs.tune(run, rows, tmp_path / name, *FAST, "train.steps=1", lora=lora, console=QUIET)
        said[name] = [row["advice"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if "advice" in row]
    assert not said["known"] and not said["all"]
    assert len(said["unknown"]) == 1 and "never learnt the token that ends" in said["unknown"][0]


def test_the_report_says_how_the_base_answered(base: hs.Run, rows: str, tmp_path: Path) -> None:
    hs.tune(base, rows, tmp_path / "run", *FAST, "train.steps=1", console=QUIET)
    page = (tmp_path / "run" / "report.html").read_text()
    first = f"{validation(tmp_path / 'run')[0]['validation_bits_per_byte']:.3f}"
    assert re.search(rf"<dt>Before tuning</dt>\s*<dd>{first}", page)
    assert f"homespun tune {base.folder} {rows} --out {tmp_path / 'run'}-again" in page
    base.report()
    page = (base.folder / "report.html").read_text()
    assert "Before tuning" not in page and "homespun tune" not in page


def test_an_adapter_changes_its_layers_alone(base: hs.Run, rows: str, tmp_path: Path) -> None:
    lora = LoRA(rank=2, targets=("q_proj", "v_proj"))
    hs.tune(base, rows, tmp_path / "run", *FAST, "train.steps=3", lora=lora, console=QUIET)
    before, after = weights(base.folder), weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert moved == {f"model.layers.0.self_attn.{name}.weight" for name in ("q_proj", "v_proj")}
    a, b = (weights(tmp_path / "run", "adapter")[f"model.layers.0.self_attn.q_proj.lora_{x}"] for x in "AB")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(after[name], before[name] + lora.scale * b @ a, atol=1e-6)
    assert hs.load(tmp_path / "run").recipe.tuned == hs.recipe(tmp_path / "run").tuned


def test_a_tuned_run_can_be_tuned_again(base: hs.Run, rows: str, tmp_path: Path) -> None:
    once = hs.tune(base, rows, tmp_path / "once", *FAST, "train.steps=2", console=QUIET)
    twice = hs.tune(tmp_path / "once", rows, tmp_path / "twice", *FAST, "train.steps=2", lora=2, console=QUIET)
    assert twice.recipe.tuned is not None and twice.recipe.tuned.base == str(once.folder)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.layers=2", "neither architecture nor tokenizer"),
        ("tokenizer.kind=chars", "neither architecture nor tokenizer"),
        ("objective.kind=joint", "objective.kind = joint"),
    ],
)
def test_what_tuning_cannot_change(base: hs.Run, rows: str, tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hs.tune(base, rows, tmp_path / "run", setting, console=QUIET)
    assert not (tmp_path / "run").exists()


def test_mistakes_are_told(base: hs.Run, rows: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the run that is to be tuned"):
        hs.tune(base, rows, base.folder, console=QUIET)
    with pytest.raises(ConfigError, match="'w_proj'"):
        hs.tune(base, rows, tmp_path / "a", lora=LoRA(targets=("w_proj",)), console=QUIET)
    with pytest.raises(ConfigError, match=r"data\.mixture"):
        hs.tune(base, rows, tmp_path / "a", "data.mixture.x.source=stories:20", console=QUIET)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="qk_clip"):
        hs.tune(base, rows, tmp_path / "b", "optimizer.qk_clip=10", lora=2, console=QUIET)
    with pytest.raises(DataError, match="no answer"):
        hs.tune(base, "stories:20", tmp_path / "c", console=QUIET)
    hs.tune(base, rows, tmp_path / "d", *FAST, "train.steps=1", console=QUIET)
    with pytest.raises(CheckpointError, match="adapter"):
        hs.tune(base, rows, tmp_path / "d", *FAST, "train.steps=1", lora=2, console=QUIET)


def test_the_recipe_says_what_it_was_tuned_from(base: hs.Run) -> None:
    recipe = tuned_recipe(base, LoRA(rank=4))
    assert recipe.optimizer.schedule.factor(10, 100) == 1  # a tenth of the run is warm-up, however short it is
    assert recipe.tuned is not None and recipe.tuned.step == base.step == 3
    assert override(recipe, []) == recipe  # it can be written and read


def test_the_command_line(base: hs.Run, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from homespun.cli.main import main

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        return int(end.value.code or 0), *capsys.readouterr()

    out = tmp_path / "answers"
    command = ("tune", base.folder, rows, "--out", out, "--lora", 2, "--targets", " q_proj,", *FAST)
    assert "Trained 1 step in" in call(*command, "--steps", 1)[1]
    code, said, _ = call(*command, "--steps", 2)
    assert code == 0 and "2 steps" in said and "before" in said and f"homespun chat {out}" in said
    lora = hs.load(out).recipe.tuned.adapter
    assert lora == LoRA(rank=2, targets=("q_proj",))
    code, said, _ = call(*command, "--steps", 3, "--json")
    assert code == 0 and json.loads(said)["step"] == 3
    code, _, told = call("tune", base.folder, rows, "--alpha", 3)
    assert code == 2 and "--lora 8" in told
    code, _, told = call("tune", base.folder, rows, "--lora", 2, "--targets", ",")
    assert code == 2 and "names no layer" in told
    code, _, told = call("tune", base.folder)
    assert code == 2 and "No file of answers" in told


def test_chat_hints_at_tuning_for_a_base_model_only(base: hs.Run, rows: str, tmp_path: Path) -> None:
    tuned = hs.tune(base, rows, tmp_path / "run", *FAST, "train.steps=1", console=QUIET)
    assert template_of(tuned).conversational and not template_of(base).conversational
    assert template_of(hs.load(tmp_path / "run")).conversational
