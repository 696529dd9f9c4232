"""Every model leaves exactly, or is refused with the reasons."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import homespun as hs
from homespun import config
from homespun.data.conversation import encode, render
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import Bpe, Bytes, Chars, Gpt2, WordPiece
from homespun.errors import ConfigError
from homespun.exchange import huggingface
from homespun.exchange.classes import hf_class
from homespun.exchange.gpt2 import GPT2
from homespun.exchange.layout import Layout
from homespun.families import RECIPES
from homespun.model.attention import GroupedAttention, MultiHeadLatentAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import Experts, SigmoidRouter, SwiGLU
from homespun.model.norms import LayerNorm, RMSNorm
from homespun.model.positions import LearnedPositions
from homespun.objectives import Joint, NextToken
from homespun.train.recipe import Recipe
from tests.exchange.models import load
from tests.kinds import KINDS, TOKENS, build, small

MLA = MultiHeadLatentAttention(heads=2, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)


@dataclass(frozen=True)
class Made:
    """A run that was never trained."""

    folder: Path
    recipe: Recipe
    model: Decoder
    tokenizer: Tokenizer
    step: int = 0


def made(folder: Path, model: Decoder, tokenizer: Tokenizer | None = None) -> Made:
    objective = Joint() if model.config.embedding else NextToken()
    recipe = Recipe(model=model.config, objective=objective)
    return Made(folder, recipe, model, tokenizer or Bytes().build([], 0)[0])


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_every_combination_leaves_exactly_or_says_why_not(kinds: tuple[str, ...], tmp_path: Path) -> None:
    model = build(small(*kinds))
    found = hf_class(model.config)
    if not isinstance(found, Layout):
        assert found and all(re.match(r"model\.[a-z_.]+ = .+, but \w+ has ", reason) for reason in found)
        with pytest.raises(ConfigError, match=re.escape(found[0])):
            huggingface.export(made(tmp_path, model), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    huggingface.export(made(tmp_path, model), tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(TOKENS).logits, model(TOKENS), rtol=0, atol=1e-5)


def test_the_classes_that_the_kinds_leave_as() -> None:
    found = [hf_class(small(*kinds)) for kinds in KINDS]
    names = {layout.architecture for layout in found if isinstance(layout, Layout)}
    assert names == {f"{name}ForCausalLM" for name in ("Llama", "Mixtral", "DeepseekV3", "StableLm")} | {
        "GPT2LMHeadModel", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"}  # fmt: skip


def tiny(name: str) -> Recipe:
    """A built-in recipe, made small without changing its kinds."""
    chosen = hs.recipe(name)
    m: Any = chosen.model
    changes = ["model.vocab=300", "model.layers=2", "model.context=64", "model.width=64"]
    if m.attention.kind == "grouped":
        heads = 4
        shared = max(1, heads * m.attention.shared_heads // m.attention.heads)
        changes += [
            f"model.attention.heads={heads}",
            f"model.attention.kv_heads={shared}",
            "model.attention.head_size=16",
        ]
    elif m.attention.kind == "mla":
        changes += ["model.attention.heads=4", "model.attention.kv_lora_rank=16"]
    elif m.attention.kind == "latent":
        changes.append("model.attention.block=16")
    if m.feed_forward.kind == "experts":
        dense = [layer for layer in m.feed_forward.dense_layers if layer < 2][:1]
        changes += ["model.feed_forward.hidden=32", f"model.feed_forward.dense_layers={dense}"]
    else:
        changes.append("model.feed_forward.hidden=96")
    return config.override(chosen, changes)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_leaves_exactly_or_says_why_not(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = tiny(name)
    if isinstance(recipe.model.feed_forward, Experts) and recipe.model.feed_forward.experts > 16:
        pytest.skip("too large for a fast test")
    model = Decoder(recipe.model).eval()
    found = hf_class(recipe.model)
    assert type(found) is type(hf_class(hs.recipe(name).model))
    leaving = ("kimbho", "gpt2", "alen", "kenga", "optimus-prime")
    assert isinstance(found, Layout) == (name.startswith(leaving) or name.endswith("-mla"))
    if not isinstance(found, Layout):
        assert found
        return
    huggingface.export(made(tmp_path, model), tmp_path / "out")
    x = torch.randint(300, (2, 40))
    with torch.no_grad():
        theirs = load(tmp_path / "out")(x).logits
        torch.testing.assert_close(theirs, model(x), rtol=0, atol=1e-5 if found is GPT2 else 0)


IMPOSSIBLE = {
    "softcap": (ModelConfig(softcap=15.0), "model.softcap = 15.0"),
    "norm": (
        ModelConfig(norm=LayerNorm(), attention=GroupedAttention(heads=6, qk_norm=True)),
        "attention.qk_norm = True",
    ),
    "window": (ModelConfig(attention=GroupedAttention(heads=6, window=8)), "attention.window = 8"),
    "learned": (ModelConfig(positions=LearnedPositions()), "model.positions.kind = 'learned'"),
    "latent norm": (
        ModelConfig(attention=MLA.model_copy(update={"norm_eps": 1e-5})),
        "model.attention.norm_eps = 1e-05, but DeepseekV3ForCausalLM has 1e-06",
    ),
    "latent with layer norm": (ModelConfig(attention=MLA, norm=LayerNorm()), "model.norm.kind = 'layer'"),
    "dense in the middle": (
        ModelConfig(attention=MLA, feed_forward=Experts(shared=1, dense_layers=(1,), router=SigmoidRouter())),
        "model.feed_forward.dense_layers",
    ),
    "heads": (ModelConfig(attention=GroupedAttention(heads=5, head_size=8)), "model.attention.heads = 5"),
    "output bias": (
        ModelConfig(norm=LayerNorm(), attention=GroupedAttention(heads=6, bias=True)),
        "model.attention.output_bias = True",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_no_class_has_is_named(name: str) -> None:
    model, said = IMPOSSIBLE[name]
    found = hf_class(model)
    assert isinstance(found, list) and said in "; ".join(found)


def test_training_settings_do_not_matter() -> None:
    model = ModelConfig(
        dropout=0.1,
        initialize="zero",
        attention=GroupedAttention(heads=6, query_chunk=4),
        feed_forward=SwiGLU(hidden=8),
    )
    experts = Experts(balance_loss=0.5, z_loss=0.1, capacity=1.5)
    for each in (model, model.model_copy(update={"feed_forward": experts})):
        assert isinstance(hf_class(each), Layout)


def test_missing_biases_leave_as_zeros(tmp_path: Path) -> None:
    model = ModelConfig(
        vocab=300, width=32, layers=2, context=64, attention=GroupedAttention(heads=4, bias=True, output_bias=False)
    )
    decoder = build(model)
    assert huggingface.export(made(tmp_path, decoder), tmp_path / "out").architecture == "LlamaForCausalLM"
    theirs = load(tmp_path / "out")
    assert not theirs.model.layers[0].self_attn.o_proj.bias.any()
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, decoder(TOKENS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_lower_types_round_every_weight_but_the_balancing_bias(dtype: str, tmp_path: Path) -> None:
    model = build(small("mla", "experts-shared", "rms", "rotary"))
    huggingface.export(made(tmp_path, model), tmp_path / "out", dtype=dtype)
    theirs = load(tmp_path / "out", torch.float32)
    rounded = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert torch.equal(theirs.lm_head.weight, model.head_weight.to(rounded).float())
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert torch.equal(theirs.state_dict()[bias], model.state_dict()[bias])


def tokenizers() -> dict[str, Tokenizer]:
    texts = ["Once upon a time, there was a café. It's 42 o'clock!\n\n  The end.\n"] * 3
    kinds = {"bytes": Bytes(), "chars": Chars(), "bpe": Bpe(size=300), "wordpiece": WordPiece(size=600)}
    return {name: kind.build(texts, 1000)[0] for name, kind in kinds.items()}


@pytest.mark.parametrize("attention", ["gqa", "mla"])
@pytest.mark.parametrize("name", ["bytes", "chars", "bpe", "wordpiece"])
def test_transformers_reads_the_same_ids(name: str, attention: str, tmp_path: Path) -> None:
    tokenizer = tokenizers()[name]
    model = Decoder(small(attention, "swiglu", "rms", "rotary").model_copy(update={"vocab": 600}))
    huggingface.export(made(tmp_path, model, tokenizer), tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("Once upon a time", " The  café\n\ncosts 42 €. 日本 'll", "", " ", "x\n"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.end
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == tokenizer.end


@pytest.mark.parametrize("name", ["Llama", "GPT2", "StableLm"])
def test_every_class_keeps_the_tokenizer(name: str, tmp_path: Path) -> None:
    kinds = {"Llama": ("mha", "swiglu", "rms", "rotary"), "GPT2": ("mha", "gelu", "layer", "learned"),
             "StableLm": ("mha", "swiglu", "layer", "rotary")}  # fmt: skip
    model = Decoder(small(*kinds[name]).model_copy(update={"vocab": 600}))
    tokenizer = tokenizers()["bpe"]
    huggingface.export(made(tmp_path, model, tokenizer), tmp_path / "out")
    text = " The  café\n\ncosts 42 €. 'll"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == tokenizer.encode(text)


def test_gpt2s_own_vocabulary(shared: Path, tmp_path: Path) -> None:
    tokenizer = Gpt2(file=str(shared / "gpt2_bpe")).build([], 0)[0]
    model = Decoder(small("mha", "gelu", "layer", "learned").model_copy(update={"vocab": tokenizer.vocab_size}))
    huggingface.export(made(tmp_path, model, tokenizer), tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Homespun trains small models; it's 42 €.\n\n  Indented"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What's {{ 1 + 1 }}?"},
    {"role": "assistant", "content": "Two."},
    {"role": "human", "content": " And \"then\"?\n"},
]  # fmt: skip


def test_the_chat_template_is_the_format_of_the_house(tmp_path: Path) -> None:
    tokenizer = tokenizers()["bytes"]
    model = Decoder(small("mha", "swiglu", "rms", "rotary").model_copy(update={"vocab": 600}))
    huggingface.export(Made(tmp_path, Recipe(model=model.config), model, tokenizer, step=5), tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for turns in (CONVERSATION, CONVERSATION[:2]):
        asked = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert asked == [*encode(render({"messages": turns}), tokenizer), tokenizer.special["<|assistant|>"]]
    whole = theirs.apply_chat_template(CONVERSATION[:3], return_dict=False)
    assert whole == [*encode(render({"messages": CONVERSATION[:3]}), tokenizer), tokenizer.end]
    with pytest.raises(Exception, match="Unknown role: tool"):
        theirs.apply_chat_template([{"role": "tool", "content": "x"}])


def test_the_norm_of_the_latents_is_the_class_own(tmp_path: Path) -> None:
    model = ModelConfig(attention=MLA, norm=RMSNorm(eps=1e-5), feed_forward=SwiGLU(), layers=2)
    found = hf_class(model)
    assert isinstance(found, Layout) and found.write(model)["first_k_dense_replace"] == 2
