"""What a dialogue remembers: turns, retries, cuts at whole turns, and files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from homespun.data import conversation
from homespun.data.vocabulary import Bytes
from homespun.errors import DataError
from homespun.generate.dialogue import Dialogue
from homespun.generate.records import Token
from homespun.generate.sampling import Sampling
from homespun.generate.template import Plain, Trained

BYTES = Bytes().build([], 0)[0]


class Parrot:
    """Answers letter by letter with the number of the call and its seed, and keeps what it was asked."""

    def __init__(self, context: int = 1000):
        self.model = SimpleNamespace(config=SimpleNamespace(context=context))
        self.prompts: list[list[int]] = []
        self.samplings: list[Sampling] = []

    def tokens(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Token]:
        self.prompts.append(list(prompts[0]))
        self.samplings.append(sampling)
        answer = f"no. {len(self.prompts)}, seed {sampling.seed}"
        return (Token(0, 0, letter, 0.0) for letter in [*answer, ""])


def dialogue(context: int = 1000, system: str | None = None, **settings: Any) -> tuple[Dialogue, Parrot]:
    parrot = Parrot(context)
    return Dialogue(parrot, Trained(BYTES), Sampling(**({"max_tokens": 20} | settings)), system), parrot  # type: ignore[arg-type]


def said(talk: Dialogue) -> list[str]:
    return [message["content"] for message in talk.messages]


def asked(parrot: Parrot) -> str:
    return BYTES.decode(parrot.prompts[-1], special=True)


def test_a_reply_streams_and_both_are_remembered() -> None:
    talk, parrot = dialogue(system="Be kind.")
    assert "".join(talk.reply("One?")) == "no. 1, seed None" and len(list(talk.reply("Two?"))) > 5
    assert said(talk) == ["One?", "no. 1, seed None", "Two?", "no. 2, seed None"] and talk.turns == 2
    assert asked(parrot) == (
        "<|system|>Be kind.<|user|>One?<|assistant|>no. 1, seed None<|endoftext|><|user|>Two?<|assistant|>"
    )


def test_an_interrupted_reply_keeps_what_was_written() -> None:
    talk, parrot = dialogue()
    pieces = talk.reply("One?")
    assert next(pieces) + next(pieces) == "no"
    assert said(talk) == ["One?", "no"]
    "".join(talk.reply("Two?"))
    assert "<|assistant|>no<|endoftext|><|user|>Two?" in asked(parrot)


def test_what_cannot_be_asked_changes_nothing() -> None:
    talk, _ = dialogue()
    "".join(talk.reply("One?"))
    before = said(talk)
    with pytest.raises(DataError, match="surrogate"):
        talk.reply("\ud800")
    assert said(talk) == before


def test_a_retry_answers_the_same_question_with_another_seed() -> None:
    talk, parrot = dialogue(seed=2**63 - 1)
    "".join(talk.reply("One?"))
    for seed in (0, 1):  # it counts up, and past the largest one starts again
        "".join(talk.retry())
        assert said(talk) == ["One?", f"no. {seed + 2}, seed {seed}"]
    assert parrot.prompts[0] == parrot.prompts[1] == parrot.prompts[2]
    "".join(talk.reply("Two?"))
    assert parrot.samplings[-1].seed == 2**63 - 1


def test_undo_and_clear_take_turns_away() -> None:
    talk, parrot = dialogue(system="Be kind.")
    for question in ("One?", "Two?"):
        "".join(talk.reply(question))
    talk.undo()
    assert said(talk) == ["One?", "no. 1, seed None"]
    "".join(talk.retry())
    assert said(talk) == ["One?", "no. 3, seed None"]
    talk.clear()
    assert talk.turns == 0 and talk.system == "Be kind."
    for nothing in (talk.undo, talk.retry):
        with pytest.raises(DataError, match="Nothing was asked"):
            nothing()


def test_the_stops_of_the_template_join_those_that_were_asked_for() -> None:
    parrot = Parrot()
    talk = Dialogue(parrot, Plain(BYTES), Sampling(stop=["END"]))  # type: ignore[arg-type]
    "".join(talk.reply("One?"))
    assert parrot.samplings[0].stop[0] == "END" and "\nUser:" in parrot.samplings[0].stop
    assert talk.sampling.stop == ["END"]


@pytest.mark.parametrize("context", [60, 75, 90, 150, 300])
def test_history_is_cut_at_the_first_turn_that_leaves_room(context: int) -> None:
    talk, parrot = dialogue(context, system="Be kind.")
    whole = Dialogue(Parrot(), talk.template, talk.sampling, "Be kind.")  # type: ignore[arg-type]
    for number in range(8):
        "".join(talk.reply(f"Question {number}?"))
        "".join(whole.reply(f"Question {number}?"))
        ids, all_ids = parrot.prompts[-1], whole.generator.prompts[-1]  # type: ignore[attr-defined]
        text = asked(parrot)
        assert text.startswith("<|system|>Be kind.<|user|>") and f"Question {number}?" in text
        assert text.count("<|user|>") == number + 1 - talk.dropped
        assert len(ids) <= context - 20
        if talk.dropped:  # with one more turn it would not have fitted
            turn = len(BYTES.encode(f"Question 0?no. {number}, seed None")) + 3
            assert len(ids) + turn > context - 20
        else:
            assert ids == all_ids
    assert talk.turns == 8 and talk.dropped < 8
    assert (talk.dropped > 0) == (context < 300)


def test_the_last_question_is_asked_even_if_it_is_too_long_and_few_tokens_are_kept_free() -> None:
    talk, parrot = dialogue(40, max_tokens=1000)
    "".join(talk.reply("x" * 10))
    "".join(talk.reply("y" * 50))
    assert asked(parrot) == "<|user|>" + "y" * 50 + "<|assistant|>" and talk.dropped == 1
    talk, parrot = dialogue(80, max_tokens=1000)
    "".join(talk.reply("a"))
    "".join(talk.reply("b"))
    assert talk.dropped == 0 and len(parrot.prompts[-1]) <= 40


def test_a_saved_conversation_comes_back_and_is_a_row_to_train_on(tmp_path: Path) -> None:
    talk, _ = dialogue(system="Sei freundlich: ü")
    "".join(talk.reply("One\ntwo?"))
    place = tmp_path / "talk.jsonl"
    talk.save(place)
    talk.save(place)  # over itself
    other, _ = dialogue(system="gone")
    other.load(place)
    assert other.messages == talk.messages and other.system == talk.system
    assert [path.name for path in tmp_path.iterdir()] == ["talk.jsonl"]
    row = json.loads(place.read_text(encoding="utf-8"))
    assert conversation.render(row)[1] == "Sei freundlich: ü"
    assert len(place.read_text(encoding="utf-8").splitlines()) == 1


def test_an_empty_conversation_can_be_saved_too(tmp_path: Path) -> None:
    talk, _ = dialogue()
    talk.save(tmp_path / "nothing.json")
    talk.load(tmp_path / "nothing.json")
    assert talk.messages == [] and talk.system is None


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"messages": 3}', b'{"messages": [3]}', b'{"messages": [{"role": "user"}]}', b"\xff\xfe",
     b'{"messages": [{"role": "cat", "content": "x"}]}', b'{"messages": ' + b"[" * 100_000, b'{"messages": NaN}',
     b'{"messages": [{"role": "user", "content": 1e999}]}'],
)  # fmt: skip
def test_what_is_no_conversation_is_neither_loaded_nor_written_over(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "notes.txt"
    place.write_bytes(content)
    talk, _ = dialogue(system="Be kind.")
    "".join(talk.reply("One?"))
    before = said(talk)
    for act in (talk.load, talk.save):
        with pytest.raises(DataError, match="notes.txt"):
            act(place)
    assert place.read_bytes() == content and said(talk) == before and talk.system == "Be kind."


def test_places_that_cannot_be_read_or_written_are_one_error(tmp_path: Path) -> None:
    talk, _ = dialogue()
    for act, place in ((talk.load, tmp_path / "none"), (talk.load, tmp_path), (talk.save, tmp_path / "no" / "folder")):
        with pytest.raises(DataError, match="cannot be"):
            act(place)
