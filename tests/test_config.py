"""Unknown or impossible settings are errors that name the key, the value and the nearest known key."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homespun import config
from homespun.config import human_number
from homespun.errors import ConfigError
from homespun.train.recipe import Recipe

BASE = Recipe()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.widht=3", "'width'"),
        ("modle.width=3", "'model'"),
        ("model.attention.haeds=3", "'heads'"),
        ("train.step=3", "'steps'"),
        ("optimizer.learning_rat=3", "'learning_rate'"),
        ("optimizer.schedule.warmpu=3", "'warmup'"),
        ("model.width.deep=3", "plain value"),
        ("model.width=wide", "model.width = 'wide'"),
        ("model.width=3.5", "model.width"),
        ("model.width=true", "model.width"),
        ("model.width=-4", "model.width"),
        ("model.width=", "model.width"),
        ("model.layers=1B", "model.layers"),
        ("model.dropout=.nan", "model.dropout"),
        ("model.dropout=.inf", "model.dropout"),
        ("model.attention.kind=sparse", "grouped"),
        ("optimizer.kind=sgd", "adamw, muon"),
        ("tokenizer.kind=words", "wordpiece"),
        ("train.precision=fp8", "train.precision"),
        ("train.seed=-1", "train.seed"),
        ("data.validation_fraction=0.9", "data.validation_fraction"),
        ("model=3", "model"),
        ("nonsense", "dotted.key=value"),
        ("=3", "dotted.key=value"),
        ("model..width=3", "dotted.key=value"),
    ],
)
def test_a_wrong_setting_is_named(setting, said):
    with pytest.raises(ConfigError) as error:
        config.override(BASE, [setting])
    assert said in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {wdith: 3}", "'width'"),
        ("model:\n  width: [1, 2]", "model.width"),
        ("train: {steps: 5, steps: 6}", "twice"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("model: !!python/name:os.system", "YAML"),
        ("model: !!python/object/apply:os.system ['true']", "YAML"),
        ("- 1\n- 2", "keys and values"),
        ("just words", "keys and values"),
        ("model: {width: 3", "YAML"),
        ("train: {seed: 2020-01-01}", "plain setting"),
        ("{" * 5000, "YAML"),
        ("x: '" + "y" * 2_000_000 + "'", "larger"),
    ],
)
def test_a_wrong_file_is_refused(text, said):
    with pytest.raises(ConfigError) as error:
        config.merge(BASE, config.read_yaml(text, "mine.yaml"), "mine.yaml")
    assert said in str(error.value) and "mine.yaml" in str(error.value)


def test_changing_a_kind_drops_the_other_settings_of_the_former_one():
    muon = config.override(BASE, ["optimizer.kind=muon", "optimizer.momentum=0.9"])
    assert (muon.optimizer.kind, muon.optimizer.momentum) == ("muon", 0.9)
    in_any_order = config.override(BASE, ["optimizer.momentum=0.9", "optimizer.kind=muon"])
    assert in_any_order == muon
    same = config.override(muon, ["optimizer.kind=muon"])
    assert same.optimizer.momentum == 0.9
    from_file = config.merge(muon, {"optimizer": {"kind": "adamw"}}, "file")
    assert from_file.optimizer.kind == "adamw"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train.tokens=1M", 1_000_000),
        ("train.tokens=64k", 64_000),
        ("train.tokens=1.5M", 1_500_000),
        ("train.tokens=1e6", 1_000_000),
        ("train.tokens=1_000", 1000),
        ("train.tokens=2B", 2_000_000_000),
        ("train.tokens=null", None),
    ],
)
def test_numbers_as_people_write_them(setting, value):
    assert config.override(BASE, [setting]).train.tokens == value


def test_words_that_other_yaml_takes_for_booleans_are_words():
    assert config.override(BASE, ["train.compile=off"]).train.compile == "off"
    assert config.override(BASE, ["train.compile=on"]).train.compile == "on"
    assert config.override(BASE, ["model.tie_embeddings=false"]).model.tie_embeddings is False
    assert config.override(BASE, ["optimizer.learning_rate=1e-3"]).optimizer.learning_rate == 1e-3


def test_settings_survive_yaml():
    assert config.parse(Recipe, config.read_yaml(config.to_yaml(BASE))) == BASE


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        BASE.train.steps = 3


@given(st.integers(1, 10**12))
def test_a_number_is_itself(number):
    assert human_number(number) == human_number(str(number)) == number


@given(st.text(max_size=20))
def test_no_word_breaks_the_parser(word):
    with contextlib.suppress(ConfigError):
        assert config.override(BASE, [f"train.tokens={word}"]).train.tokens != 0


def test_groups_that_were_not_spelled_out_open_with_their_defaults():
    recipe = config.override(
        Recipe(),
        [
            "model.feed_forward.router.top_k=3",
            "model.feed_forward.router.kind=sigmoid",
            "model.feed_forward.kind=experts",
            "model.positions.scaling.factor=8",
            "model.positions.scaling.kind=yarn",
        ],
    )
    assert (recipe.model.feed_forward.router.kind, recipe.model.feed_forward.router.top_k) == ("sigmoid", 3)
    assert (recipe.model.positions.scaling.kind, recipe.model.positions.scaling.factor) == ("yarn", 8)
    recipe = config.override(Recipe(), ["model.feed_forward.kind=experts", "model.feed_forward.router.top_k=1"])
    assert (recipe.model.feed_forward.router.kind, recipe.model.feed_forward.router.top_k) == ("softmax", 1)
    with pytest.raises(ConfigError, match=r"top_k.*plain value"):
        config.override(recipe, ["model.feed_forward.router.top_k.more=1"])
    with pytest.raises(ConfigError, match="linear"):
        config.override(recipe, ["model.positions.scaling.factor=8"])
