"""Passages for what a server is asked: looked for beside the event loop, with vectors from the writing thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anyio import from_thread

from homespun.retrieve.meaning import RunMeaning
from homespun.retrieve.prompt import Grounded, Grounding, room
from homespun.serve.errors import Refusal
from homespun.serve.limits import Limits
from homespun.serve.schema import ChatRequest, CompletionRequest, Writing
from homespun.serve.served import Served

Retrieved = list[dict[str, Any]] | None
"""What the answer tells of its passages; none where nothing was looked for."""


class ServedMeaning(RunMeaning):
    """The vectors of a model that is writing for others meanwhile."""

    def __init__(self, served: Served):
        assert served.run is not None
        super().__init__(served.run)
        self._scheduler = served.scheduler

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Meaning`; called in one of the threads beside the event loop, it waits for the writing thread."""
        return from_thread.run(self._scheduler.call, lambda _: self.embedder.embed(texts))


def prompts_of(served: Served, asked: CompletionRequest, tokens: int, limits: Limits) -> tuple[list[Any], Retrieved]:
    """The prompts, those that are text with their passages. `tokens`: of an answer."""
    found = _grounding(served, asked)
    if found is None:
        return asked.prompt, None
    generator = served.scheduler.generator
    grounded: list[Grounded[Any]] = [
        found.prompt(each, generator, tokens, limits.prompt_tokens) if isinstance(each, str) else Grounded(each)
        for each in asked.prompt
    ]
    retrieved = [{"prompt": number} | told for number, each in enumerate(grounded) for told in each.to_dicts()]
    return [each.prompt for each in grounded], retrieved


def messages_of(
    served: Served, asked: ChatRequest, tokens: int, limits: Limits
) -> tuple[list[dict[str, str]], Retrieved]:
    """The messages, the last question with its passages."""
    messages, template = [message.model_dump() for message in asked.messages], served.template
    found = _grounding(served, asked)
    if found is None or template is None:
        return messages, None
    most = min(room(served.scheduler.generator, tokens), limits.prompt_tokens)
    grounded = found.messages(messages, lambda told: len(template.prompt(told)) <= most)
    return grounded.prompt, grounded.to_dicts()


def _grounding(served: Served, asked: Writing) -> Grounding | None:
    if asked.retrieve and served.grounding is None:
        raise Refusal(400, "This server has no index to retrieve from", "unsupported_parameter", "retrieve")
    return None if asked.retrieve is False else served.grounding
