"""Thoughts: what they are made of, what is said of them, and how they steer a model."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from homespun.data.corpus import prepare
from homespun.data.mixture import DataConfig
from homespun.data.vocabulary import Bytes, Chars
from homespun.errors import CheckpointError, ConfigError, DataError, TrainingError
from homespun.generate.calibration import Calibration, calibrated, calibration_error
from homespun.generate.engine import Generator
from homespun.generate.hybrid import (
    Following,
    Gate,
    Hybrid,
    entropy,
    fitted_gate,
    fitted_weight,
    guidance,
    mixture,
    product,
)
from homespun.generate.sampling import Sampling
from homespun.generate.thought import LatentDecoder, ThoughtState, thoughts
from homespun.learn.thoughts import Thinking, draw, learn_thoughts, vectors_of
from homespun.model.decoder import Decoder
from homespun.model.prefixed import PREFIX, PrefixedDecoder, turn
from homespun.train.tensors import load_tensors, save_tensors
from tests.kinds import KINDS, small


@pytest.fixture(scope="module")
def source():
    """What thinks: a tiny model over bytes."""
    torch.manual_seed(1)
    shape = small("gqa", "swiglu", "rms", "rotary").model_copy(update={"vocab": 260, "context": 40, "width": 32})
    return SimpleNamespace(model=Decoder(shape).eval(), tokenizer=Bytes().build([], 0)[0])


@pytest.fixture(scope="module")
def corpus(source, tmp_path_factory):
    return prepare(["stories:60"], Bytes(), DataConfig(), tmp_path_factory.mktemp("thoughts") / "corpus")


# -- what a thought is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [8, 32, 50])
def test_a_thought_has_its_length_and_keeps_angles_where_there_is_room(source, dim):
    one, two = thoughts(["a red fox", "the vixen"], dim, source)
    assert one.vector.shape == (dim,) and float(one.vector.square().mean()) == pytest.approx(1, abs=1e-5)
    assert one.tokens == 9 and one.cosine(one) == pytest.approx(1, abs=1e-6) and one.cosine(two) < 0.9999
    alone = ThoughtState.from_input("a red fox", dim, source)
    assert torch.allclose(alone.vector, one.vector, atol=1e-5)
    if dim >= 32:
        plain = thoughts(["a red fox", "the vixen"], 32, source)
        assert one.cosine(two) == pytest.approx(plain[0].cosine(plain[1]), abs=1e-5)


def test_without_a_model_words_make_a_thought():
    fox, foxes, tax = (ThoughtState.from_input(text) for text in ("the red fox", "the red foxes", "annual report"))
    assert fox.cosine(foxes) > 0.6 > 0.3 > abs(fox.cosine(tax))
    assert torch.equal(fox.vector, ThoughtState.from_input("The  RED fox").vector)
    with pytest.raises(DataError, match="no words"):
        ThoughtState.from_input(" ")


def test_a_blend_lies_between(source):
    one, two = thoughts(["a red fox", "0123456789"], 32, source)
    middle = one.blend(two)
    assert one.cosine(middle) == pytest.approx(two.cosine(middle), abs=1e-4)
    assert one.cosine(one.blend(two, 0.0)) == pytest.approx(1) and two.cosine(one.blend(two, 1.0)) == pytest.approx(1)
    assert float(middle.vector.square().mean()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match="not between"):
        one.blend(two, 1.5)


def test_thoughts_of_two_models_do_not_mix(source):
    other = SimpleNamespace(model=Decoder(source.model.config), tokenizer=source.tokenizer)
    one, two = ThoughtState.from_input("fox", 32, source), ThoughtState.from_input("fox", 32, other)
    for act in (one.cosine, one.blend):
        with pytest.raises(ConfigError, match="two models"):
            act(two)
    with pytest.raises(ConfigError, match="another model"):
        LatentDecoder(32, 4, source).generate(two)


def test_a_thought_is_saved_and_read(source, tmp_path):
    one = ThoughtState.from_input("a red fox", 32, source)
    one.save(tmp_path / "fox.safetensors")
    back = ThoughtState.load(tmp_path / "fox.safetensors")
    assert torch.equal(one.vector, back.vector) and (one.model, one.tokens) == (back.model, back.tokens)
    (tmp_path / "broken").write_bytes(b"nothing")
    for name in ("broken", "missing"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            ThoughtState.load(tmp_path / name)


@pytest.mark.parametrize(
    "tensors, facts",
    [
        ({"other": torch.ones(4)}, {}),
        ({"vector": torch.ones(2, 2)}, {}),
        ({"vector": torch.ones(0)}, {}),
        ({"vector": torch.ones(4, dtype=torch.int64)}, {}),
        ({"vector": torch.full((4,), math.nan)}, {}),
        ({"vector": torch.full((4,), 1e30)}, {}),
        ({"vector": torch.zeros(4)}, {}),
        ({"vector": torch.ones(4)}, {"tokens": "\u00b2"}),
        ({"vector": torch.ones(4)}, {"tokens": "9" * 5000}),
    ],
)
def test_what_is_no_thought_is_refused(tensors, facts, tmp_path):
    save_tensors(tmp_path / "odd", tensors, {"model": "", "tokens": "3", **facts})
    with pytest.raises(CheckpointError):
        ThoughtState.load(tmp_path / "odd")


@pytest.mark.parametrize("odd", ["layers", "width", "vocab", "nan", "shape", "calibration", "tokenizer", "scalar"])
def test_what_is_no_decoder_is_refused(source, tmp_path, odd):
    decoder = LatentDecoder(32, 4, source)
    decoder.save(tmp_path / "good")
    tensors, facts = load_tensors(tmp_path / "good")
    shape = json.loads(facts["shape"])
    if odd in ("layers", "width", "vocab"):
        facts["shape"] = json.dumps(shape | {odd: {"layers": 10**6, "width": 2**16, "vocab": 100}[odd]})
    elif odd == "nan":
        tensors["decoder.model.norm.weight"][3] = math.nan
    elif odd == "scalar":
        tensors["codebook"] = torch.tensor(1.0)
    elif odd == "shape":
        tensors["codebook"] = tensors["codebook"][:, :9].clone()
    else:
        facts[odd] = "[1, null]"
    save_tensors(tmp_path / "bad", tensors, facts)
    with pytest.raises(CheckpointError, match="no decoder"):
        LatentDecoder.load(tmp_path / "bad")


# -- what is said of it ------------------------------------------------------------------------------------------------


def test_the_turn_keeps_lengths():
    assert torch.allclose(turn(12, 20) @ turn(12, 20).T, torch.eye(12), atol=1e-5)


def test_a_decoder_sees_how_a_thought_differs_from_others():
    torch.manual_seed(0)
    network = PrefixedDecoder(6, 4, small("gqa", "swiglu", "rms", "rotary").model_copy(update={"vocab": 20}))
    vectors = torch.randn(4000, 3) @ torch.diag(torch.tensor([5.0, 1.0, 0.5])) @ torch.randn(3, 6) + 7
    network.fit(vectors)
    seen = (vectors - network.mean) @ network.spread
    assert torch.allclose(seen.mean(0), torch.zeros(6), atol=1e-3)
    spectrum = torch.linalg.eigvalsh(seen.T.cov())
    assert spectrum[:3].abs().max() < 1e-3 and spectrum[3:].min() > 0.8  # three of six directions hold anything
    assert not torch.equal(network.prefix(vectors[:1]), network.prefix(vectors[:1], torch.ones(6)))


def test_step_by_step_is_the_same_as_at_once(source):
    decoder = LatentDecoder(32, 4, source)
    thought = ThoughtState.from_input("a red fox", 32, source)
    ids = source.tokenizer.encode("the words that are said")
    with torch.no_grad():
        tokens = torch.tensor([ids])
        hidden = decoder.network.hidden(tokens, decoder.network.prefix(thought.vector[None]))
        whole = decoder.network.decoder.logits(hidden)[0]
        reader = decoder.reader(thought)
        steps = torch.stack([reader.logits(ids[:count]) for count in range(len(ids) + 1)])
    assert whole.shape == (len(ids) + 1, 260) and torch.allclose(whole, steps, atol=2e-5)


def test_a_text_longer_than_the_context_goes_on(source):
    decoder = LatentDecoder(32, 4, source)
    text, confidence = decoder.generate(
        ThoughtState.from_input("fox", 32, source), max_tokens=90, logit_bias={259: -100}
    )
    assert decoder.network.context == 40 - PREFIX and isinstance(text, str) and 0 < confidence < 1


def test_patterns_are_shares(source):
    decoder = LatentDecoder(32, 4, source)
    shares = decoder.patterns(ThoughtState.from_input("fox", 32, source))
    assert shares.shape == (4,) and float(shares.sum()) == pytest.approx(1)


def test_a_decoder_is_saved_and_read(source, tmp_path):
    decoder = LatentDecoder(32, 4, source)
    thought = ThoughtState.from_input("fox", 32, source)
    decoder.save(tmp_path / "decoder.safetensors")
    assert LatentDecoder.load(tmp_path / "decoder.safetensors").generate(thought) == decoder.generate(thought)
    decoder.calibration = Calibration(2.0, -1.0)
    decoder.save(tmp_path / "decoder.safetensors")
    assert LatentDecoder.load(tmp_path / "decoder.safetensors").generate(thought) == decoder.generate(thought)
    thought.save(tmp_path / "fox.safetensors")
    with pytest.raises(CheckpointError, match="no decoder"):
        LatentDecoder.load(tmp_path / "fox.safetensors")


def test_calibration_finds_what_is_right():
    torch.manual_seed(0)
    means = -3 * torch.rand(500)
    right = torch.sigmoid(2 * means + 1)
    found = calibrated(means, right)
    assert (found.slope, found.shift) == pytest.approx((2, 1), abs=1e-2)
    told = torch.tensor([found(float(mean)) for mean in means])
    assert calibration_error(told, right) < 1e-3 < 0.05 < calibration_error(means.exp(), right)
    assert calibration_error(torch.ones(4), torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(0.5)
    lying = calibrated(means, 1 - right)  # the surer, the more wrong
    assert lying(-1.0) == lying(-2.0) == pytest.approx(float((1 - right).mean()), abs=1e-3)


def test_a_calibrated_decoder_knows_that_it_knows_nothing(source):
    decoder = LatentDecoder(32, 4, source)
    texts = [f"{word} {number}" for word in ("fox", "hen", "owl", "bee") for number in range(10)]
    known = list(zip(texts, thoughts(texts, 32, source), strict=True))
    before = decoder.generate(known[0][1])
    errors = decoder.calibrate(known)
    text, sure = decoder.generate(known[0][1])
    assert text == before[0] and sure != before[1] and errors[1] < 0.1
    with pytest.raises(DataError, match="19 texts"):
        decoder.calibrate(known[:19])


# -- how it learns -----------------------------------------------------------------------------------------------------


def test_spans_stay_within_documents_and_ask_for_their_end(source, corpus):
    end = source.tokenizer.end
    spans = draw(corpus.train, 64, 12, end, np.random.default_rng(0))
    assert 4 <= int(spans.lengths.min()) < int(spans.lengths.max()) <= 12 and not (spans.tokens == end).any()
    targets = spans.targets(end)
    for row, length in enumerate(spans.lengths.tolist()):
        assert targets[row, : length + 1].tolist() == [*spans.tokens[row, :length].tolist(), end]
        assert (targets[row, length + 1 :] == -100).all()
    vectors = vectors_of(source.model, spans, 32)
    text = source.tokenizer.decode(spans.tokens[0, : spans.lengths[0]])
    assert torch.allclose(vectors[0], ThoughtState.from_input(text, 32, source).vector, atol=1e-4)


def test_a_decoder_learns_to_listen_and_the_model_stays(source, corpus):
    weights = [parameter.clone() for parameter in source.model.parameters()]
    decoder = LatentDecoder(32, 4, source)
    pairs = [("who barks?", "a dog"), ("who meows?", "a cat")]
    settings = Thinking(steps=120, rows=2, span=8, learning_rate=5e-3, minutes=5, dropout=0.0)
    learn_thoughts(decoder, source, corpus, settings, pairs)
    said = [decoder.generate(ThoughtState.from_input(question, 32, source))[0] for question, _ in pairs]
    assert said == [answer for _, answer in pairs]
    assert all(torch.equal(a, b) for a, b in zip(weights, source.model.parameters(), strict=True))


def test_sizes_without_meaning_are_refused(source):
    for dim in (0, -1, 1.5, 8193, 10**12):
        for make in (lambda dim=dim: ThoughtState.from_input("a fox", dim), lambda dim=dim: LatentDecoder(dim, 4),
                     lambda dim=dim: ThoughtState.from_input("a fox", dim, source),
                     lambda dim=dim: LatentDecoder(8, dim)):  # fmt: skip
            with pytest.raises(ConfigError, match="is not possible. Choose a whole number"):
                make()


def test_settings_of_a_thoughts_text_are_kept_or_refused(source):
    decoder, thought = LatentDecoder(8, 4, source), ThoughtState.from_input("a fox", 8, source)
    hybrid = Hybrid(Generator(source.model, source.tokenizer), decoder)
    for write in (decoder.generate, lambda *given, **settings: hybrid.generate("a", *given, **settings)):
        with pytest.raises(ConfigError, match="beams"):
            write(thought, beams=2)
        with pytest.raises(ConfigError, match="does not know"):
            write(thought, logit_bias={"999": 1.0})
        assert write(thought, logit_bias={"100": 100.0}, max_tokens=3)[0] == chr(100) * 3


def test_a_text_of_a_thought_matches_its_grammar(source):
    pytest.importorskip("llguidance")
    decoder, thought = LatentDecoder(8, 4, source), ThoughtState.from_input("a fox", 8, source)
    hybrid = Hybrid(Generator(source.model, source.tokenizer), decoder)
    assert decoder.generate(thought, regex="[0-9]{3}")[0].isdecimal()
    assert hybrid.generate("a", thought, regex="[0-9]{3}", max_tokens=9)[0].isdecimal()


def test_a_decoder_learns_of_its_own_model_alone(source, corpus):
    torch.manual_seed(2)
    settings = Thinking(steps=1, rows=2, span=8)
    other = SimpleNamespace(model=Decoder(source.model.config).eval(), tokenizer=source.tokenizer)
    with pytest.raises(ConfigError, match="from another model"):
        learn_thoughts(LatentDecoder(8, 4, other), source, corpus, settings)
    letters = SimpleNamespace(model=source.model, tokenizer=Chars().build(["abc"], 3)[0])
    with pytest.raises(ConfigError, match="two vocabularies"):
        learn_thoughts(LatentDecoder(8, 4, letters), source, corpus, settings)
    with pytest.raises(DataError, match="no text of its own"):
        learn_thoughts(LatentDecoder(8, 4, source), source, None, settings)
    new = LatentDecoder(8, 4)
    learn_thoughts(new, source, corpus, settings)
    with pytest.raises(ConfigError, match="another model"):
        new.generate(ThoughtState.from_input("a", 8, other))


def test_no_decoder_learns_what_is_no_number(source, corpus):
    decoder = LatentDecoder(8, 4, source)
    with torch.no_grad():
        decoder.network.codebook[0, 0] = torch.nan
    before = {name: tensor.clone() for name, tensor in decoder.network.named_parameters()}
    with pytest.raises(TrainingError, match="no number"):
        learn_thoughts(decoder, source, corpus, Thinking(steps=5, rows=2, span=8))
    assert all(torch.equal(before[name].nan_to_num(), tensor.nan_to_num())
               for name, tensor in decoder.network.named_parameters())  # fmt: skip
    assert not decoder.network.training


def test_spans_fit_into_a_short_context_and_of_many_pairs_some_are_read(corpus, monkeypatch):
    from homespun.model.positions import LearnedPositions

    torch.manual_seed(0)
    shape = small("gqa", "swiglu", "rms", "rotary").model_copy(
        update={"vocab": 260, "context": 24, "positions": LearnedPositions()}
    )
    short = SimpleNamespace(model=Decoder(shape).eval(), tokenizer=Bytes().build([], 0)[0])
    decoder, read, inside = LatentDecoder(8, 4, short), [], PrefixedDecoder.losses
    monkeypatch.setattr(
        PrefixedDecoder, "losses", lambda self, *given: read.append(given[1].shape) or inside(self, *given)
    )
    pairs = [(f"question {number}", f"answer {number}") for number in range(300)]
    learn_thoughts(decoder, short, corpus, Thinking(steps=3, rows=4, span=64), pairs)
    assert len(read) == 6 and all(rows == 4 and tokens <= 16 for rows, tokens in read)


# -- two models, one text ----------------------------------------------------------------------------------------------


def test_mixing_keeps_its_promises():
    torch.manual_seed(0)
    ours, theirs, empty = torch.randn(3, 5, 50)
    for mix in (mixture, product):
        assert torch.equal(mix(ours, theirs, 0.0), ours.log_softmax(-1))
        assert torch.equal(mix(ours, theirs, 1.0), theirs.log_softmax(-1))
        assert torch.allclose(mix(ours, theirs, 0.3).exp().sum(-1), torch.ones(5), atol=1e-6)
    expected = 0.7 * ours.softmax(-1) + 0.3 * theirs.softmax(-1)
    assert torch.allclose(mixture(ours, theirs, 0.3).exp(), expected, atol=1e-7)
    assert torch.equal(guidance(ours, theirs, empty, 0.0), ours.log_softmax(-1))
    assert torch.allclose(guidance(ours, theirs, empty, 2.0).exp().sum(-1), torch.ones(5), atol=1e-6)
    barred = ours.index_fill(-1, torch.tensor([3]), -math.inf)
    assert guidance(barred, barred, barred, 2.0)[:, 3].eq(-math.inf).all()


def test_the_fitted_weight_is_never_worse_than_either_alone():
    torch.manual_seed(0)
    for shift in (-5.0, -1.0, 0.0, 1.0, 5.0):
        ours, theirs = -torch.rand(200).mul(4), -torch.rand(200).mul(4) - shift
        weight = fitted_weight(ours, theirs)

        def loss(weight: float, ours: torch.Tensor = ours, theirs: torch.Tensor = theirs) -> float:
            return -float(((1 - weight) * ours.double().exp() + weight * theirs.double().exp()).log().sum())

        assert loss(weight) <= min(loss(0.0), loss(1.0)) + 1e-9
        assert loss(weight) <= min(loss(share / 20) for share in range(21)) + 1e-6
    assert fitted_weight(torch.tensor([-1.0]), torch.tensor([-2.0])) == 0.0
    assert fitted_weight(torch.tensor([-2.0]), torch.tensor([-1.0])) == 1.0


def test_at_the_ends_of_the_weight_each_model_writes_alone(source):
    generator = Generator(source.model, source.tokenizer)
    decoder = LatentDecoder(32, 4, source)
    thought = ThoughtState.from_input("fox", 32, source)
    settings = {"max_tokens": 60, "temperature": 0.7, "seed": 3}
    alone = generator.complete(["Once"], Sampling(**settings))[0].text
    for mode in ("mixture", "product", "guidance"):
        assert Hybrid(generator, decoder, 0.0, mode).generate("Once", thought, **settings)[0] == alone
    greedy = {"max_tokens": 20, "temperature": 0.0}
    assert Hybrid(generator, decoder, 1.0).generate("Once", thought, **greedy) == decoder.generate(thought, **greedy)
    half = Hybrid(generator, decoder, 0.5)
    assert half.generate("Once", thought, **settings) == half.generate("Once", thought, **settings)


@torch.inference_mode()
def test_at_the_ends_of_the_weight_logits_are_those_of_each_model_to_the_bit(source):
    generator, decoder = Generator(source.model, source.tokenizer), LatentDecoder(32, 4, source)
    thought = ThoughtState.from_input("fox", 32, source)
    ids = source.tokenizer.encode("Once upon")
    alone = generator.writer.hidden(torch.tensor([ids]), generator.writer.new_cache(1, 40))[0]
    ours = (generator.writer.logits(alone[:, -1])[0] + generator.bias).log_softmax(-1)
    theirs = (decoder.reader(thought).logits(ids[4:]) + decoder.bias).log_softmax(-1)
    for mode in ("mixture", "product"):
        for weight, wanted in ((0.0, ours), (1.0, theirs)):
            told = Following(Hybrid(generator, decoder, weight, mode), thought).log_probabilities(ids, 4)
            assert torch.equal(told, wanted)
        mixed = Following(Hybrid(generator, decoder, 0.4, mode), thought).log_probabilities(ids, 4)
        assert float(mixed.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_a_gate_is_never_worse_than_the_fitted_weight():
    torch.manual_seed(0)
    entropies = torch.rand(300, 2) * 3
    ours = -torch.rand(300).mul(2) - 0.1
    theirs = torch.where(entropies[:, 1] < 1, ours.mul(0.5), ours - 6)  # good where it is decided
    weight = fitted_weight(ours, theirs)
    gate = fitted_gate(ours, theirs, entropies, weight)
    assert isinstance(gate, Gate) and gate.latent < -1
    share = torch.sigmoid(gate.shift + entropies @ torch.tensor([gate.model, gate.latent]))

    def loss(share: torch.Tensor | float) -> float:
        return -float(((1 - share) * ours.exp() + share * theirs.exp()).log().mean())

    assert loss(share) < loss(weight) - 0.05
    assert fitted_gate(ours, ours, entropies, 0.0) == 0.0  # nothing to gain
    told = torch.randn(7, 50).log_softmax(-1)
    assert torch.allclose(entropy(told), torch.distributions.Categorical(logits=told).entropy(), atol=1e-5)
    mixed = mixture(told, torch.randn(7, 50), gate)
    assert torch.allclose(mixed.exp().sum(-1), torch.ones(7), atol=1e-6)


def test_a_weight_is_fitted_on_texts_behind_their_prompts(source):
    generator, decoder = Generator(source.model, source.tokenizer), LatentDecoder(32, 4, source)
    texts = list(zip(["a dog", "a cat"], thoughts(["who barks?", "who meows?"], 32, source), strict=True))
    hybrid = Hybrid(generator, decoder)
    assert hybrid.fit(texts) == hybrid.weight and 0 <= hybrid.weight <= 1
    assert hybrid._known(texts, ["", ""])[:, 1].tolist() == hybrid._known(texts, ["It is", "It is"])[:, 1].tolist()
    gate = hybrid.fit(texts, prompts=["It is", "It is"], gated=True)
    assert hybrid.weight == gate and isinstance(hybrid.generate("It is", texts[0][1], max_tokens=4, seed=1)[0], str)
    with pytest.raises(ConfigError, match="no text"):
        hybrid.fit([])
    with pytest.raises(ConfigError, match="2 texts have 1 prompts"):
        hybrid.fit(texts, prompts=["It is"])
    with pytest.raises(ConfigError, match="cannot be fitted"):
        Hybrid(generator, decoder, mode="product").fit(texts)
    with pytest.raises(ConfigError, match="of a mixture"):
        Hybrid(generator, decoder, Gate(0.0, 0.0, 0.0), "product")


def test_two_vocabularies_and_weights_without_meaning_are_refused(source):
    other = Chars().build(["abc"], 3)[0]
    generator = Generator(Decoder(source.model.config), other)
    with pytest.raises(ConfigError, match="two vocabularies"):
        Hybrid(generator, LatentDecoder(32, 4, source))
    generator = Generator(source.model, source.tokenizer)
    for weight, mode in [(-0.1, "mixture"), (1.1, "product"), (math.nan, "guidance"), (0.5, "sum")]:
        with pytest.raises(ConfigError):
            Hybrid(generator, LatentDecoder(32, 4, source), weight, mode)


@pytest.mark.parametrize("kind", KINDS[:: len(KINDS) // 6], ids="-".join)
def test_every_kind_of_model_can_say_thoughts(kind):
    torch.manual_seed(0)
    shape = small(*kind).model_copy(update={"vocab": 260, "context": 24})
    source = SimpleNamespace(model=Decoder(shape).eval(), tokenizer=Bytes().build([], 0)[0])
    decoder = LatentDecoder(16, 4, source)
    text, confidence = decoder.generate(ThoughtState.from_input("fox", 16, source), max_tokens=5)
    assert isinstance(text, str) and 0 < confidence <= 1
