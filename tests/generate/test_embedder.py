"""Vectors of texts: the same alone and in company, of any length, of every kind of model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homespun.data.vocabulary import Bytes
from homespun.errors import DataError
from homespun.generate import embedder as module
from homespun.generate.embedder import Embedder
from homespun.model.decoder import Decoder
from homespun.model.embedding import Embedding
from tests.kinds import ATTENTIONS, small

TOKENIZER = Bytes().build([], 0)[0]
TEXTS = ["a", "some words", "ein Satz", "x" * 40, "a longer line of text, past the context"]


def embedder(attention: str = "gqa", head: Embedding | None = None) -> Embedder:
    torch.manual_seed(0)
    config = small(attention, "swiglu", "rms", "rotary").model_copy(update={"vocab": 260, "embedding": head})
    return Embedder(Decoder(config), TOKENIZER)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "head", [None, *(Embedding(size=6, pooling=pooling) for pooling in ("mean", "weighted", "last"))]
)
def test_a_vector_does_not_depend_on_its_company(attention, head, monkeypatch):
    one = embedder(attention, head)
    together = one.embed(TEXTS)
    assert together.shape == (5, one.size) and together.dtype == np.float32 and one.size == (6 if head else 16)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    alone = np.concatenate([one.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=2e-6)
    monkeypatch.setattr(module, "TOKENS", 20)
    np.testing.assert_allclose(one.embed(TEXTS[::-1])[::-1], together, atol=2e-6)
    assert one.model.training


def test_the_mean_of_hidden_states_stands_for_a_model_without_a_head():
    one = embedder()
    hidden, _ = one.model.eval().hidden(torch.tensor([TOKENIZER.encode("some words")]))
    mean = hidden[0].mean(0).detach().numpy()
    np.testing.assert_allclose(one.embed(["some words"])[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_a_long_text_is_the_mean_of_equal_parts():
    one = embedder(head=Embedding(size=6))
    halves = one.embed(["x" * 10 + "y" * 10, "z" * 20])
    mean = sum(one.embed(["x" * 10, "y" * 10]))
    np.testing.assert_allclose(halves[0], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_long_text_is_read_in_steps_of_few_tokens(attention):
    one = embedder(attention, Embedding(size=6))
    context = one.model.config.context
    texts = ["y", "x" * context, "z" * 3, "w" * (2 * context)]
    steps = list(one.read(TOKENIZER.encode_batch(texts), most=5))
    assert [] in steps, "a part that is longer than a forward gives nothing yet"
    assert sorted(place for step in steps for place, _ in step) == [0, 1, 2, 3, 3]
    np.testing.assert_allclose(one.join(len(texts), steps), one.embed(texts), atol=1e-5)


def test_what_has_no_meaning_is_refused():
    with pytest.raises(DataError, match="Text 2 is empty"):
        embedder().embed(["a", ""])
    with pytest.raises(DataError, match="list"):
        embedder().embed("a text")
    assert embedder().embed([]).shape == (0, 16)
