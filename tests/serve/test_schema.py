"""What a request may hold, and that anything else is told by name."""

import json
from typing import Any

import pytest

from homespun.serve.errors import Refusal, to_json
from homespun.serve.reading import DEPTH, read
from homespun.serve.schema import ChatRequest, CompletionRequest, InspectRequest, Wire

HELLO = [{"role": "user", "content": "Hello"}]


def parsed(cls: type[Wire], **fields: Any) -> Any:
    return read(cls, json.dumps({"model": "m"} | fields).encode())


def refused(cls: type[Wire], **fields: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parsed(cls, **fields)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("given", "meant"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), (None, [""]),
     (["a", [1]], ["a", [1]]), ("", [""])],
)  # fmt: skip
def test_a_prompt_is_text_or_ids_or_a_list_of_them(given: Any, meant: Any) -> None:
    assert parsed(CompletionRequest, prompt=given).prompt == meant


def test_what_openai_sends_is_understood_or_ignored() -> None:
    asked = parsed(
        ChatRequest,
        messages=[{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                  {"role": "user", "content": "c", "name": "someone"}],
        stop="x", seed=-1, logit_bias={"5": -3}, max_completion_tokens=7, temperature=1, user="u", store=False,
        metadata={"a": "b"}, parallel_tool_calls=True, tools=[], tool_choice="none", modalities=["text"],
        response_format={"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"a": 1}}},
        stream=True, stream_options={"include_usage": True, "include_obfuscation": False}, n=None, functions=None,
    )  # fmt: skip
    assert [message.content for message in asked.messages] == ["ab", "c"]
    assert (asked.stop, asked.seed, asked.logit_bias, asked.temperature) == (["x"], -1, {5: -3.0}, 1.0)
    assert asked.response_format.schema_of_text == {"a": 1} and asked.usage_in_stream


@pytest.mark.parametrize(
    ("cls", "field", "value", "code"),
    [
        (CompletionRequest, "nonsense", 1, "unknown_parameter"),
        (CompletionRequest, "messages", HELLO, "unknown_parameter"),
        (CompletionRequest, "suffix", "s", "unsupported_parameter"),
        (CompletionRequest, "best_of", 3, "unsupported_parameter"),
        (CompletionRequest, "prompt", [], "invalid_value"),
        (CompletionRequest, "prompt", [[]], "invalid_value"),
        (CompletionRequest, "prompt", [True], "invalid_value"),
        (CompletionRequest, "prompt", {"a": 1}, "invalid_value"),
        (CompletionRequest, "temperature", -0.1, "invalid_value"),
        (CompletionRequest, "temperature", "1", "invalid_value"),
        (CompletionRequest, "temperature", 10**39, "invalid_value"),
        (CompletionRequest, "top_p", 0, "invalid_value"),
        (CompletionRequest, "n", 0, "invalid_value"),
        (CompletionRequest, "n", True, "invalid_value"),
        (CompletionRequest, "n", 10**30, "invalid_value"),
        (CompletionRequest, "max_tokens", 1.0, "invalid_value"),
        (CompletionRequest, "max_tokens", 0, "invalid_value"),
        (CompletionRequest, "seed", 2**63, "invalid_value"),
        (CompletionRequest, "stop", ["a"] * 5, "invalid_value"),
        (CompletionRequest, "stop", "", "invalid_value"),
        (CompletionRequest, "stop", "x" * 257, "invalid_value"),
        (CompletionRequest, "logit_bias", {"x": 1}, "invalid_value"),
        (CompletionRequest, "logit_bias", {"1": 101}, "invalid_value"),
        (CompletionRequest, "logit_bias", {str(i): 1 for i in range(1025)}, "invalid_value"),
        (CompletionRequest, "logprobs", 21, "invalid_value"),
        (CompletionRequest, "model", 5, "invalid_value"),
        (CompletionRequest, "model", "m" * 257, "invalid_value"),
        (ChatRequest, "messages", [], "invalid_value"),
        (ChatRequest, "messages", HELLO * 4097, "invalid_value"),
        (ChatRequest, "messages", ["Hello"], "invalid_value"),
        (ChatRequest, "messages", [{"role": "tool", "content": "x"}], "invalid_value"),
        (ChatRequest, "messages", [{"role": "user", "content": [{"type": "image_url"}]}], "invalid_value"),
        (ChatRequest, "messages", [{"role": "user", "content": "x", "mood": 1}], "unknown_parameter"),
        (ChatRequest, "tools", [{"type": "function"}], "unsupported_parameter"),
        (ChatRequest, "functions", [{"name": "f"}], "unsupported_parameter"),
        (ChatRequest, "modalities", ["audio"], "unsupported_parameter"),
        (ChatRequest, "response_format", {"type": "xml"}, "invalid_value"),
        (InspectRequest, "token_ids", [], "invalid_value"),
        (InspectRequest, "token_ids", [1.5], "invalid_value"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(cls: type[Wire], field: str, value: Any, code: str) -> None:
    more = {"messages": HELLO} if cls is ChatRequest and field != "messages" else {}
    refusal = refused(cls, **more, **{field: value})
    assert refusal.code == code and refusal.param is not None and refusal.param.split(".")[0] == field


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (CompletionRequest, {"echo": True, "logprobs": 1}),
        (CompletionRequest, {"stream_options": {}}),
        (ChatRequest, {"messages": HELLO, "top_logprobs": 2}),
        (InspectRequest, {}),
        (InspectRequest, {"text": "a", "token_ids": [1]}),
    ],
)
def test_what_does_not_fit_together_is_refused(cls: type[Wire], fields: Any) -> None:
    assert refused(cls, **fields).message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b'{"model": "a\xff"}', b'{"n": NaN}',
     b'{"n": Infinity}', b'{"n": 1e999}', b'{"n": 1' + b"0" * 5000 + b"}", b'{"n": 1, "n": 1}', b"{'n': 1}",
     b"[" * 200_000, b'{"a":' * 200_000, b'{"a":' * (DEPTH + 1) + b"1" + b"}" * (DEPTH + 1), b'{"model": "m"} x'],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_a_body_that_is_no_plain_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        read(CompletionRequest, body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_nesting_is_allowed_to_the_limit() -> None:
    schema: Any = 1
    for _ in range(DEPTH - 3):
        schema = {"a": schema}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert parsed(CompletionRequest, response_format=form).response_format.schema_of_text == schema
    form["json_schema"] = {"schema": {"a": schema}}
    assert refused(CompletionRequest, response_format=form).code == "invalid_json"


def test_an_error_never_repeats_what_a_field_holds() -> None:
    assert "secret" not in str(refused(CompletionRequest, prompt={"secret": "secret"}).to_dict())
    assert "secret" not in str(refused(ChatRequest, messages=[{"role": "user", "content": {"x": "secret"}}]).to_dict())


def test_half_a_surrogate_pair_is_refused_and_can_be_told() -> None:
    assert refused(CompletionRequest, **{"\ud800": 1}).code == "invalid_value"
    assert refused(CompletionRequest, model="\ud800").param == "model"
    assert json.loads(to_json({"a sample": "\ud800"})) == {"a sample": "\ud800"}
