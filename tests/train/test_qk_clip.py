"""QK-Clip in a run: what is logged, what a resume keeps, what several processes agree on."""

import pytest

from homespun.optim import clip_attention
from homespun.train.log import read_metrics
from tests.train.house import ADAMW, RECIPE, assert_equal, tensors, trainer
from tests.train.test_parallel import finish, start

CLIP = ("model.attention.qk_norm=false", "optimizer.qk_clip=0.02")  # far below what a model of this size reaches


def logits(folder) -> list[float | None]:
    return [row.get("max_attention_logit") for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


def test_the_largest_logit_is_logged_where_it_is_measured(tmp_path):
    trainer(tmp_path / "every", *CLIP).fit()
    every = logits(tmp_path / "every")
    assert len(every) == 12 and all(0.02 < value < 1 for value in every)
    trainer(tmp_path / "third", *CLIP, "optimizer.qk_clip_every=3").fit()
    assert [value is not None for value in logits(tmp_path / "third")] == [True, False, False] * 4
    trainer(tmp_path / "never").fit()
    assert set(logits(tmp_path / "never")) == {None}


def test_a_limit_that_nothing_reaches_changes_no_bit(tmp_path):
    """Also with dropout, which the measurement must not draw from."""
    plain = trainer(tmp_path / "plain", CLIP[0])
    plain.fit()
    measured = trainer(tmp_path / "measured", CLIP[0], "optimizer.qk_clip=1e9")
    measured.fit()
    assert_equal(plain, measured)
    assert None not in logits(tmp_path / "measured")


def test_scores_are_measured_after_the_update_and_without_dropout(tmp_path):
    run = trainer(tmp_path, CLIP[0], "optimizer.qk_clip=1e9", "model.dropout=0.5", "train.micro_batch=2")
    done = run.step()
    assert run.model.training
    assert done.largest_score == clip_attention(run.model.eval(), run.batches[0].tokens[:2], 1e9, lambda scores: scores)


@pytest.mark.parametrize("recipe", [RECIPE, ADAMW], ids=["muon", "adamw"])
def test_resume_is_exact(tmp_path, recipe):
    settings = (*CLIP, "optimizer.qk_clip_every=2", "train.micro_batch=2")
    whole = trainer(tmp_path / "whole", *settings, recipe=recipe)
    whole.fit()
    first = trainer(tmp_path / "parts", *settings, recipe=recipe)
    for _ in range(5):
        first.step()
    first._save()
    second = trainer(tmp_path / "parts", *settings, recipe=recipe)
    second.fit()
    assert_equal(whole, second)
    assert logits(tmp_path / "whole")[5:] == logits(tmp_path / "parts")


@pytest.mark.timeout(180)
def test_two_ranks_clip_by_what_both_saw(tmp_path):
    settings = (*CLIP, "model.dropout=0", "train.steps=4", "optimizer.kind=adamw", "optimizer.learning_rate=1e-3")
    finish(start(tmp_path / "two", *settings, ranks=2))
    one = trainer(tmp_path / "one", *settings)
    one.fit()
    assert logits(tmp_path / "two") == pytest.approx(logits(tmp_path / "one"), rel=1e-3)
    two = tensors(trainer(tmp_path / "two", *settings))
    for name, tensor in tensors(one).items():
        assert tensor.sub(two[name]).abs().max() < 1e-4, name
