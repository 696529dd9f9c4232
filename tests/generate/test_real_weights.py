"""A public checkpoint writes here what it writes elsewhere (Llama 2 architecture, 260 thousand parameters)."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from homespun.data.tokenizer import Tokenizer
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import SwiGLU
from homespun.model.norms import RMSNorm


@pytest.fixture(scope="module")
def stories(shared: Path) -> tuple[Generator, dict]:
    folder = shared / "stories260k"
    config = json.loads((folder / "hf" / "config.json").read_text())
    model = Decoder(
        ModelConfig(
            vocab=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            context=config["max_position_embeddings"],
            attention=GroupedAttention(heads=8, kv_heads=4),
            feed_forward=SwiGLU(hidden=config["intermediate_size"]),
            norm=RMSNorm(eps=config["rms_norm_eps"]),
        )
    )
    model.load_state_dict(load_file(folder / "hf" / "model.safetensors"))
    golden = json.loads((folder / "golden_greedy.json").read_text())
    return Generator(model, Tokenizer.load(folder / "hf")), golden


def test_greedy_text_equals_the_published_one(stories: tuple[Generator, dict]) -> None:
    generator, golden = stories
    first, *ids = golden["greedy_ids"]
    tokens = list(generator.tokens([[first]], Sampling(max_tokens=len(ids), temperature=0)))
    assert [token.id for token in tokens] == ids
    assert "".join(token.text for token in tokens) == golden["text"]
    for split in range(1, len(ids), 20):
        rest = generator.tokens([[first, *ids[:split]]], Sampling(max_tokens=len(ids) - split, temperature=0))
        assert [token.id for token in rest] == ids[split:]


def test_ragged_batches_past_the_context_equal_single_texts(stories: tuple[Generator, dict]) -> None:
    generator, golden = stories
    first, *ids = golden["greedy_ids"]
    prompts = [[first], [first, *ids], [first, *ids * 4], [first, *ids[:40]]]
    for sampling in (Sampling(max_tokens=150, temperature=0), Sampling(max_tokens=150, seed=1, top_p=0.9)):
        alone = [
            generator.generate(prompt, sampling.model_copy(update={"seed": (sampling.seed or 0) + row}))
            for row, prompt in enumerate(prompts)
        ]
        assert generator.batch(prompts, sampling) == alone


def test_text_goes_on_in_good_order_past_the_context(stories: tuple[Generator, dict]) -> None:
    generator, golden = stories
    prompt = golden["greedy_ids"]
    sampling = Sampling(max_tokens=700, temperature=0.6, seed=1)
    tokens = list(generator.tokens([prompt], sampling))
    assert len(prompt) + len(tokens) > 512 + 256
    mean = sum(token.log_probability for token in tokens) / len(tokens)
    assert -1.5 < mean < 0, "the model still expects what it writes"
