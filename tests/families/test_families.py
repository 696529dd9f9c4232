"""Each family is what its document says: sizes, defaults, and the document's own examples."""

import pytest
import torch

from homespun import config
from homespun.errors import ConfigError
from homespun.families import RECIPES
from homespun.families.alen import LargeLanguageModel, LargeModelConfig, ModelSize
from homespun.families.kimbho import KimbhoV1Model
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.train.recipe import Recipe


def sized(recipe: Recipe) -> Recipe:
    vocab = recipe.model.vocab or getattr(recipe.tokenizer, "size", None) or 512
    return config.override(recipe, [f"model.vocab={vocab}"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_yaml_and_builds(name):
    recipe = sized(RECIPES[name])
    assert recipe.name == name
    assert config.parse(Recipe, config.read_yaml(config.to_yaml(recipe))) == recipe
    with torch.device("meta"):
        model = Decoder(recipe.model)
    assert sum(p.numel() for p in model.parameters()) == cost(recipe.model).parameters
    with torch.device("meta"):
        assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, recipe.model.vocab)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("alen-micro", 1.1),
        ("alen-small", 21),
        ("alen-medium", 89),
        ("alen-large", 404),
        ("alen-xl", 2000),
        ("gpt2", 124),
    ],
)
def test_documented_sizes_are_met(name, millions):
    assert cost(sized(RECIPES[name]).model).parameters / 1e6 == pytest.approx(millions, rel=0.012)


def test_kimbho_defaults_are_the_documented_ones():
    recipe = RECIPES["kimbho-v1"]
    assert (recipe.tokenizer.size, recipe.model.width, recipe.model.attention.heads, recipe.model.layers) == (
        1000,
        64,
        8,
        2,
    )
    assert recipe.model.attention.heads // recipe.model.attention.kv_heads == 4  # group_size
    assert recipe.model.positions.base == 10000.0
    assert (recipe.model.context, recipe.train.batch_tokens) == (32, 32 * 16)  # seq_len, batch_size
    assert (recipe.optimizer.kind, recipe.optimizer.learning_rate, recipe.train.epochs) == ("adamw", 1e-4, 3)


def test_kimbho_inference_example_runs():
    """The loop of the document, on the CPU; a checkpoint is loaded without pickle elsewhere."""
    model = KimbhoV1Model(
        vocab_size=1000, emb_dim=64, num_heads=8, num_blocks=2, pad_idx=0, group_size=4, rope_base=10000.0
    )
    model.load_state_dict(KimbhoV1Model().state_dict())
    model.eval()
    prompt_ids = torch.tensor([[12, 45, 67]], dtype=torch.long)
    max_new_tokens = 20
    for _ in range(max_new_tokens):
        logits = model(prompt_ids)  # (batch_size=1, seq_len, vocab_size)
        next_token_logits = logits[:, -1, :]
        next_token = torch.argmax(next_token_logits, dim=-1, keepdim=True)
        prompt_ids = torch.cat([prompt_ids, next_token], dim=1)
    assert len(prompt_ids[0].tolist()) == 23


def test_kimbho_padding_stays_zero():
    model = KimbhoV1Model(pad_idx=5)
    model(torch.tensor([[1, 5, 2]])).square().sum().backward()
    weight = model.model.embed_tokens.weight
    assert not weight[5].any() and not weight.grad[5].any() and weight.grad[1].any()
    with pytest.raises(ConfigError, match="pad_idx"):
        KimbhoV1Model(pad_idx=1000)
    with pytest.raises(ConfigError, match="group_size"):
        KimbhoV1Model(group_size=3)


def test_kimbho_chunks_of_queries_change_nothing():
    """`group_size` in the document's literal sense, a chunk of query positions."""
    model = KimbhoV1Model()
    tokens = torch.randint(1000, (2, 19))
    expected = model(tokens)
    for block in model.model.layers:
        block.self_attn.query_chunk = 4
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)


def test_alen_examples_run():
    model = LargeLanguageModel(LargeModelConfig.micro())
    generated = model.generate("How do I", 50, 0.8)
    assert isinstance(generated, str)
    stats = model.stats()
    assert (stats.parameters_str, stats.max_vocab_size) == ("1.1M", 8000)
    assert stats.vocab_size <= stats.max_vocab_size
    assert stats.parameters == sum(p.numel() for p in model.decoder.parameters())


def test_alen_sizes_follow_the_table():
    table = {  # of the document: width, heads, layers, d_ff
        ModelSize.Micro: (64, 2, 2, 128),
        ModelSize.Small: (256, 4, 6, 1024),
        ModelSize.Medium: (512, 8, 12, 2048),
        ModelSize.Large: (1024, 16, 24, 4096),
        ModelSize.XL: (2048, 32, 36, 8192),
    }
    for size, expected in table.items():
        preset = LargeModelConfig.of(size)
        assert preset.size == size
        assert (preset.d_model, preset.n_heads, preset.n_layers, preset.d_ff) == expected
        settings = RECIPES[f"alen-{size.value}"].model
        assert (settings.norm.kind, settings.feed_forward.kind, settings.positions.kind) == (
            "layer",
            "swiglu",
            "rotary",
        )
    assert LargeLanguageModel.with_size(ModelSize.Micro).config == LargeModelConfig.micro()
