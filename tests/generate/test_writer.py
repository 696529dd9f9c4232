"""What is packed for writing computes what the plain model computes, in each form that weights can have."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from homespun.data.vocabulary import Bytes
from homespun.errors import ConfigError
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling
from homespun.generate.writer import for_writing
from homespun.model import packed as forms
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.packed import Packing, Weights, kept, rounded
from homespun.model.plain import SWITCH
from tests.kinds import ATTENTIONS, FEED_FORWARDS, MORE_POSITIONS, POSITIONS, TOKENS, T, V, build, small

FORMS: tuple[Weights, ...] = get_args(Weights)
BOUNDS = {"fp32": 1e-5, "bf16": 3e-2, "int8": 3e-2, "int4": 3e-2}  # packed against plain, both of one form
LOSSES = {"fp32": 1e-6, "bf16": 4e-3, "int8": 1e-2, "int4": 0.13}  # what rounding changes of a matrix, relative
KINDS = [
    *((attention, "swiglu", "rms", "rotary") for attention in ATTENTIONS),
    *(("gqa", part, "layer", "learned") for part in FEED_FORWARDS),
    *(("gqa", "relu2", "rms", place) for place in (*POSITIONS, *MORE_POSITIONS)),
]


@pytest.fixture(autouse=True)
def every_matrix_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are not laid out: the other tests of writing are with such."""
    monkeypatch.setattr(forms, "_SMALL", 0)


def house(vocab: int = 257) -> Decoder:
    """A model whose matrices are large enough for every form."""
    attention = GroupedAttention(heads=4, kv_heads=2, qk_norm=True)
    return build(ModelConfig(vocab=vocab, width=64, layers=2, context=64, attention=attention), scale=4.0)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@torch.inference_mode()
def in_parts(model: Decoder, padding: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of all tokens, read from a cache: some at once, then one by one."""
    cache = model.new_cache(3, T, padding)
    return torch.cat([model(TOKENS[:, :5], cache), *(model(TOKENS[:, i : i + 1], cache) for i in range(5, T))], 1)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("padding", [None, [0, 3, 4]], ids=["full", "padded"])
def test_a_packed_model_of_every_kind_is_the_model(kind: tuple[str, ...], padding: list[int] | None) -> None:
    model = build(small(*kind))
    empty = torch.tensor(padding) if padding else None
    before, after = in_parts(model, empty), in_parts(for_writing(model, "fp32"), empty)
    for row, pad in enumerate(padding or [0, 0, 0]):
        torch.testing.assert_close(after[row, pad:], before[row, pad:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", FORMS)
def test_a_packed_form_is_the_plain_product_of_its_rounded_matrices(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = house()
    packed = in_parts(for_writing(model, weights))
    monkeypatch.setenv(SWITCH, "1")
    assert relative(packed, in_parts(for_writing(model, weights))) < BOUNDS[weights]


@pytest.mark.parametrize("weights", FORMS)
def test_rounding_loses_no_more_than_its_bits(weights: Weights) -> None:
    matrix = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 1, 64)[:, None]
    assert kept(matrix, weights) == weights
    assert relative(rounded(matrix, weights), matrix) < LOSSES[weights]


@pytest.mark.parametrize("weights", FORMS)
def test_one_row_and_many_rows_have_one_product(weights: Weights) -> None:
    torch.manual_seed(1)
    layer, x = torch.nn.Linear(64, 48), torch.randn(2, 40, 64)
    with torch.inference_mode():
        product = Packing(weights).linear(layer)
        many, single = product(x), torch.stack([product(x[:, i]) for i in range(40)], 1)
        exact = torch.nn.functional.linear(x, rounded(layer.weight, weights), layer.bias)
    assert many.shape == exact.shape and many.dtype == torch.float32
    torch.testing.assert_close(many, single, atol=BOUNDS[weights], rtol=BOUNDS[weights])
    torch.testing.assert_close(many, exact, atol=BOUNDS[weights], rtol=BOUNDS[weights])


def test_a_matrix_that_four_bits_do_not_fit_keeps_eight() -> None:
    assert kept(torch.zeros(V, 64), "int4") == kept(torch.zeros(32, 40), "int4") == "int8"
    assert kept(torch.zeros(32, 64), "int4") == "int4"
    assert in_parts(for_writing(build(small("gqa", "swiglu", "rms", "rotary")), "int4")).isfinite().all()


def test_small_matrices_are_not_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = torch.nn.Linear(32, 48), torch.nn.Linear(64, 48)
    monkeypatch.setattr(forms, "_SMALL", 2000)
    for weights in ("fp32", "bf16"):
        assert isinstance(Packing(weights).linear(small), forms.PlainProduct)
        laid = Packing(weights).linear(large)
        assert isinstance(laid, forms.LaidProduct) == forms._lays_out(
            torch.bfloat16 if weights == "bf16" else torch.float32
        )


def test_a_row_of_zeros_stays_zero() -> None:
    for weights in FORMS:
        assert torch.equal(rounded(torch.zeros(16, 32), weights), torch.zeros(16, 32)), weights


@pytest.mark.parametrize("prompts", [["a"], ["a", "some words", ""]], ids=["one", "ragged"])
def test_greedy_text_is_that_of_the_plain_paths(prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, greedy = Bytes().build([], 0)[0], Sampling(max_tokens=90, temperature=0)
    model = house(tokenizer.vocab_size)
    fast = Generator(model, tokenizer).complete(prompts, greedy)
    monkeypatch.setenv(SWITCH, "1")
    plain = Generator(model, tokenizer).complete(prompts, greedy)
    assert [[t.id for t in done.tokens] for done in fast] == [[t.id for t in done.tokens] for done in plain]


def test_a_generator_sees_that_its_model_has_changed() -> None:
    tokenizer, greedy = Bytes().build([], 0)[0], Sampling(max_tokens=8, temperature=0)
    model = house(tokenizer.vocab_size)
    generator = Generator(model, tokenizer)
    generator.generate("a", greedy)
    writer = generator.writer
    assert generator.writer is writer
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(2)  # type: ignore[union-attr]
    assert generator.writer is not writer


def test_the_model_itself_is_left_as_it_was() -> None:
    model = house()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    for weights in FORMS:
        in_parts(for_writing(model, weights))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_model_in_bf16_can_be_packed() -> None:
    model = house()
    low = build(model.config, scale=4.0).to(torch.bfloat16)
    assert for_writing(low, None) is low
    assert relative(in_parts(for_writing(low, "bf16")), in_parts(model)) < 3e-2


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="int3"):
        Generator(house(260), Bytes().build([], 0)[0], weights="int3")  # type: ignore[arg-type]
