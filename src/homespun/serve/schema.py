"""What a request may hold: OpenAI's fields and a few of our own, each with its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

STOPS = 4  # stop strings, as at OpenAI

_NOTHING: tuple[Any, ...] = (None, False, [], {})


class Wire(BaseModel):
    """Base of what comes from a client: strictly typed, no unknown fields, no NaN.

    `IGNORED`: fields that OpenAI's clients send and that change nothing here. `REFUSED`: fields that ask for what is
    not there, unless their value is one of the harmless ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, harmless in cls.REFUSED.items():
            if name in data and data[name] not in harmless:
                raise PydanticCustomError("unsupported", "it is not supported here", {"field": name})
        return {name: value for name, value in data.items() if name not in cls.IGNORED and name not in cls.REFUSED}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _token(key: str) -> int:
    if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
        raise ValueError('its keys should be ids of tokens, such as "50256"')
    return int(key)


def _by_id(value: Any) -> Any:
    return {_token(key): bias for key, bias in value.items()} if isinstance(value, dict) else value


def _prompts(value: Any) -> Any:
    """Text, texts, ids or lists of ids -> a list of texts or lists of ids. None is the start of a document."""
    if value is None:
        return [""]
    one = isinstance(value, str) or isinstance(value, list) and value and type(value[0]) is int
    prompts = [value] if one else value
    if not isinstance(prompts, list) or not prompts:
        raise ValueError("it should be text, a list of texts, a list of token ids, or a list of such lists")
    for prompt in prompts:
        if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            continue
        if not isinstance(prompt, str):
            raise ValueError("each should be text, or a list of token ids that is not empty")
    return prompts


def _inputs(value: Any) -> Any:
    """As `_prompts`, but there has to be something."""
    if value is None or value == "":
        raise ValueError("it should be text, a list of texts, a list of token ids, or a list of such lists")
    return _prompts(value)


def _text_of(content: Any) -> Any:
    """A message's content: text, or parts that are text."""
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError("only parts of the type text can be read")
        parts.append(part["text"])
    return "".join(parts)


class StreamOptions(Wire):
    """How a stream ends."""

    IGNORED = frozenset({"include_obfuscation"})

    include_usage: bool | None = None


class JsonSchema(Wire):
    """A named schema that the text has to match."""

    IGNORED = frozenset({"name", "description", "strict"})

    body: Annotated[dict[str, Any], Field(alias="schema")] = {}


class ResponseFormat(Wire):
    """What the text has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema")
        return self

    @property
    def schema_of_text(self) -> dict[str, Any] | None:
        """The schema, {} for any object, none for any text."""
        if self.type == "text":
            return None
        return self.json_schema.body if self.json_schema is not None else {}


Penalty = Annotated[float, Field(ge=-2, le=2)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Writing(Wire):
    """What both ways of asking for text have in common. What is left out is as OpenAI has it."""

    IGNORED = frozenset(
        {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
         "prompt_cache_retention", "parallel_tool_calls", "reasoning_effort", "verbosity", "prediction"}
    )  # fmt: skip

    model: Annotated[str, Field(max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[
        dict[int, Annotated[float, Field(ge=-100, le=100)]] | None, BeforeValidator(_by_id), Field(max_length=1024)
    ] = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]] | None,
        BeforeValidator(_listed), Field(max_length=STOPS),
    ] = None  # fmt: skip
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    response_format: ResponseFormat | None = None
    # Ours:
    top_k: Positive | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    regex: Annotated[str, Field(max_length=4096)] | None = None
    return_token_ids: bool | None = None
    retrieve: bool | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Writing:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options belongs to stream: true")
        return self

    @property
    def usage_in_stream(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(Writing):
    """POST /v1/completions."""

    REFUSED = {"suffix": (None, ""), "best_of": (None, 1)}

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)] = [""]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _echo_is_text(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo repeats the prompt's text only: leave out logprobs")
        return self


class Message(Wire):
    """A turn of a conversation."""

    IGNORED = frozenset({"name", "refusal", "annotations"})
    REFUSED = {"tool_calls": _NOTHING, "tool_call_id": (None,), "function_call": (None,), "audio": (None,)}

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]


class ChatRequest(Writing):
    """POST /v1/chat/completions."""

    REFUSED = {
        "tools": _NOTHING, "tool_choice": (None, "none", "auto"), "functions": _NOTHING,
        "function_call": (None, "none", "auto"), "modalities": (None, ["text"]), "audio": (None,),
        "web_search_options": (None,), "moderation": (None,),
    }  # fmt: skip

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs belongs to logprobs: true")
        return self


class EmbeddingsRequest(Wire):
    """POST /v1/embeddings: texts, or their token ids."""

    IGNORED = frozenset({"user"})

    model: Annotated[str, Field(max_length=256)]
    input: Annotated[list[str | list[int]], BeforeValidator(_inputs)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None


class InspectRequest(Wire):
    """POST /v1/inspect: a text, or its token ids."""

    model: Annotated[str, Field(max_length=256)]
    text: str | None = None
    token_ids: Annotated[list[int], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> InspectRequest:
        if (self.text is None) == (self.token_ids is None):
            raise ValueError("one of text and token_ids is needed")
        return self
