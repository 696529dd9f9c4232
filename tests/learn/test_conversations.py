"""Conversations to learn from: only answers are asked for, none sees another, each comes once in an epoch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from homespun.data.batches import IGNORED
from homespun.data.conversation import encode, encode_asked, render
from homespun.data.rows import Rows, row_of
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import Bytes
from homespun.errors import DataError
from homespun.learn.conversations import ConversationBatches, Conversations, read_conversations
from homespun.objectives.next_token import NextToken, NextTokenObjective
from tests.kinds import ATTENTIONS, build, small

TALK = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "Four."},
    ]
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Bytes().build([], 0)[0]


def foreign(tokenizer: Tokenizer) -> Tokenizer:
    """The same without our special tokens but the end."""
    data = json.loads(tokenizer.to_json())
    kept = [token for token in data["added_tokens"] if token["content"] == "<|endoftext|>"]
    return Tokenizer(json.dumps(data | {"added_tokens": kept}))


def said(pieces: list, tokenizer: Tokenizer) -> str:
    ids, asked = encode_asked(pieces, tokenizer)
    return tokenizer.decode([each for each, wanted in zip(ids, asked, strict=True) if wanted], special=True)


def test_only_answers_and_their_ends_are_asked_for(tokenizer: Tokenizer) -> None:
    end = "<|endoftext|>"
    assert said(render(TALK), tokenizer) == f"Hello!{end}Four.{end}"
    assert said(render({"prompt": "a", "completion": "b"}), tokenizer) == f"b{end}"
    assert said(render({"instruction": "a", "input": "c", "output": "b"}), tokenizer) == f"b{end}"
    unanswered = {"messages": [*TALK["messages"], {"role": "user", "content": "And?"}]}
    assert said(render(unanswered), tokenizer) == f"Hello!{end}Four.{end}"  # the end behind a question is no answer
    assert said(render({"text": "assistant"}), tokenizer) == ""


def test_the_ids_are_those_of_the_template_with_its_end(tokenizer: Tokenizer) -> None:
    for each in (tokenizer, foreign(tokenizer)):
        ids, _ = encode_asked(render(TALK), each)
        assert ids == [*encode(render(TALK), each), each.end]


def test_words_mark_the_turns_where_a_vocabulary_has_no_tokens_for_them(tokenizer: Tokenizer) -> None:
    other = foreign(tokenizer)
    ids, _ = encode_asked(render({"prompt": "a", "completion": "b"}), other)
    assert other.decode(ids) == "\nUser:\na\nAssistant:\nb"
    assert said(render({"prompt": "a", "completion": "b"}), other) == "b<|endoftext|>"


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int) -> list[dict]:
    return [{"prompt": f"q{n}" * (1 + n % 7), "completion": f"answer {n}" * (1 + n % 3)} for n in range(count)]


@pytest.fixture
def found(tmp_path: Path, tokenizer: Tokenizer) -> Conversations:
    return read_conversations([write(tmp_path / "rows.jsonl", pairs(90))], tokenizer, 64, 0.1)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_conversation_sees_another(attention: str, tokenizer: Tokenizer, found: Conversations) -> None:
    settings = small(attention, "experts", "rms", "rotary").model_copy(update={"vocab": 260, "context": 64})
    model, objective = build(settings), NextTokenObjective(NextToken())
    together = found.train.batch(np.array([3, 0, 11, 25]))
    losses = objective.token_losses(model, together)
    for place, row in enumerate([3, 0, 11, 25]):
        alone = objective.token_losses(model, found.train.batch(np.array([row])))[0]
        assert torch.allclose(losses[place, : len(alone)], alone, atol=2e-4)
        assert losses[place, len(alone) :].abs().sum() == 0
    hidden = model.model.embed(together.tokens).detach().requires_grad_()
    x = hidden
    for block in model.model.blocks():
        x, _ = block(x)
    real = torch.arange(x.size(1)) < torch.from_numpy(found.train.lengths[[3, 0, 11, 25]])[:, None]
    (x[1] * real[1][:, None]).sum().backward()
    reached = hidden.grad.abs().sum(-1) > 0
    assert not reached[[0, 2, 3]].any() and not reached[1][~real[1]].any() and reached[1][real[1]].any()


def test_rows_are_padded_on_the_right_and_nothing_is_asked_there() -> None:
    rows = Rows([(np.array([1, 2, 3]), np.array([2, 3, 4])), (np.array([7]), np.array([8]))])
    batch = rows.batch(np.array([1, 0]))
    assert batch.tokens[1].tolist() == [1, 2, 3] and batch.tokens[0, 0] == 7
    assert batch.targets.tolist() == [[8, IGNORED, IGNORED], [2, 3, 4]]


@pytest.mark.parametrize("rows", [1, 7, 16, 200])
def test_every_conversation_comes_once_in_an_epoch(found: Conversations, rows: int) -> None:
    batches = found.batches(64, rows, seed=2)
    count, size = len(found.train.lengths), batches.batch_rows
    pools = -(-count * 3 // (size * batches.pool))
    shown = Counter(int(row) for step in range(pools * batches.pool) for row in batches.chosen(step))
    assert set(shown) == set(range(count)) and max(shown.values()) - min(shown.values()) <= 1
    assert batches.steps_per_epoch == count / size
    assert batches.tokens_per_step == pytest.approx(rows * 64, rel=0.5) or size == 1


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("world", [2, 3])
def test_a_batch_is_the_same_for_any_number_of_ranks(found: Conversations, rows: int, world: int) -> None:
    whole = found.batches(64, rows, seed=2)
    for step in (0, 5, 77):
        ranks = [found.batches(64, rows, seed=2, rank=rank, world=world) for rank in range(world)]
        assert all(np.array_equal(each.chosen(step), whole.chosen(step)) for each in ranks)
        asked = np.sort(np.concatenate([each[step].targets[each[step].targets >= 0] for each in ranks]))
        assert np.array_equal(asked, np.sort(whole[step].targets[whole[step].targets >= 0]))
    assert not np.array_equal(found.batches(64, rows, seed=3).chosen(0), whole.chosen(0))


def test_a_rank_without_a_row_has_one_in_which_nothing_is_asked(found: Conversations) -> None:
    ranks = [ConversationBatches(found.train, 2, seed=2, rank=rank, world=3)[0] for rank in range(3)]
    assert [len(each.tokens) for each in ranks] == [1, 1, 1]
    assert (ranks[2].targets == IGNORED).all()
    model = build(small("gqa", "swiglu", "rms", "rotary").model_copy(update={"vocab": 260, "context": 64}))
    losses = NextTokenObjective(NextToken())(model, ranks[2])
    losses.total.backward()
    assert losses.count == 0 and all(float(p.grad.abs().sum()) == 0 for p in model.parameters() if p.grad is not None)


def test_nothing_flows_from_what_is_not_asked_for(tokenizer: Tokenizer) -> None:
    """Neither the loss nor a gradient tells which question tokens were the targets; those of the answer do tell."""
    ids, asked = encode_asked(render(TALK), tokenizer)
    row = row_of(render(TALK), tokenizer)
    model = build(small("gqa", "swiglu", "rms", "rotary").model_copy(update={"vocab": 260, "context": 128}))
    hidden = model.hidden(Rows([row]).batch(np.array([0])).tokens)[0].detach().requires_grad_()
    batch = Rows([row]).batch(np.array([0]))
    losses = NextTokenObjective(NextToken()).of(model, hidden, model.hidden(batch.tokens)[1], batch.targets)
    losses.total.backward()
    reached = hidden.grad[0].abs().sum(-1) > 0
    assert reached.tolist() == asked[1:] and losses.count == sum(asked) < len(ids) - 1


def test_batches_of_similar_lengths_pad_little(found: Conversations) -> None:
    batches = found.batches(64, 4, seed=2)
    padded, unsorted, real, order = 0, 0, 0, np.random.default_rng(0)
    for step in range(40):
        lengths = found.train.lengths[batches.chosen(step)]
        real += lengths.sum()
        padded += lengths.max() * len(lengths)
        unsorted += order.choice(found.train.lengths, len(lengths), replace=False).max() * len(lengths)
    assert padded < 1.1 * real < unsorted


def test_long_conversations_are_cut_at_their_end_and_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [*pairs(20), {"prompt": "short", "completion": "long " * 50}, {"prompt": "long " * 50, "completion": "x"}]
    notes: list[str] = []
    found = read_conversations([write(tmp_path / "r.jsonl", rows)], tokenizer, 64, 0.0, say=notes.append)
    assert len(found.train.lengths) == 21 and found.train.lengths.max() == 64
    assert any("2 of 22 are longer than the context of 64 tokens" in note and "of 1 of them" in note for note in notes)
    with pytest.raises(DataError, match="No answer fits"):
        read_conversations([write(tmp_path / "r.jsonl", rows[-1:])], tokenizer, 64, 0.0)


def test_rows_without_an_answer_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no answer: 'only a text'"):
        read_conversations([write(tmp_path / "r.jsonl", [{"text": "only a text"}])], tokenizer, 64, 0.1)


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_is_none(tmp_path: Path, tokenizer: Tokenizer, answer: str) -> None:
    rows = [*pairs(5), {"prompt": "q", "completion": answer}]
    with pytest.raises(DataError, match="no answer: 'q'"):
        read_conversations([write(tmp_path / "r.jsonl", rows)], tokenizer, 64, 0.1)


def test_equal_conversations_are_held_out_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = read_conversations([write(tmp_path / "r.jsonl", pairs(60) * 2)], tokenizer, 64, 0.2)
    sides = []
    for rows in (found.train, found.valid):
        sides.append({part.tobytes() for part in np.split(rows.tokens, rows.starts[1:])})
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_validation_shows_each_held_out_conversation_once(found: Conversations) -> None:
    asked = sum(int((batch.targets != IGNORED).sum()) for _, batch in found.validation(64, 3))
    assert asked == (found.valid.targets != IGNORED).sum() > 0
    assert sum(batch.tokens.numel() for _, batch in found.validation(64, 1, limit=1)) < found.valid.count
