"""Places: rotary tables that nothing can spoil, and learned ones that end."""

import pytest
import torch

from homespun.errors import ConfigError
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.positions import LearnedPositions, RotaryPositions, Rotation, rotate
from homespun.model.scaling import LinearScaling, Llama3Scaling, YarnScaling


def test_rotary_is_half_split_with_exact_angles():
    rotation, size = Rotation(8, 10000.0), 8
    q = torch.randn(1, 1, 5, size, dtype=torch.float64)
    turned, _ = rotation(q, q, start=3)
    for t in range(5):
        for i in range(4):
            angle = torch.tensor((t + 3) * 10000.0 ** (-2 * i / size), dtype=torch.float64)
            a, b = q[0, 0, t, i], q[0, 0, t, i + 4]
            assert turned[0, 0, t, i].item() == pytest.approx((a * angle.cos() - b * angle.sin()).item(), abs=1e-5)
            assert turned[0, 0, t, i + 4].item() == pytest.approx((b * angle.cos() + a * angle.sin()).item(), abs=1e-5)


def test_scores_depend_on_the_distance_only():
    rotation = Rotation(16, 10000.0)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    scores = []
    for start in (0, 5, 100):
        a, _ = rotation(q, q, start=start + 7)
        _, b = rotation(k, k, start=start)
        scores.append((a * b).sum())
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores[0], scores[2], atol=1e-5, rtol=1e-5)


def test_tables_stay_fp32_and_outlive_meta_and_bf16():
    settings = ModelConfig(vocab=10, width=24, layers=1, context=8)
    with torch.device("meta"):
        model = Decoder(settings)
    model = model.to_empty(device="cpu")
    source = Decoder(settings)
    model.load_state_dict(source.state_dict())
    tokens = torch.arange(8)[None]
    assert torch.equal(model(tokens), source(tokens))
    model.bfloat16()(tokens)
    rotation = model.model.layers[0].self_attn.rotation
    assert rotation.tables(8, torch.device("cpu"))[0].dtype == torch.float32
    assert not [name for name, _ in model.named_buffers()]


def test_learned_places_end_with_a_clear_error():
    model = Decoder(ModelConfig(vocab=10, width=24, layers=1, context=8, positions=LearnedPositions()))
    assert model(torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, 10)
    with pytest.raises(ConfigError, match="end at 8"):
        model(torch.zeros(1, 9, dtype=torch.long))


SCALINGS = {
    "linear": ({"rope_type": "linear", "factor": 3.0}, LinearScaling(factor=3)),
    "llama3": (
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        Llama3Scaling(factor=8, original_context=64),
    ),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        YarnScaling(factor=4, original_context=128),
    ),
    "yarn, untruncated": (
        {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 128, "truncate": False,
         "beta_fast": 8, "beta_slow": 2, "attention_factor": 1.3},
        YarnScaling(
            factor=16, original_context=128, truncate=False, beta_fast=8, beta_slow=2, attention_factor=1.3
        ),
    ),
    "yarn of DeepSeek": (
        {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64, "mscale": 0.7,
         "mscale_all_dim": 1.1},
        YarnScaling(factor=40, original_context=64, mscale=0.7, mscale_all_dim=1.1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize(("size", "base"), [(16, 10000.0), (64, 500000.0)])
def test_scaled_tables_are_those_of_transformers_bit_for_bit(name, size, base):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs, ours = SCALINGS[name]
    settings = transformers.LlamaConfig(
        hidden_size=size, num_attention_heads=1, max_position_embeddings=4096,
        rope_parameters=theirs | {"rope_theta": base},
    )  # fmt: skip
    cos, sin = LlamaRotaryEmbedding(settings)(torch.zeros(1, 1), torch.arange(300)[None])
    rotation = RotaryPositions(base=base, scaling=ours).in_heads(size)
    for table, expected in zip(rotation.tables(300, torch.device("cpu")), (cos, sin), strict=True):
        assert torch.equal(table[:300], expected[0, :, : size // 2])


def test_a_part_of_the_head_turns_and_the_rest_stays():
    rotation, whole = RotaryPositions(fraction=0.5).in_heads(16), RotaryPositions().in_heads(8)
    q, k = torch.randn(2, 3, 5, 16), torch.randn(2, 1, 5, 16)
    turned, _ = rotation(q, k, 7)
    assert torch.equal(turned[..., 8:], q[..., 8:])
    assert torch.equal(turned[..., :8], whole(q[..., :8], k[..., :8], 7)[0])
    cos, sin = (table[7:12] for table in rotation.tables(12, q.device))
    at = rotate(q, cos, sin)
    assert torch.equal(at, turned)
    with pytest.raises(ConfigError, match="turn pairs"):
        RotaryPositions(fraction=0.2).in_heads(16)
