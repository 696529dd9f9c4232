"""Each family is what its document says: sizes, defaults, and the document's own examples."""

import asyncio
import dataclasses
import math

import pytest
import torch

from homespun import config
from homespun.errors import ConfigError, DataError
from homespun.exchange.classes import hf_class
from homespun.families import RECIPES
from homespun.families.alen import LargeLanguageModel, LargeModelConfig, ModelSize
from homespun.families.kenga import AutonomousTrainer, KengaConfig, KengaModel
from homespun.families.kimbho import KimbhoV1Model
from homespun.families.nanokimi import (
    DataConfig,
    Generator,
    KimiConfig,
    KimiModel,
    ModelEvaluator,
    NanoGPTComparison,
    RandomTokens,
    TextDataProcessor,
    TokenDataset,
    TokenFile,
)
from homespun.families.optimus_prime import ModelConfig, TrainingConfig
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.optim import AdamW
from homespun.run import train
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
    short = Decoder(config.override(recipe, ["model.layers=1", "model.vocab=300"]).model)
    assert short(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 300)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("alen-micro", 1.1),
        ("alen-small", 21),
        ("alen-medium", 89),
        ("alen-large", 404),
        ("alen-xl", 2000),
        ("gpt2", 124),
        ("kenga", 124),
        ("nanokimi-nano", 10),
        ("nanokimi-small", 124),
        ("nanokimi-medium", 350),
        ("nanokimi-nano-mla", 10),
        ("nanokimi-small-mla", 124),
        ("nanokimi-medium-mla", 350),
    ],
)
def test_documented_sizes_are_met(name, millions):
    assert cost(sized(RECIPES[name]).model).parameters / 1e6 == pytest.approx(millions, rel=0.012)


@pytest.mark.parametrize(
    ("name", "hidden", "millions"), [("nano", 352, 10), ("small", 1024, 124), ("medium", 1344, 350)]
)
def test_the_other_reading_of_nanokimis_sizes_is_a_setting(name, hidden, millions):
    found = config.override(sized(RECIPES[f"nanokimi-{name}"]), [f"model.feed_forward.hidden={hidden}"])
    assert cost(found.model).active / 1e6 == pytest.approx(millions, rel=0.012)


CLASSES = {
    "house": None,
    "gpt2": "GPT2LMHeadModel",
    "kenga": "GPT2LMHeadModel",
    "kimbho-v1": "LlamaForCausalLM",
    "alen": "StableLmForCausalLM",
    "optimus-prime": "DeepseekV3ForCausalLM",
    "optimus-prime-standard": "LlamaForCausalLM",
    "nanokimi": None,
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_leaves_as_its_class_or_says_why_not(name):
    found = hf_class(sized(RECIPES[name]).model)
    expected = CLASSES[max((each for each in CLASSES if name.startswith(each)), key=len)]
    if name.endswith("-mla"):
        expected = "DeepseekV3ForCausalLM"
    assert (None if isinstance(found, list) else found.architecture) == expected


SHORT = ["train.steps=2", "train.epochs=null", "train.tokens=null", "train.minutes=null", "train.batch_tokens=512"]
SMALL = ["model.layers=2", "model.context=128", "tokenizer.size=300", "train.evaluate_tokens=256"]


@pytest.mark.parametrize("name", [each for each in RECIPES if each.startswith(("kenga", "optimus", "nanokimi"))])
def test_every_new_recipe_trains_and_writes(name, tmp_path):
    if "medium" in name:
        pytest.skip("the same design as -small")
    run = train("stories:200", config.override(RECIPES[name], SHORT + SMALL), tmp_path / "run")
    assert run.step == 2 and run.summary()["validation"]["validation_loss"] < 7
    assert isinstance(run.generate("Once", max_tokens=3), str)


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


def test_alen_says_what_it_cannot_do():
    small = dataclasses.replace(LargeModelConfig.micro(), vocab_size=260)
    model = LargeLanguageModel(small)
    for settings in ((5, -1.0), (0, 0.8)):
        with pytest.raises(ConfigError, match="not possible"):
            model.generate("a", *settings)
    with pytest.raises(ConfigError, match="256 bytes"):
        LargeLanguageModel(dataclasses.replace(small, vocab_size=259))


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


# -- Kenga -------------------------------------------------------------------------------------------------------------


def small_kenga() -> KengaModel:
    return KengaModel(
        KengaConfig(vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, context=16)
    )


def test_kenga_learns_from_batches_one_after_the_other():
    model = small_kenga().eval()
    trainer = AutonomousTrainer(model, AdamW(learning_rate=1e-2))
    batch = torch.arange(64).view(4, 16)

    async def learn() -> list[float]:
        return await asyncio.gather(*(trainer.train_step(batch) for _ in range(60)))  # also when many are asked at once

    state = torch.get_rng_state()
    losses = asyncio.run(learn())
    assert losses[0] == pytest.approx(math.log(64), rel=0.1) and min(losses) < 1.5
    assert trainer.steps == 60 and not model.training
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers


def test_kenga_takes_lists_and_refuses_what_is_no_batch():
    trainer = AutonomousTrainer(small_kenga())
    assert asyncio.run(trainer.train_step([[1, 2, 3], [4, 5, 6]])) > 0
    nothing, flags = torch.zeros(0, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)
    odd = ([[1, 2], [3]], [[0.5, 1.5]], [[10**30, 1]], [["a", "b"]], "text", None, [], nothing, flags)
    for wrong in ([[1]], [1, 2, 3], [[1, 64]], [[-1, 2]], torch.rand(2, 3), *odd):
        with pytest.raises(DataError):
            asyncio.run(trainer.train_step(wrong))
    with pytest.raises(ConfigError, match="16"):
        asyncio.run(trainer.train_step(torch.zeros(1, 18, dtype=torch.long)))


def test_kenga_trains_both_heads():
    model = small_kenga()
    trainer = AutonomousTrainer(model, AdamW(learning_rate=1e-2))
    batch = torch.arange(64).view(4, 16)
    before = model.embedding_head.weight.detach().clone()
    totals = [asyncio.run(trainer.train_step(batch)) for _ in range(40)]
    first = model.embed(batch[:, :8]) @ model.embed(batch[:, 8:]).T  # the halves of each row
    assert not torch.equal(model.embedding_head.weight, before) and first.argmax(1).tolist() == [0, 1, 2, 3]
    weight = RECIPES["kenga"].objective.weight
    assert totals[-1] == pytest.approx(trainer.losses["loss"] + weight * trainer.losses["contrastive"])
    assert totals[-1] < totals[0]


def test_kenga_does_not_see_the_next_token():
    model, tokens = small_kenga().eval(), torch.randint(64, (1, 12))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 64
    assert torch.equal(model(tokens)[:, :7], model(changed)[:, :7])


# -- Optimus Prime -----------------------------------------------------------------------------------------------------


def test_optimus_prime_keeps_what_its_page_says():
    kept = {"optimus-prime": 384 + 32, "optimus-prime-standard": 2 * 2 * 64, "optimus-prime-compact": 128 + 32}
    for name, numbers in kept.items():
        assert cost(sized(RECIPES[name]).model).cache_per_token == numbers * 8 * 4
    attention = RECIPES["optimus-prime"].model.attention
    assert (attention.q_lora_rank, attention.kv_lora_rank, attention.v_head_dim) == (384, 384, 64)


def test_optimus_primes_settings_reach_the_recipe():
    recipe = TrainingConfig(batch_size=8, max_length=32, num_epochs=1, train_val_split=0.8, learning_rate=1e-4).recipe(
        ModelConfig(
            embedding_dim=96, num_attention_heads=4, compression_ratio=0.25, rope_seq_len=64, checkpointing=False
        )
    )
    assert recipe.model.attention.kv_lora_rank == 24 and recipe.model.context == 64
    assert recipe.train.batch_tokens == 256 and recipe.train.epochs == 1 and not recipe.train.checkpoint_activations
    assert recipe.data.validation_fraction == 0.2 and recipe.optimizer.learning_rate == 1e-4
    standard = ModelConfig(block="TransformerBlock", num_kv_heads=4).model(512)
    assert (standard.attention.kind, standard.attention.kv_heads) == ("grouped", 4)
    with pytest.raises(ConfigError, match="RNNBlock"):
        ModelConfig(block="RNNBlock").model(512)


# -- nanoKimi ----------------------------------------------------------------------------------------------------------


def test_nanokimi_is_what_its_document_lists():
    for name, listed in {"nano": (6, 384, 4), "small": (12, 768, 8), "medium": (24, 1024, 16)}.items():
        for form, attention in (("", "latent"), ("-mla", "mla")):
            recipe = RECIPES[f"nanokimi-{name}{form}"]
            assert (recipe.model.layers, recipe.model.width, recipe.model.feed_forward.experts) == listed
            assert recipe.model.feed_forward.router.top_k == 2 and recipe.model.attention.kind == attention
            assert recipe.optimizer.kind == "muon" and recipe.model.norm.kind == "rms"


def test_nanokimis_settings():
    tiny = KimiConfig(n_layer=1, n_head=3, n_embd=24, vocab_size=99, block_size=8)
    assert KimiModel(tiny)(torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, 99)
    assert KimiConfig(moe={"use_moe": False}).model(99).feed_forward.kind == "swiglu"
    with pytest.raises(ConfigError, match="num_experts"):
        KimiConfig(moe={"n_experts": 4}).model(99)
    with pytest.raises(ConfigError, match="choose"):
        KimiConfig(moe={"num_experts": 2, "top_k": 3}).model(99)


def test_nanokimis_generator_ends_where_the_text_ends():
    """With and without a cache, and when the end token comes."""
    generator = Generator(KimiModel(KimiConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=300, block_size=16)))
    with torch.no_grad():
        generator.engine.bias[generator.tokenizer.end] = 4.0  # a text that ends soon
    texts = {seed: generator.generate_text("Once", 30, seed=seed) for seed in range(8)}
    assert len(set(map(len, texts.values()))) > 1
    assert texts == {seed: generator.generate_text("Once", 30, seed=seed, use_cache=False) for seed in texts}
    with pytest.raises(ConfigError, match="temperature"):
        generator.generate_text("Once", temperature=-1)


class Pairs(TokenDataset):
    """A data set of one's own."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.full((8,), index), torch.full((8,), index + 1)


def test_nanokimi_measures_any_data_set():
    model = KimiModel(KimiConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=300, block_size=32)).train()
    assert ModelEvaluator().evaluate_perplexity(model, Pairs()) == pytest.approx(300, rel=0.1)
    whole = ModelEvaluator(batch_size=64).evaluate_perplexity(model, RandomTokens(300, 32, items=10))
    assert ModelEvaluator(3).evaluate_perplexity(model, RandomTokens(300, 32, items=10)) == pytest.approx(whole)
    assert model.training
    with pytest.raises(DataError, match="empty"):
        ModelEvaluator().evaluate_perplexity(model, RandomTokens(300, 32, items=0))
    with pytest.raises(ConfigError, match="Decoder"):
        NanoGPTComparison().compare_models(model, torch.nn.Linear(2, 2), Pairs())


def test_nanokimi_refuses_files_that_cannot_be_a_data_set(tmp_path):
    processor = TextDataProcessor(DataConfig(tokenizer_name="bytes", data_dir=str(tmp_path / "data")))
    text = tmp_path / "text.txt"
    text.write_text("Some text.\n\nSome more.", encoding="utf-8")
    for train_files, val_files in (([text], [text]), ([text], []), ([text], [tmp_path / "missing.txt"])):
        with pytest.raises(DataError):
            processor.process_dataset("mine", train_files, val_files)
    with pytest.raises(DataError):
        TokenFile(tmp_path / "train.bin")
