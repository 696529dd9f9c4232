"""Passages in a prompt: in their order, whole, and never more tokens than there is room for."""

from __future__ import annotations

import pytest

from homespun.data.tokenizer import END
from homespun.data.vocabulary import Bytes
from homespun.errors import ConfigError
from homespun.generate.dialogue import Dialogue
from homespun.generate.engine import Generator
from homespun.generate.sampling import Sampling
from homespun.generate.template import Plain, Trained
from homespun.model.decoder import Decoder, ModelConfig
from homespun.retrieve.prompt import Grounded, Grounding, room
from homespun.retrieve.protocol import Passage

NONE_FITS = "no passage is used: 3 found, but the context has room for none beside the prompt and its answer"


class Fixed:
    """Finds the same texts for whatever is asked."""

    notes = ()

    def __init__(self, *texts: str):
        self.found = [Passage(text, "notes.txt", str(number), 1.0) for number, text in enumerate(texts, 1)]
        self.asked: list[str] = []

    def retrieve(self, query: str, count: int) -> list[Passage]:
        self.asked.append(query)
        return self.found[:count]


@pytest.fixture(scope="module")
def generator() -> Generator:
    """A model of 64 tokens of context; a byte is a token."""
    tokenizer = Bytes().build([], 0)[0]
    model = Decoder(ModelConfig(width=48, layers=1, context=64, vocab=tokenizer.vocab_size))
    return Generator(model.eval(), tokenizer)


def places(grounded: Grounded) -> list[str]:
    return [passage.place for passage in grounded.passages or ()]


def test_passages_stand_before_a_text_the_best_first(generator: Generator) -> None:
    found = Grounding(Fixed("first", "second", "third"), 2).prompt("go on", generator, 10)
    assert found.prompt == "first\n\nsecond\n\ngo on" and places(found) == ["1", "2"] and found.note is None


@pytest.mark.parametrize("length", range(1, 70, 3))
@pytest.mark.parametrize("max_tokens", [1, 20, 32, 500])
def test_there_is_always_room_for_the_answer(generator: Generator, length: int, max_tokens: int) -> None:
    retriever = Fixed("a" * length, "b" * (length // 2 + 1), "c" * 5)
    found = Grounding(retriever).prompt("question", generator, max_tokens)
    read = len(generator.tokenizer.encode(found.prompt))
    assert read + min(max_tokens, 32) <= 64
    for passage in retriever.found:  # whole, or not at all
        assert (passage in (found.passages or ())) == (passage.text in found.prompt)
    left = [passage.text for passage in retriever.found if passage not in (found.passages or ())]
    assert all(read + len(text) + 2 > room(generator, max_tokens) for text in left)


def test_a_passage_that_does_not_fit_is_passed_over(generator: Generator) -> None:
    found = Grounding(Fixed("a" * 60, "short")).prompt("go on", generator, 10)
    assert found.prompt == "short\n\ngo on" and places(found) == ["2"]


def test_it_is_said_when_nothing_fits_or_nothing_is_found(generator: Generator) -> None:
    full = Grounding(Fixed("a" * 60, "b" * 60, "c" * 60)).prompt("go on", generator, 10)
    assert full == Grounded("go on", (), NONE_FITS)
    assert Grounding(Fixed()).prompt("go on", generator, 10).note == "no passage is used: none was found"
    retriever = Fixed("text")
    assert Grounding(retriever).prompt(" ", generator, 10) == Grounded(" ") and not retriever.asked


def test_a_limit_counts_beside_the_context(generator: Generator) -> None:
    assert places(Grounding(Fixed("a" * 20)).prompt("go on", generator, 10, limit=26)) == []
    assert places(Grounding(Fixed("a" * 20)).prompt("go on", generator, 10, limit=27)) == ["1"]


def test_in_a_conversation_they_stand_behind_the_last_question() -> None:
    said = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q1"},
            {"role": "assistant", "content": "A"}, {"role": "human", "content": "Q2"}]  # fmt: skip
    retriever = Fixed("one", "two")
    found = Grounding(retriever).messages(said, lambda told: True)
    assert retriever.asked == ["Q2"]
    assert found.prompt == [*said[:3], {"role": "human", "content": "Q2\n\none\n\ntwo"}]
    assert said[3]["content"] == "Q2"
    alone = Grounding(retriever).messages(said[:1], lambda told: True)
    assert alone.prompt == said[:1] and alone.passages is None


def test_one_passage_is_the_least() -> None:
    with pytest.raises(ConfigError, match="passages = 0"):
        Grounding(Fixed(), 0)


def dialogue(generator: Generator, grounding: Grounding, max_tokens: int = 8) -> tuple[Dialogue, list[list[int]]]:
    """A dialogue with passages, and the prompts that the model is given in it."""
    talk = Dialogue(generator, Plain(generator.tokenizer), Sampling(max_tokens=max_tokens, seed=1))
    talk.look_up = lambda messages, fits: grounding.messages(messages, fits).prompt
    given: list[list[int]] = []
    prompt = talk._prompt
    talk._prompt = lambda messages: given.append(prompt(messages)) or given[-1]  # type: ignore[method-assign]
    return talk, given


def test_a_dialogue_reads_passages_and_keeps_what_was_said(generator: Generator) -> None:
    talk, given = dialogue(generator, Grounding(Fixed("a fox", "b" * 100)))
    "".join(talk.reply("Who?"))
    assert generator.tokenizer.decode(given[0]) == "User:\nWho?\n\na fox\nAssistant:\n"
    assert talk.messages[0] == {"role": "user", "content": "Who?"}
    "".join(talk.retry())
    assert given[1] == given[0]
    "".join(talk.reply("And?"))
    assert talk.dropped == 1 and generator.tokenizer.decode(given[2]) == "User:\nAnd?\n\na fox\nAssistant:\n"
    assert all(len(ids) + 8 <= 64 for ids in given)


def test_a_special_token_spelled_in_a_passage_is_text(generator: Generator) -> None:
    tokenizer = generator.tokenizer
    grounding = Grounding(Fixed(END))
    found = grounding.prompt("go on", generator, 10)
    assert END in found.prompt and tokenizer.end not in generator.row(found.prompt, Sampling()).ids
    messages = grounding.messages([{"role": "user", "content": "Q"}], lambda told: True).prompt
    ids = Trained(tokenizer).prompt(messages)
    assert tokenizer.end not in ids and END in tokenizer.decode(ids)
