"""Two heads from one forward: the contrastive loss, its pairs, and what it leaves as it was."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from homespun.config import override
from homespun.data.batches import IGNORED, Batch, Batches
from homespun.data.views import NOWHERE, PairedBatches, Pairs, halves
from homespun.errors import ConfigError
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.model.embedding import Embedding, EmbeddingHead
from homespun.objectives import Joint, NextToken
from homespun.objectives.contrastive import figures, info_nce
from homespun.train.log import read_metrics
from homespun.train.recipe import Recipe
from tests.train.house import RECIPE, assert_equal, trainer

END = 0
MODEL = override(Recipe(), ["model.vocab=64", "model.width=32", "model.layers=2", "model.context=16",
                            "model.attention.heads=2", "model.embedding={size: 8}",
                            "objective.kind=joint"]).model  # fmt: skip


@dataclass
class Split:
    tokens: np.ndarray


def text(*sizes: int) -> Split:
    """Documents of these sizes, each of its own ids: document d counts on from 1000 d + 1."""
    parts = [part for d, size in enumerate(sizes) for part in (1000 * d + 1 + np.arange(size), [END])]
    return Split(np.concatenate(parts))


LONG = text(90, 100, 300, 95, 120, 110, 5, 400)


def decoder(**more) -> Decoder:
    torch.manual_seed(0)
    return Decoder(MODEL.model_copy(update=more))


def pairs(rows: int = 8, seed: int = 3) -> Pairs:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(64, (rows, 16), generator=draw)
    lengths = torch.randint(2, 16, (rows,), generator=draw)
    return Pairs(tokens, tokens.roll(-1, 1), lengths, torch.arange(rows // 2).repeat_interleave(2))


# -- views -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", ["crops", "adjacent", "dropout"])
def test_views_are_spans_of_one_document(views):
    batches = PairedBatches(LONG, END, 32, 8, seed=1, views=views, shortest=4)
    seen, overlaps = set(), []
    for step in range(60):
        batch = batches[step]
        for row in range(0, 8, 2):
            spans = [batch.tokens[r, : batch.lengths[r]] for r in (row, row + 1)]
            document = int(batch.documents[row])
            seen.add(document)
            if document == NOWHERE:
                assert batch.lengths[row : row + 2].tolist() == [0, 0]
                continue
            for span in spans:
                assert len(span) >= 4 and torch.equal(span, span[0] + torch.arange(len(span)))  # unbroken
                assert set((span // 1000).tolist()) == {document}
            first, second = spans
            if views == "adjacent":
                assert second[0] == first[0] + 32  # a window further on
            if views == "dropout":
                assert torch.equal(first, second) and (batch.targets[row + 1] == IGNORED).all()
            if views == "crops":
                overlap = len(np.intersect1d(first, second))
                assert overlap <= max(len(first), len(second)) / 2 + 1
                overlaps.append(overlap)
        if views != "dropout":
            assert (batch.targets != IGNORED).all()
    assert seen >= {0, 1, 2, 3, 4, 5, 7} and bool(sum(overlaps)) == (views == "crops")
    assert 6 not in seen or views == "dropout"  # five tokens hold no two views, but one


def test_adjacent_views_leave_the_language_model_every_token_once():
    split = text(*[50] * 12, 27)  # 640 tokens: an epoch of 10 windows of two rows
    batches = PairedBatches(split, END, 32, 4, seed=1, views="adjacent", shortest=4)
    read = [batches[step] for step in range(5)]
    assert sorted(np.concatenate([batch.tokens.flatten() for batch in read])) == sorted(split.tokens)
    documents = torch.cat([batch.documents for batch in read])
    assert (documents == NOWHERE).any() and (documents != NOWHERE).any()


def test_every_row_is_a_window_that_goes_on_behind_its_view():
    batch = PairedBatches(LONG, END, 32, 8, seed=1, shortest=4)[0]
    ring = np.concatenate([LONG.tokens, LONG.tokens])
    for row in range(8):
        begin = int(np.flatnonzero(LONG.tokens == int(batch.tokens[row, 0]))[0]) if batch.tokens[row, 0] else None
        if begin is not None:
            assert batch.tokens[row].tolist() == ring[begin : begin + 32].tolist()
            assert batch.targets[row].tolist() == ring[begin + 1 : begin + 33].tolist()


def test_a_batch_of_pairs_is_a_function_of_seed_and_step_for_any_number_of_ranks():
    whole = PairedBatches(LONG, END, 32, 8, seed=5)
    ranks = [PairedBatches(LONG, END, 32, 8, seed=5, rank=rank, world=2) for rank in (0, 1)]
    for step in (7, 0, 7):
        parts = [each[step] for each in ranks]
        for name in ("tokens", "targets", "lengths", "documents"):
            assert torch.equal(getattr(whole[step], name), torch.cat([getattr(part, name) for part in parts])), name
    other = PairedBatches(LONG, END, 32, 8, seed=6)
    assert not torch.equal(other[7].tokens, whole[7].tokens) and not torch.equal(whole[8].tokens, whole[7].tokens)
    assert whole.steps_per_epoch == Batches(LONG, 32, 8, 5).steps_per_epoch


def test_pairs_stay_together_when_a_batch_is_cut():
    batch = pairs(8)
    for rows, sizes in ((8, [8]), (5, [4, 4]), (3, [2] * 4), (1, [2] * 4)):
        parts = batch.split(rows)
        assert [len(part.tokens) for part in parts] == sizes
        assert torch.equal(torch.cat([part.documents for part in parts]), batch.documents)


def test_rows_that_make_no_pairs_are_refused():
    for rows, world in ((2, 1), (7, 1), (6, 2)):
        with pytest.raises(ConfigError, match=f"{rows} rows"):
            PairedBatches(LONG, END, 32, rows, seed=0, world=world)


def test_a_text_shorter_than_a_window_has_no_pairs_but_is_read():
    batch = PairedBatches(text(6), END, 32, 4, seed=0)[0]
    assert (batch.documents == NOWHERE).all() and (batch.targets != IGNORED).any()


def test_the_halves_of_rows_predict_every_id_once():
    ids = torch.arange(1, 11).view(2, 5)
    batch = halves(ids)
    assert batch.documents.tolist() == [0, 0, 1, 1] and batch.lengths.tolist() == [2, 3, 2, 3]
    assert batch.tokens.tolist() == [[1, 2, 3, 4], [3, 4, 5, 0], [6, 7, 8, 9], [8, 9, 10, 0]]
    assert batch.targets[batch.targets != IGNORED].tolist() == [2, 3, 4, 5, 7, 8, 9, 10]


# -- the loss ----------------------------------------------------------------------------------------------------------


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_equal_vectors_cost_the_logarithm_of_their_number():
    same = unit(1, 8).expand(6, 8)
    torch.testing.assert_close(info_nce(same, same, torch.arange(6), 0.05), torch.full((6,), math.log(6)).double())


def test_the_loss_is_the_formula_and_knows_no_order():
    a, b, documents = unit(5, 8), unit(5, 8, seed=1), torch.arange(5)
    logits = a @ b.T / 0.1
    by_hand = torch.stack([(logits[i].logsumexp(0) + logits[:, i].logsumexp(0)) / 2 - logits[i, i] for i in range(5)])
    torch.testing.assert_close(info_nce(a, b, documents, 0.1), by_hand)
    torch.testing.assert_close(info_nce(b, a, documents, 0.1), by_hand)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(info_nce(a[order], b[order], documents, 0.1), by_hand[order])


def test_pairs_of_one_document_are_no_negatives_of_each_other_and_none_of_those_that_are_none():
    a, b = unit(4, 8), unit(4, 8, seed=1)
    masked = info_nce(a, b, torch.tensor([0, 1, 0, NOWHERE]), 0.1)
    assert masked[3] == 0
    torch.testing.assert_close(masked[0], info_nce(a[:2], b[:2], torch.arange(2), 0.1)[0])
    torch.testing.assert_close(masked[2], info_nce(a[1:3], b[1:3], torch.arange(2), 0.1)[1])
    torch.testing.assert_close(masked[1], info_nce(a[:3], b[:3], torch.arange(3), 0.1)[1])


def test_gradients_of_the_loss():
    documents = torch.tensor([0, 1, 0, NOWHERE])
    inputs = (unit(4, 3).requires_grad_(), unit(4, 3, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, documents, 0.3), inputs)


def test_figures_tell_a_good_space_from_a_point():
    good = unit(400, 16).float()
    seen = figures(good, good)
    assert seen["alignment"] == 0 and seen["spread"] == pytest.approx(1, abs=0.05) and seen["uniformity"] < -3
    point = F.normalize(unit(1, 16).float() + 1e-3 * good, dim=-1)
    seen = figures(point, good)
    assert seen["spread"] < 0.02 and seen["uniformity"] == pytest.approx(0, abs=1e-3) and seen["alignment"] > 1
    assert all(value.isnan() for value in figures(good[:1], good[:1]).values())
    assert (
        Joint().alarm({"spread": 0.01}) and not Joint().alarm({"spread": 0.5}) and not Joint().alarm({"spread": None})
    )


# -- the objective -----------------------------------------------------------------------------------------------------


def test_a_vector_is_of_its_text_alone():
    model, batch = decoder().eval(), pairs()
    whole = model.embedding(batch.tokens, model.hidden(batch.tokens)[0], batch.lengths)
    assert whole.shape == (8, 8) and whole.norm(dim=1).tolist() == pytest.approx([1.0] * 8)
    for row, length in enumerate(batch.lengths.tolist()):
        tokens = batch.tokens[row : row + 1, :length]
        alone = model.embedding(tokens, model.hidden(tokens)[0], torch.tensor([length]))
        torch.testing.assert_close(alone[0], whole[row], atol=1e-6, rtol=0)


def head(pooling: str, words: bool) -> EmbeddingHead:
    """Of width 2, for 3 tokens: the states count half their second number, tokens nothing but the last, ln 2."""
    made = Embedding(size=4, pooling=pooling, words=words).build(2, 3)
    with torch.no_grad():
        made.weight.copy_(torch.arange(8.0).view(4, 2))
        for parameter, values in (
            (made.words, torch.arange(12.0).view(3, 4)),
            (made.score, torch.tensor([0.0, 1.0])),
            (made.word_score, torch.tensor([[0.0], [0.0], [math.log(2)]])),
        ):
            if parameter is not None:
                parameter.copy_(values)
    return made


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "weighted", "last"])
def test_pooling_reads_real_tokens_only(pooling, words):
    hidden = torch.arange(12.0).view(2, 3, 2)
    hidden[0, 2] = math.nan
    tokens, lengths = torch.tensor([[0, 2, 1], [1, 1, 0]]), torch.tensor([2, 3])
    made = head(pooling, words)
    more = math.log(2) * words
    weights = {
        "mean": [[0.5, 0.5], [1 / 3] * 3],
        "last": [[0.0, 1.0], [0.0, 0.0, 1.0]],
        "weighted": [
            torch.tensor([0.5, 1.5 + more]).softmax(0).tolist(),
            torch.tensor([3.5, 4.5, 5.5]).softmax(0).tolist(),
        ],
    }[pooling]
    for row, shares in enumerate(weights):
        shares = torch.tensor(shares)
        expected = shares @ hidden[row, : len(shares)] @ made.weight.T / 2
        if words:
            expected = expected + shares @ made.words[tokens[row, : len(shares)]]
        found = made(tokens, hidden, lengths)[row]
        torch.testing.assert_close(found, expected / expected.norm())


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "weighted", "last"])
def test_no_place_gives_zeros_and_no_gradient(pooling, words):
    made, hidden = head(pooling, words), torch.randn(2, 3, 2, requires_grad=True)
    vectors = made(torch.tensor([[1, 1, 1], [0, 2, 1]]), hidden, torch.tensor([0, 2]))
    assert not vectors[0].any() and vectors[1].any()
    vectors.sum().backward()
    assert not hidden.grad[0].any() and not hidden.grad[1, 2].any() and hidden.grad[1, :2].any()
    assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters())
    assert not words or (not made.words.grad[1].any() and made.words.grad[2].any())


@pytest.mark.parametrize("pooling", ["mean", "weighted", "last"])
def test_the_total_is_both_losses_and_its_parts_add_up(pooling):
    model, batch = decoder(embedding=Embedding(size=8, pooling=pooling)), pairs()
    plain, joint = NextToken().build()(model, batch), Joint(weight=0.5, temperature=0.2).build()(model, batch)
    assert torch.equal(plain.loss, joint.loss) and plain.count == joint.count == 128
    contrastive = float(joint.extra["contrastive"][0]) / joint.count
    assert joint.total.item() / 128 == pytest.approx(plain.total.item() / 128 + 0.5 * contrastive, rel=1e-6)
    vectors = model.embedding(batch.tokens, model.hidden(batch.tokens)[0], batch.lengths)
    expected = info_nce(vectors[::2], vectors[1::2], torch.arange(4), 0.2).mean()
    assert contrastive == pytest.approx(expected.item(), rel=1e-5)
    assert Joint().build()(model, unpaired(batch)).total == plain.total  # no pairs, no second loss
    joint.total.backward()
    assert model.embedding_head.weight.grad.norm() > 0


def unpaired(batch: Pairs) -> Batch:
    return Batch(batch.tokens, batch.targets)


def test_the_loss_is_computed_in_fp32_under_autocast():
    model, batch = decoder(), pairs()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(batch.tokens)[0]
        vectors = model.embedding(batch.tokens, hidden, batch.lengths)
        losses = Joint().build()(model, batch)
    assert vectors.dtype == torch.float32
    expected = info_nce(vectors[::2], vectors[1::2], torch.arange(4), Joint().temperature).mean()
    assert losses.extra["contrastive"][0].item() / losses.count == pytest.approx(expected.item(), rel=1e-5)


def test_equal_views_need_dropout():
    with pytest.raises(ConfigError, match=r"model\.dropout"):
        override(RECIPE, ["model.dropout=0", "objective.kind=joint", "objective.views=dropout"])
    override(RECIPE, ["objective.kind=joint", "objective.views=dropout"])
    with pytest.raises(ConfigError, match="longest view"):
        override(RECIPE, ["objective.kind=joint", "objective.shortest=33"])


# -- in training -------------------------------------------------------------------------------------------------------


def test_weight_0_is_the_plain_language_model_bit_for_bit(tmp_path):
    plain = trainer(tmp_path / "plain")
    silent = trainer(tmp_path / "silent", "objective.kind=joint", "objective.weight=0")
    plain.fit(), silent.fit()
    assert_equal(plain, silent)
    assert Joint(weight=0).completed(RECIPE.model) == RECIPE.model
    headed = trainer(tmp_path / "head", "objective.kind=joint", "objective.weight=0", "model.embedding={size: 4}")
    headed.fit()
    ours = headed.model.state_dict()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, ours[name]), name


@pytest.mark.parametrize("views", ["crops", "dropout"])
def test_a_joint_run_trains_its_head_and_resumes_exactly(tmp_path, views):
    settings = ["objective.kind=joint", f"objective.views={views}", "objective.weight=1", "model.embedding={size: 8}"]
    whole = trainer(tmp_path / "whole", *settings)
    begin = whole.model.embedding_head.weight.detach().clone()
    whole.fit()
    assert not torch.equal(whole.model.embedding_head.weight, begin)
    half = trainer(tmp_path / "half", *settings)
    for _ in range(6):
        half.step()
    half._save()
    rest = trainer(tmp_path / "half", *settings)
    assert rest.progress.step == 6
    rest.fit()
    ours, theirs = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [row for row in read(tmp_path / "whole") if "contrastive" in row]
    assert rows and all(math.isfinite(row[name]) for row in rows for name in ("contrastive", "alignment", "uniformity"))


def test_a_collapse_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr("homespun.objectives.joint.COLLAPSED", 10.0)  # more than there can be
    run = trainer(tmp_path, "objective.kind=joint", "model.embedding={size: 8}", "train.steps=3")
    run.fit()
    assert [row["step"] for row in read(tmp_path) if "collapsed" in row.get("advice", "")] == [1]


def test_a_head_that_nothing_trains_is_no_part_of_a_run():
    with pytest.raises(ConfigError, match="trained by objective.kind=joint alone"):
        override(Recipe(), ["model.embedding={size: 8}"])
    assert Joint(weight=0.0).completed(MODEL.model_copy(update={"embedding": Embedding()})).embedding is None


def test_batches_without_pairs_are_told():
    said = Joint().alarm({"contrastive": 0.0, "spread": None})
    assert said is not None and "no two documents" in said and Joint().alarm({"contrastive": 1.0}) is None


def read(folder):
    return read_metrics(folder / "metrics.jsonl")


def test_embeddings_learn_to_pair(tmp_path):
    """Documents of few letters each: which letters they are tells them apart."""
    draw = np.random.default_rng(0)
    parts = [np.concatenate([draw.choice(np.arange(1, 64), 4)[draw.integers(0, 4, 60)], [END]]) for _ in range(60)]
    batches = PairedBatches(Split(np.concatenate(parts)), END, 16, 32, seed=0, shortest=12)
    model, objective = decoder(), Joint(weight=1.0).build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    seen = []
    for step in range(60):
        losses = objective(model, batches[step])
        optimizer.zero_grad()
        (losses.total / losses.count).backward()
        optimizer.step()
        seen.append(float(losses.extra["contrastive"][0]) / losses.count)
    assert np.mean(seen[-5:]) < 0.6 * np.mean(seen[:3])


@pytest.mark.parametrize(
    ("pooling", "words", "numbers"),
    [
        ("mean", False, 8 * 32),
        ("weighted", False, 9 * 32),
        ("last", True, 8 * (32 + 64)),
        ("weighted", True, 9 * (32 + 64)),
    ],
)
def test_the_head_costs_what_it_counts(pooling, words, numbers):
    headed = decoder(embedding=Embedding(size=8, pooling=pooling, words=words))
    bare = decoder(embedding=None)
    counted = sum(p.numel() for p in headed.parameters())
    assert cost(headed.config).parameters == counted == cost(bare.config).parameters + numbers
    begun, plain = headed.state_dict(), bare.state_dict()
    assert all(torch.equal(begun[name], plain[name]) for name in plain)  # a head changes no other first weight
