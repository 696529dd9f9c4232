"""A draft changes how fast a text is written, and not one token of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from homespun.data.vocabulary import Bpe
from homespun.errors import ConfigError
from homespun.generate.engine import Generator
from homespun.generate.row import Row
from homespun.generate.sampling import Sampling
from homespun.generate.speculative import MOST, Draft, DraftModel, PromptLookup, Report, speculate
from tests.generate.test_beam import BYTES, CONTEXT, PROMPT, generator
from tests.kinds import ATTENTIONS

GREEDY = Sampling(max_tokens=3 * CONTEXT, temperature=0)
SAMPLED = Sampling(
    max_tokens=3 * CONTEXT, temperature=0.9, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.2, seed=5,
    logit_bias={97: 1.0, BYTES.end: -3.0},
)  # fmt: skip


class Wrong:
    """Proposes what does not stand in the text."""

    def __init__(self, ids: list[int]):
        self.id = next(token for token in range(256) if token not in ids)

    def propose(self, row: Row, count: int) -> list[int]:
        return [self.id] * count


class Knows:
    """Proposes what it was told, with a mistake at every seventh place."""

    def __init__(self, ids: list[int]):
        self.ids = ids

    def propose(self, row: Row, count: int) -> list[int]:
        ahead = range(row.written, min(row.written + count, len(self.ids)))
        return [self.ids[place] if place % 7 else 7 for place in ahead]


def changed(writer: Generator, by: float) -> Generator:
    """A model that is nearly the same."""
    model = generator(writer.model.config.attention).model
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * by
    return Generator(model, BYTES)


def written(writer: Generator, sampling: Sampling, draft: Draft, report: Report | None = None) -> list[Any]:
    return list(speculate(writer, writer.row(PROMPT, sampling, 0, 2), draft, report))


def same(tokens: list[Any], others: list[Any]) -> bool:
    for token, other in zip(tokens, others, strict=True):
        assert (token.id, token.text, token.finish, token.row) == (other.id, other.text, other.finish, other.row)
        assert token.log_probability == pytest.approx(other.log_probability, abs=1e-4)
        assert [each.id for each in token.alternatives] == [each.id for each in other.alternatives]
    return True


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_a_draft_changes_no_token_also_across_the_context(kind: str, sampling: Sampling) -> None:
    writer = generator(ATTENTIONS[kind])
    plain = list(writer.tokens([PROMPT], sampling, alternatives=2))
    drafts = {
        "itself": DraftModel(writer, writer),
        "like it": DraftModel(changed(writer, 0.02), writer),
        "another": DraftModel(generator(seed=9, context=7), writer),
        "look-up": PromptLookup(),
        "wrong": Wrong([token.id for token in plain]),
        "knows": Knows([token.id for token in plain]),
    }
    reports = {name: Report() for name in drafts}
    for name, draft in drafts.items():
        assert same(written(writer, sampling, draft, reports[name]), plain), name
        assert reports[name].tokens == len(plain)
    best, useless = reports["itself"], reports["wrong"]
    assert best.acceptance == 1 and best.tokens_per_step > 2
    assert useless.accepted == 0 and useless.steps == len(plain)
    assert 1 < reports["like it"].tokens_per_step <= best.tokens_per_step
    assert reports["knows"].tokens_per_step > 1.5


def test_the_report_counts_what_was_read_and_kept() -> None:
    writer = generator(context=64)
    plain = [token.id for token in writer.tokens([PROMPT], GREEDY)]
    shapes: list[int] = []
    writer.writer.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].size(1)))
    report = Report()
    written(writer, GREEDY, Knows(plain), report)
    assert report.steps == len(shapes) and report.tokens == len(plain)
    assert report.proposed == sum(shapes) - (len(PROMPT) - 1) - len(shapes)
    assert report.accepted == len(plain) - report.steps + (plain[-1] == BYTES.end)
    assert max(shapes[1:]) <= MOST + 1
    assert report.acceptance == report.accepted / report.proposed
    assert Report().acceptance == 0 and Report().tokens_per_step == 0


def test_proposals_become_more_while_they_are_good_and_fewer_while_not() -> None:
    writer = generator(context=200)

    class Counts(Knows):
        asked: list[int] = []

        def propose(self, row: Row, count: int) -> list[int]:
            self.asked.append(count)
            return [self.ids[place] if place > 15 else 7 for place in range(row.written, len(self.ids))]

    sampling = GREEDY.model_copy(update={"max_tokens": 100})
    draft = Counts([token.id for token in writer.tokens([PROMPT], sampling)])
    assert len(draft.ids) > 60
    written(writer, sampling, draft)
    assert draft.asked[:4] == [4, 2, 1, 1] and max(draft.asked) == MOST


def test_a_block_that_cannot_be_taken_back_is_read_again_and_then_not_risked() -> None:
    writer = generator(ATTENTIONS["latent"], context=200)  # of blocks of 5
    sampling = Sampling(max_tokens=120, temperature=0, logit_bias={BYTES.end: -100.0})
    plain = [token.id for token in writer.tokens([PROMPT], sampling)]

    class Turns(Knows):
        """Right for a long time, and then only with the first of many."""

        def propose(self, row: Row, count: int) -> list[int]:
            ids = self.ids[row.written : row.written + count]
            return ids if row.written < 60 else ids[:1] + [7] * (count - 1)

    draft = Turns(plain)
    lengths: list[int] = []
    writer.writer.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].size(1)))
    assert [token.id for token in written(writer, sampling, draft)] == plain
    assert sum(length > MOST + 1 for length in lengths[1:]) <= 3


def test_a_draft_goes_from_text_to_text() -> None:
    writer = generator()
    draft = DraftModel(changed(writer, 0.02), writer)
    for prompt in ("a", "The cat", "a"):
        plain = [token.id for token in writer.tokens([prompt], SAMPLED)]
        assert [token.id for token in speculate(writer, writer.row(prompt, SAMPLED), draft)] == plain


def test_a_draft_sees_that_its_model_was_trained_on() -> None:
    writer, report = generator(), Report()
    draft = DraftModel(writer, writer)
    written(writer, GREEDY, draft)
    with torch.no_grad():
        writer.model.model.layers[0].self_attn.q_proj.weight.mul_(3)  # type: ignore[union-attr]
    written(writer, GREEDY, draft, report)
    assert report.acceptance == 1


def test_stop_strings_and_the_end_end_a_text_within_the_accepted() -> None:
    writer = generator()
    ids = [token.id for token in writer.tokens([PROMPT], GREEDY)]
    stop = BYTES.decode(ids).strip("\ufffd")[3:5]
    for sampling in (GREEDY.model_copy(update={"stop": [stop]}), GREEDY.model_copy(update={"max_tokens": 5})):
        plain = list(writer.tokens([PROMPT], sampling, alternatives=2))
        assert same(written(writer, sampling, DraftModel(writer, writer)), plain)


def test_look_up_goes_on_as_the_text_did_before() -> None:
    row = generator().row(BYTES.encode("one two, one t"), GREEDY)
    assert BYTES.decode(PromptLookup().propose(row, 5)) == "wo, o"
    row = generator().row(BYTES.encode("xyxyxy"), GREEDY)
    assert BYTES.decode(PromptLookup().propose(row, 7)) == "xyxyxyx"  # into its own proposals
    assert PromptLookup().propose(generator().row(BYTES.encode("abc"), GREEDY), 5) == []
    assert PromptLookup().propose(generator().row(BYTES.encode("a"), GREEDY), 5) == []
    row = generator().row(BYTES.encode("axbxcx"), GREEDY)
    assert BYTES.decode(PromptLookup(longest=1).propose(row, 1)) == "c"  # the newest place


def test_a_draft_of_another_vocabulary_is_refused_but_padding_is_none() -> None:
    writer = generator()
    words = Bpe(size=300).build(["some words, some words"], 22)[0]
    with pytest.raises(ConfigError, match="another tokenizer"):
        DraftModel(Generator(generator(vocab=400).model, words), writer)
    for more in (0, 50):
        other = generator(seed=3, vocab=BYTES.vocab_size + more)
        plain = [token.id for token in writer.tokens([PROMPT], SAMPLED)]
        assert [token.id for token in written(writer, SAMPLED, DraftModel(other, writer))] == plain


def test_a_bound_text_is_the_same_with_a_draft_that_knows_the_grammar() -> None:
    pytest.importorskip("llguidance")
    writer, report = generator(), Report()
    sampling = SAMPLED.model_copy(update={"regex": "(foo|bar)+[0-9]{3} end"})
    plain = list(writer.tokens([PROMPT], sampling, alternatives=2))
    assert same(written(writer, sampling, DraftModel(writer, writer), report), plain)
    assert report.acceptance == 1
    assert same(written(writer, sampling, PromptLookup()), plain)
