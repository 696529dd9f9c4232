"""What is said on the command line becomes the recipe that was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from homespun.cli.options import Choices, settings_only, split_arguments
from homespun.errors import ConfigError


def test_data_and_settings_may_be_mixed() -> None:
    data, settings = split_arguments(["a.txt", "model.layers=2", "-", "stories:10", "train.steps=1k"])
    assert data == ["a.txt", "-", "stories:10"]
    assert settings == ("model.layers=2", "train.steps=1k")


def test_a_file_wins_over_a_setting_of_the_same_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_arguments(["model.layers=2"]) == ([], ("model.layers=2",))
    (tmp_path / "model.layers=2").write_text("text")
    assert split_arguments(["model.layers=2"]) == (["model.layers=2"], ())


def test_a_path_with_an_equals_sign_is_data() -> None:
    assert split_arguments(["texts/a=b.txt", "./x.y=1"]) == (["texts/a=b.txt", "./x.y=1"], ())


def test_a_setting_without_a_dot_is_explained() -> None:
    with pytest.raises(ConfigError, match="dotted"):
        split_arguments(["steps=500"])


def test_data_is_refused_where_only_settings_fit() -> None:
    with pytest.raises(ConfigError, match="my.txt"):
        settings_only(["my.txt"], "plan")


def test_settings_come_in_the_promised_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {layers: 3, width: 64}\ntrain: {seed: 7}\n")
    recipe = Choices("house-tiny", file, ("model.width=96",), seed=9).build()
    assert (recipe.model.layers, recipe.model.width, recipe.train.seed) == (3, 96, 9)
    assert recipe.model.context == Choices("house-tiny").build().model.context


def test_a_budget_flag_replaces_the_budgets_of_the_recipe() -> None:
    train = Choices("house-tiny", tokens="1M").build().train
    assert (train.tokens, train.steps, train.minutes, train.epochs) == (10**6, None, None, None)
    both = Choices("house-tiny", steps="1k", minutes="0.5").build().train
    assert (both.steps, both.minutes) == (1000, 0.5)


@pytest.mark.parametrize(
    ("name", "kind", "size"), [("bytes", "bytes", None), ("bpe:4k", "bpe", 4000), ("wordpiece:1000", "wordpiece", 1000)]
)
def test_a_tokenizer_is_named_in_one_word(name: str, kind: str, size: int | None) -> None:
    tokenizer = Choices("house-tiny", tokenizer=name).build().tokenizer
    assert (tokenizer.kind, getattr(tokenizer, "size", None)) == (kind, size)


def test_a_tokenizer_file_may_have_any_name(tmp_path: Path) -> None:
    file = tmp_path / "a: {b} #c.json"
    file.write_text("{}")
    tokenizer = Choices("house-tiny", tokenizer=str(file)).build().tokenizer
    assert (tokenizer.kind, tokenizer.file) == ("file", str(file))
