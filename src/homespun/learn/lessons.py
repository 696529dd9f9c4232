"""Lessons by hand: rows of data (`data/conversation.py`), what is asked in them, and the text that a run stood on.

B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from homespun.data.batches import IGNORED
from homespun.data.conversation import encode_asked, render
from homespun.data.material import Material
from homespun.data.tokenizer import Tokenizer
from homespun.errors import DataError
from homespun.learn.conversations import Rows, read_conversations
from homespun.train.folder import environment_of
from homespun.train.gather import gather
from homespun.train.log import Console
from homespun.train.recipe import Recipe

Lesson = Mapping[str, Any]
"""A row of data: `{text}`, or `{prompt, completion}`, or `{messages}`."""


def text_lesson(text: str) -> Lesson:
    """Every token of `text` is to be learnt."""
    return {"text": text}


def pair_lesson(question: str, answer: str) -> Lesson:
    """The answer is to be learnt, behind the question."""
    return {"prompt": question, "completion": answer}


def checked(lessons: Iterable[Lesson]) -> list[Lesson]:
    """The lessons as a list. Raises `DataError` for none, and for what is no row."""
    given: list[Any] = [lessons] if isinstance(lessons, (str, Mapping)) else list(lessons)
    if not given:
        raise DataError("There is nothing to learn", "Give a text, or a question with its answer.")
    wrong = [lesson for lesson in given if not isinstance(lesson, Mapping)] or given * isinstance(lessons, Mapping)
    if wrong:
        raise DataError(
            f"Lessons are a list of rows, not {wrong[0]!r:.60}",
            'Write [{"prompt": "...", "completion": "..."}], or [{"text": "..."}].',
        )
    return given


def is_text(lesson: Lesson) -> bool:
    """Whether a lesson has no answer, so that all of it is learnt."""
    return lesson.get("messages") is None and lesson.get("text") is not None


def has_answers(lessons: Sequence[Lesson]) -> bool:
    """Whether any of them is a question with its answer: who learnt one can be talked to."""
    return not all(map(is_text, lessons))


def latest(lessons: Sequence[Lesson]) -> tuple[Lesson, ...]:
    """Of lessons that ask the same the last one: two answers to one question cannot both be learnt."""
    return tuple({_asks(lesson): lesson for lesson in lessons}.values())


def beside(lessons: Sequence[Lesson], others: Sequence[Lesson]) -> tuple[Lesson, ...]:
    """Those of `others` that ask nothing that `lessons` ask."""
    asked = {_asks(lesson) for lesson in lessons}
    return tuple(lesson for lesson in others if _asks(lesson) not in asked)


def replaced(former: Sequence[Lesson], kept: Sequence[Lesson]) -> int:
    """How many of the former lessons say something else than those that are kept and ask the same."""
    said = {_asks(lesson): render(lesson) for lesson in kept}
    return sum(render(lesson) != said[_asks(lesson)] for lesson in former)


def _asks(lesson: Lesson) -> tuple[Any, ...]:
    """All of a text; of a conversation what stands before its last answer."""
    pieces = render(lesson)
    return tuple(pieces if is_text(lesson) else pieces[:-1])


def rows_of(lessons: Sequence[Lesson], tokenizer: Tokenizer, context: int) -> Rows:
    """What is read and what is asked: a row for each conversation, for a text as many as its windows.

    Raises `DataError` for a lesson without words, without an answer, or longer than `context`.
    """
    return Rows([row for lesson in lessons for row in _rows(lesson, tokenizer, context)])


def _rows(lesson: Lesson, tokenizer: Tokenizer, context: int) -> list[tuple[np.ndarray, np.ndarray]]:
    pieces = render(lesson)
    if is_text(lesson):
        ids = np.array([tokenizer.end, *tokenizer.encode(lesson["text"]), tokenizer.end])
        if len(ids) == 2:
            raise DataError("There is no text to learn", "Give some words.")
        return [(ids[at:-1][:context], ids[at + 1 :][:context]) for at in range(0, len(ids) - 1, context)]
    ids, asked = (np.array(each) for each in encode_asked(pieces, tokenizer))
    if asked.sum() < 2:
        raise DataError(f"There is no answer to {_start(pieces)!r}", "Give a question and an answer.")
    if len(ids) - 1 > context:
        raise DataError(
            f"{_start(pieces)!r} and its answer have {len(ids) - 1} tokens, and the model reads {context}",
            "Say it in fewer words.",
        )
    return [(ids[:-1], np.where(asked[1:], ids[1:], IGNORED))]


def _start(pieces: Sequence[Any]) -> str:
    return next((piece for piece in pieces if isinstance(piece, str)), "")[:40]


def own_material(folder: Path, recipe: Recipe, tokenizer: Tokenizer, console: Console) -> Material | None:
    """What a run was trained on, prepared again or found where it lies; none where its folder names nothing.

    Raises `DataError` where that is not there any more, or has become something else.
    """
    about = environment_of(folder)
    names = [str(name) for name in about.get("data", ())]
    if not names and not recipe.data.mixture:
        return None
    try:
        return material_of(names, recipe, tokenizer, console)
    except DataError as error:
        raise DataError(f"What the run was trained on: {error.problem}", "Name text with --replay.") from None


def material_of(names: Sequence[str], recipe: Recipe, tokenizer: Tokenizer, console: Console) -> Material:
    """Sources of text as a run reads them. Raises `DataError` where its tokenizer would not be theirs."""
    if recipe.tuned is not None:
        fraction, context = recipe.data.validation_fraction, recipe.model.context
        return read_conversations(names, tokenizer, context, fraction, console.preparing)
    found = gather(list(names), recipe, console=console)
    if found.tokenizer.identity != tokenizer.identity:
        raise DataError(
            f"{', '.join(names)} would now have another tokenizer than the run's", "Name its text with --replay."
        )
    return found
