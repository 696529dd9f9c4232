"""The Python interface does what the command line does."""

import json

import pytest
import torch

import homespun as hs
from homespun.errors import CheckpointError, ConfigError

SMALL = ("model.width=32", "model.layers=1", "model.attention.heads=2", "model.context=32", "train.batch_tokens=128",
         "train.steps=8", "train.precision=fp32", "train.compile=off", "tokenizer.kind=bytes")  # fmt: skip


def quick(*more: str) -> hs.Recipe:
    return hs.recipe("house-tiny", *SMALL, *more)


@pytest.fixture
def run(tmp_path, capsys):
    return hs.train("stories:40", quick(), out=tmp_path / "run")


def test_the_example_of_the_readme(run, tmp_path):
    again = hs.load(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), run.model.parameters(), strict=True))
    tokens = torch.tensor([again.tokenizer.encode("text")])
    assert again.model(tokens).shape == (1, tokens.size(1), again.tokenizer.vocab_size)
    text = again.generate("Once", max_tokens=20, temperature=0.8, top_p=0.95, seed=1)
    assert text == run.generate("Once", max_tokens=20, temperature=0.8, top_p=0.95, seed=1)
    assert "".join(again.stream("Once", max_tokens=20, temperature=0.8, top_p=0.95, seed=1)) == text
    assert len(again.generate(["Once", "There was a"], max_tokens=5, seed=1)) == 2
    assert hs.Decoder(again.recipe.model)(tokens).shape == (1, tokens.size(1), 260)
    assert hs.load(tmp_path / "run", checkpoint="best").step == hs.load(tmp_path / "run", checkpoint="8").step == 8


def test_the_folder_holds_the_whole_story(run):
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "recipe.yaml", "tokenizer.json", "environment.json", "metrics.jsonl", "samples.jsonl", "report.html",
        "checkpoints",
    }  # fmt: skip
    summary = run.summary()
    assert summary["step"] == 8 and summary["parameters"] == sum(p.numel() for p in run.model.parameters())
    assert summary["environment"]["data"] == ["stories:40"]
    json.dumps(summary)


def test_the_same_call_continues_a_run(tmp_path):
    place = tmp_path / "run"
    hs.train("stories:40", quick("train.steps=4"), out=place)
    assert hs.load(place).step == 4
    assert hs.train("stories:40", quick(), out=place, resume=True).step == 8


def test_resume_insists_on_a_run(tmp_path):
    with pytest.raises(CheckpointError, match="no run"):
        hs.train("stories:40", quick(), out=tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_other_settings_or_text_do_not_continue_a_run(run):
    with pytest.raises(CheckpointError, match=r"model.width = 32, not 48"):
        hs.train("stories:40", quick("model.width=48"), out=run.folder)
    with pytest.raises(CheckpointError, match="other text"):
        hs.train("stories:50", quick(), out=run.folder)
    assert hs.load(run.folder).step == 8


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.doc").write_text("ten years")
    with pytest.raises(ConfigError, match="holds no run"):
        hs.train("stories:40", quick(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_a_missing_run_names_those_that_are_there(run, tmp_path):
    with pytest.raises(CheckpointError, match="run"):
        hs.load(tmp_path / "rum")


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="model.vocab = 100"):
        hs.train("stories:40", quick("model.vocab=100"), out=tmp_path / "run")


def test_a_larger_vocabulary_is_never_written(tmp_path):
    run = hs.train("stories:40", quick("model.vocab=1000"), out=tmp_path / "run")
    records = run.records(["Once"], count=3, max_tokens=50, temperature=5.0, seed=0)
    assert max(token.id for record in records for token in record.tokens) < run.tokenizer.vocab_size


def test_budgets_given_replace_those_of_the_recipe():
    recipe = hs.recipe("kimbho-v1", "train.steps=5")
    assert (recipe.train.steps, recipe.train.epochs) == (5, None)
    both = hs.recipe("kimbho-v1", "train.steps=5", "train.minutes=1")
    assert (both.train.steps, both.train.minutes, both.train.epochs) == (5, 1, None)


def test_recipes_come_from_files_and_runs(tmp_path, run):
    (tmp_path / "mine.yaml").write_text("base: gpt2-nano\nmodel:\n  layers: 3\noptimizer:\n  learning_rate: 1e-3\n")
    recipe = hs.recipe(tmp_path / "mine.yaml", "model.width=64")
    assert (recipe.name, recipe.model.layers, recipe.model.width, recipe.train.steps) == ("mine", 3, 64, 2000)
    assert recipe.optimizer.learning_rate == 1e-3
    assert hs.recipe(str(run.folder)) == run.recipe
    with pytest.raises(ConfigError, match="house-tiny"):
        hs.recipe("house-tinny")
    (tmp_path / "bad.yaml").write_text("model: {wdith: 3}")
    with pytest.raises(ConfigError, match="width"):
        hs.recipe(tmp_path / "bad.yaml")
    (tmp_path / "bomb.yaml").write_text("a: &a [x]\nb: *a")
    with pytest.raises(ConfigError, match="alias"):
        hs.recipe(tmp_path / "bomb.yaml")
    (tmp_path / "tag.yaml").write_text("model: !!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="YAML"):
        hs.recipe(tmp_path / "tag.yaml")


def test_a_plan_tells_costs_and_time():
    plan = hs.plan(quick(), measure=True)
    assert plan.fits and plan.seconds_per_step > 0 and plan.steps == 8 and plan.seconds > 0
    assert dict(plan.table())["will it fit?"].startswith("yes")
    huge = hs.plan(hs.recipe("alen-xl", "model.layers=1000", "model.width=8192", "train.steps=1"))
    assert not huge.fits and huge.seconds_per_step is None


def test_a_plan_of_a_large_model_is_measured_on_few_rows(monkeypatch):
    """A whole micro-batch of GPT-2 would take a laptop a quarter of an hour."""
    from homespun.train import estimate

    tried = []
    monkeypatch.setattr(estimate, "available_memory", lambda device: 2**40)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(estimate, "_measure", lambda recipe, micro, *_: tried.append(micro) or ("fp32", 1.0))
    for name in ("gpt2", "gpt2-nano"):
        plan = hs.plan(name)
    assert hs.plan("gpt2").rows_at_a_time > 100 and tried[:2] == [1, plan.rows_at_a_time]


def test_a_model_that_cannot_fit_is_refused_before_anything_is_allocated(tmp_path):
    with pytest.raises(ConfigError, match="needs about .* TB"):
        hs.train("stories:40", quick("model.width=65536", "model.layers=900"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
