"""The routes that write: completions and chat completions."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from homespun import config
from homespun.generate.sampling import Sampling
from homespun.serve.answer import Answer, Events
from homespun.serve.errors import Refusal, about
from homespun.serve.house import House, json_response
from homespun.serve.limits import Limits
from homespun.serve.reading import read
from homespun.serve.retrieving import Retrieved, messages_of, prompts_of
from homespun.serve.schema import ChatRequest, CompletionRequest, Writing
from homespun.serve.served import Served
from homespun.serve.shapes import Chat, Completions, Shape

COMPLETION_TOKENS = 16  # of a completion that says nothing about it, as at OpenAI


class Writers:
    """The routes, with what they share."""

    def __init__(self, house: House):
        self._house, self._limits = house, house.limits

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._respond(request, await self._house.beside(self._completion, await self._house.body(request)))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._respond(request, await self._house.beside(self._chat, await self._house.body(request)))

    async def _respond(self, request: Request, answer: Answer) -> Response:
        if answer.asked.stream:
            return Events(self._house, answer)
        async with answer.ticket:
            return json_response(await self._house.bounded(answer.whole(), request.receive))

    def _completion(self, body: bytes) -> Answer:
        asked = read(CompletionRequest, body)
        served = self._house.runs.model(asked.model)
        generator = served.scheduler.generator
        tokenizer = generator.tokenizer
        tokens = asked.max_tokens or min(COMPLETION_TOKENS, self._limits.tokens)
        with about("prompt"):
            told, retrieved = prompts_of(served, asked, tokens, self._limits)
            prompts = [generator.begin + tokenizer.encode(each) if isinstance(each, str) else each for each in told]
        before = [""] * len(prompts)
        if asked.echo:
            before = [p if isinstance(p, str) else tokenizer.decode(p, special=True) for p in asked.prompt]
        shape = Completions(tokenizer, [text for text in before for _ in range(asked.n or 1)], asked.logprobs)
        return self._open(asked, served, prompts, sampling_of(asked, tokens), shape, asked.logprobs or 0, retrieved)

    def _chat(self, body: bytes) -> Answer:
        asked = read(ChatRequest, body)
        served = self._house.runs.model(asked.model)
        template = served.template
        assert template is not None  # a model has one
        tokens = asked.max_completion_tokens or asked.max_tokens or self._limits.tokens
        with about("messages"):
            messages, retrieved = messages_of(served, asked, tokens, self._limits)
            prompt = template.prompt(messages)
        sampling = sampling_of(asked, tokens, template.stops)
        shape = Chat(served.scheduler.generator.tokenizer, bool(asked.logprobs))
        return self._open(asked, served, [prompt], sampling, shape, asked.top_logprobs or 0, retrieved)

    def _open(
        self, asked: Writing, served: Served, prompts: list[list[int]], sampling: Sampling, shape: Shape,
        alternatives: int, retrieved: Retrieved,
    ) -> Answer:  # fmt: skip
        scheduler = served.scheduler
        refuse_beyond(self._limits, scheduler.rows + scheduler.queue, asked, prompts, sampling)
        with about("messages" if isinstance(asked, ChatRequest) else "prompt"):
            ticket = scheduler.open(prompts, sampling, asked.n or 1, alternatives)
        return Answer(asked, ticket, shape, served.fingerprint, retrieved)


def refuse_beyond(
    limits: Limits, room: int, asked: Writing, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> None:
    """Raises a `Refusal` for more than the server allows. `room`: for how many texts a model has."""
    if sampling.max_tokens > limits.tokens:
        message = f"A text may have {limits.tokens:,} tokens here, not {sampling.max_tokens:,}"
        named = "max_completion_tokens" if getattr(asked, "max_completion_tokens", None) else "max_tokens"
        raise Refusal(400, message, "invalid_value", named)
    texts, most = len(prompts) * (asked.n or 1), min(limits.texts, room)
    if texts > most:
        raise Refusal(400, f"A request may ask for {most:,} texts here, not {texts:,}", "invalid_value", "n")
    if (total := sum(map(len, prompts))) > limits.prompt_tokens:
        message = f"A request's prompts may have {limits.prompt_tokens:,} tokens here, not {total:,}"
        raise Refusal(400, message, "context_length_exceeded", "messages" if hasattr(asked, "messages") else "prompt")


def sampling_of(asked: Writing, tokens: int, stops: Sequence[str] = ()) -> Sampling:
    """How the text is written; what was left out is as OpenAI has it. Raises `ConfigError` for what is impossible."""
    given = {
        "max_tokens": tokens,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "top_k": asked.top_k,
        "top_p": asked.top_p,
        "min_p": asked.min_p,
        "typical_p": asked.typical_p,
        "repetition_penalty": asked.repetition_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "presence_penalty": asked.presence_penalty,
        "logit_bias": asked.logit_bias,
        "regex": asked.regex,
        "json_schema": asked.response_format.schema_of_text if asked.response_format is not None else None,
        "stop": [*(asked.stop or ()), *stops],
        "seed": asked.seed % 2**63 if asked.seed is not None else None,
    }
    with about("response_format"):  # all else was checked; only this may be one too many
        return config.parse(Sampling, {name: each for name, each in given.items() if each is not None}, "the request")
