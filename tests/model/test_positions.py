"""Places: rotary tables that nothing can spoil, and learned ones that end."""

import pytest
import torch

from homespun.errors import ConfigError
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.positions import LearnedPositions, Rotation


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
