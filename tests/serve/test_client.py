"""The official client of OpenAI drives a server in a process of its own."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import homespun as hs
from tests.serve.conftest import END, ON
from tests.serve.process import Process

HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server(runs: list[Path]) -> Iterator[Process]:
    process = Process(*runs, "--max-texts", 6)
    yield process
    process.process.send_signal(signal.SIGINT)
    assert process.process.wait(timeout=30) == 130
    said = process.end()
    assert said.startswith("Stopping; ") and said.count("\n") == 1


@pytest.fixture(scope="module")
def client(server: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_the_server_tells_where_it_is(server: Process, runs: list[Path]) -> None:
    assert [line.split(", ")[0] for line in server.told[1:3]] == ["Model: small", "Model: small-2"]
    assert str(runs[0]) in server.told[1] and "step 4" in server.told[1]
    assert f"curl {server.address}/v1/completions" in server.told[3]


def test_completions_are_the_texts_that_the_run_writes(client: openai.OpenAI, runs: list[Path]) -> None:
    for model, folder in (("small", runs[0]), ("small-2", runs[1])):
        answer = client.completions.create(model=model, prompt="Once", max_tokens=30, seed=5, temperature=0.9)
        expected = hs.load(folder).records(["Once"], max_tokens=30, seed=5, temperature=0.9)[0]
        assert answer.choices[0].text == expected.text
        assert answer.choices[0].finish_reason == expected.finish
        assert answer.model == model and answer.object == "text_completion"
        usage = answer.usage
        assert usage and (usage.prompt_tokens, usage.completion_tokens) == (4, len(expected.tokens))
        assert usage.total_tokens == 4 + len(expected.tokens)


def test_what_is_left_out_is_as_openai_has_it(client: openai.OpenAI, runs: list[Path]) -> None:
    text = client.completions.create(model="small", prompt="Once", seed=5, logit_bias=ON).choices[0].text
    settings = hs.Sampling(max_tokens=16, temperature=1, seed=5, logit_bias={END: -100})
    assert text == hs.load(runs[0]).generate("Once", settings)


def test_prompts_may_be_texts_or_ids_and_come_in_order(client: openai.OpenAI) -> None:
    prompts: list[Any] = ["Once", ["Once", "One day"], [79, 110], [[79, 110], [1, 2, 3]]]
    counts = [(1, 4), (2, 11), (1, 2), (2, 5)]
    for prompt, (texts, tokens) in zip(prompts, counts, strict=True):
        answer = client.completions.create(model="small", prompt=prompt, n=2, max_tokens=4, seed=1)
        assert [choice.index for choice in answer.choices] == list(range(2 * texts))
        assert answer.usage and answer.usage.prompt_tokens == tokens
    assert client.completions.create(model="small", prompt="", max_tokens=2).usage


def test_three_texts_at_once_are_those_of_three_seeds(client: openai.OpenAI) -> None:
    three = client.completions.create(model="small", prompt="Once", n=3, max_tokens=20, seed=7)
    alone = [client.completions.create(model="small", prompt="Once", max_tokens=20, seed=7 + n) for n in range(3)]
    assert [choice.text for choice in three.choices] == [answer.choices[0].text for answer in alone]
    assert len({choice.text for choice in three.choices}) == 3
    chat = client.chat.completions.create(model="small", messages=HELLO, n=3, max_tokens=20, seed=7)
    assert len({choice.message.content for choice in chat.choices}) == 3


def test_chat_goes_on_from_its_template(client: openai.OpenAI, runs: list[Path]) -> None:
    from homespun.generate.template import template_of

    run = hs.load(runs[0])
    template = template_of(run)
    answer = client.chat.completions.create(
        model="small", messages=HELLO, max_completion_tokens=20, seed=3, temperature=0.7,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    ids = template.prompt(HELLO)
    settings = hs.Sampling(max_tokens=20, seed=3, temperature=0.7, stop=list(template.stops))
    choice = answer.choices[0]
    assert choice.model_extra and choice.model_extra["prompt_token_ids"] == ids
    assert choice.message.content == run.generator.generate(ids, settings)
    assert choice.message.role == "assistant" and answer.object == "chat.completion"


def test_a_stream_of_chat_ends_with_its_usage(client: openai.OpenAI) -> None:
    asked: Any = {"model": "small", "messages": HELLO, "max_tokens": 25, "seed": 2, "logit_bias": ON}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert last.usage == whole.usage and last.choices == []
    assert parts[0].choices[0].delta.role == "assistant" and parts[0].object == "chat.completion.chunk"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert [part.choices[0].finish_reason for part in parts][-2:] == [None, "length"]
    assert len({part.id for part in chunks}) == 1 and len(parts) > 10


def test_a_stream_of_three_completions_interleaves_by_index(client: openai.OpenAI) -> None:
    asked: Any = {"model": "small", "prompt": "Once", "max_tokens": 25, "seed": 2, "n": 3, "logit_bias": ON}
    whole = client.completions.create(**asked)
    texts = ["", "", ""]
    for part in client.completions.create(**asked, stream=True):
        texts[part.choices[0].index] += part.choices[0].text
        assert part.usage is None
    assert texts == [choice.text for choice in whole.choices]


def test_log_probabilities_are_the_models(client: openai.OpenAI, runs: list[Path]) -> None:
    run = hs.load(runs[0])
    told = run.generator.complete(["Once"], hs.Sampling(max_tokens=8, seed=1, temperature=1.0), alternatives=3)[0]
    legacy = client.completions.create(model="small", prompt="Once", max_tokens=8, seed=1, logprobs=3)
    logprobs = legacy.choices[0].logprobs
    assert logprobs and logprobs.token_logprobs == pytest.approx([t.log_probability for t in told.tokens], abs=1e-3)
    assert logprobs.model_extra and logprobs.model_extra["token_ids"] == [token.id for token in told.tokens]
    assert logprobs.text_offset == [len("".join(t.text for t in told.tokens[:n])) for n in range(len(told.tokens))]
    assert logprobs.tokens and logprobs.top_logprobs
    for token, spelled, top in zip(told.tokens, logprobs.tokens, logprobs.top_logprobs, strict=True):
        assert top[spelled] <= max(each.log_probability for each in token.alternatives) + 1e-3
    chat = client.chat.completions.create(
        model="small", messages=HELLO, max_tokens=8, seed=1, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs
    assert content and content.content and chat.usage and len(content.content) == chat.usage.completion_tokens
    for entry in content.content:
        assert len(entry.top_logprobs) == 2 and entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        assert entry.model_extra and 0 <= entry.model_extra["id"] <= END and entry.bytes is not None
        if entry.model_extra["id"] < END:
            assert entry.bytes == [entry.model_extra["id"]]  # the vocabulary is that of the bytes
    alone = client.chat.completions.create(model="small", messages=HELLO, max_tokens=2, logprobs=True)
    assert alone.choices[0].logprobs and alone.choices[0].logprobs.content
    assert alone.choices[0].logprobs.content[0].top_logprobs == []


def test_stop_strings_end_a_text_before_them(client: openai.OpenAI) -> None:
    asked: Any = {"model": "small", "prompt": "Once", "max_tokens": 40, "seed": 1, "logit_bias": ON}
    text = client.completions.create(**asked).choices[0].text
    stop = text[10:12]
    for given in (stop, ["never in it", stop]):
        choice = client.completions.create(**asked, stop=given).choices[0]
        assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")
        parts = list(client.completions.create(**asked, stop=given, stream=True))
        assert "".join(part.choices[0].text for part in parts) == choice.text
        assert parts[-1].choices[0].finish_reason == "stop"


def test_a_bias_of_100_decides_and_minus_100_forbids(client: openai.OpenAI) -> None:
    asked: Any = {"model": "small", "prompt": "Once", "max_tokens": 6, "temperature": 0}
    assert client.completions.create(**asked, logit_bias={"120": 100}).choices[0].text == "xxxxxx"
    free = client.completions.create(**asked, logprobs=1).choices[0].logprobs
    assert free and free.model_extra
    first = free.model_extra["token_ids"][0]
    other = client.completions.create(**asked, logprobs=1, logit_bias={str(first): -100}).choices[0].logprobs
    assert other and other.model_extra and first not in other.model_extra["token_ids"]


def test_a_text_can_be_branched_by_its_ids(client: openai.OpenAI) -> None:
    asked: Any = {"model": "small", "max_tokens": 20, "seed": 9, "logit_bias": ON}
    whole = client.completions.create(prompt="Once", extra_body={"return_token_ids": True, "top_k": 40}, **asked)
    extra = whole.choices[0].model_extra
    assert extra and extra["prompt_token_ids"] == [79, 110, 99, 101] and len(extra["token_ids"]) == 20
    begun = extra["prompt_token_ids"] + extra["token_ids"][:8]
    rest = client.completions.create(
        prompt=begun, extra_body={"return_token_ids": True, "top_k": 40}, **(asked | {"max_tokens": 12})
    )
    assert rest.choices[0].model_extra and rest.choices[0].model_extra["token_ids"] == extra["token_ids"][8:]


def test_the_prompt_can_be_repeated(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="small", prompt=["Once", "Twice"], echo=True, max_tokens=2, seed=1)
    assert [choice.text[:4] for choice in answer.choices] == ["Once", "Twic"]


def test_a_format_binds_the_text(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    schema: Any = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"],
                   "additionalProperties": False}  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    chat = client.chat.completions.create(model="small", messages=HELLO, response_format=form, max_tokens=100)
    assert json.loads(chat.choices[0].message.content or "")["a"] in ("x", "y")
    free = client.chat.completions.create(model="small", messages=HELLO, response_format={"type": "text"}, max_tokens=3)
    assert free.choices[0].message.content is not None
    bound = client.completions.create(model="small", prompt="", extra_body={"regex": "[ab]{3}"}, max_tokens=50)
    assert len(bound.choices[0].text) == 3 and set(bound.choices[0].text) <= {"a", "b"}
    with pytest.raises(openai.BadRequestError, match="regex"):
        client.completions.create(model="small", prompt="", extra_body={"regex": "("}, max_tokens=5)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model="small", messages=HELLO, response_format={"type": "json_object"}, extra_body={"regex": "a"}
        )


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    ask: Any = client.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="gpt", prompt="x")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(model="small", prompt="x", temperature=3)
    assert wrong.value.param == "temperature" and wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="best_of"):
        ask(model="small", prompt="x", best_of=5)
    with pytest.raises(openai.BadRequestError, match="texts"):
        ask(model="small", prompt="x", n=7)
    with pytest.raises(openai.BadRequestError, match="tools"):
        tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        client.chat.completions.create(model="small", messages=HELLO, tools=tools)
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.embeddings.create(model="small", input=["x", ""])


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    listed = client.models.list()
    assert [model.id for model in listed] == ["small", "small-2"]
    model = client.models.retrieve("small-2")
    assert (model.id, model.object, model.owned_by) == ("small-2", "model", "homespun")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_what_surrounds_an_answer_tells_nothing_of_the_server(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model="small", prompt="x", max_tokens=1)
    assert raw.status_code == 200 and raw.headers["content-type"] == "application/json"
    assert "server" not in raw.headers and raw.parse().choices[0].finish_reason
    with client.completions.with_streaming_response.create(
        model="small", prompt="x", max_tokens=3, stream=True
    ) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        assert list(stream.iter_lines())[-2] == "data: [DONE]"
