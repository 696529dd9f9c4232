"""The application without a network: who may ask, for how much, and what is answered."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import homespun as hs
from homespun.generate.batch import Batch
from homespun.serve.app import build
from homespun.serve.house import House
from homespun.serve.limits import Limits
from homespun.serve.served import open_runs
from homespun.serve.watching import rows_after
from tests.serve.conftest import END, ON, Client

KEY = "a key of some length"
ASKING = {"model": "small", "prompt": "Once", "max_tokens": 3, "seed": 1}
SAYING = {"model": "small", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
ROUTES = [
    ("GET", "/"), ("GET", "/live"), ("GET", "/learn"), ("GET", "/static/x.js"), ("GET", "/metrics"),
    ("GET", "/v1/models"), ("GET", "/v1/models/small"), ("GET", "/v1/runs"), ("GET", "/v1/runs/small/metrics"),
    ("GET", "/v1/runs/small/learning"), ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"), ("POST", "/v1/inspect"), ("GET", "/nonsense"),
]  # fmt: skip


def error_of(answer: Any) -> dict[str, Any]:
    """The error, whose shape is OpenAI's."""
    told = answer.json()
    assert list(told) == ["error"] and list(told["error"]) == ["message", "type", "param", "code"]
    return dict(told["error"])


def events_of(text: str) -> list[Any]:
    """The events of a stream, the last one as it is."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token takes 20 ms."""
    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda batch: (time.sleep(0.02), step(batch))[1])


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_key_is_asked_for_on_every_route(client: Client, runs: list[Path], method: str, path: str) -> None:
    asking = client(runs[:1], key=KEY)
    basic = base64.b64encode(f"anybody:{KEY}".encode()).decode()
    wrong = [
        "",
        "Bearer",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Token {KEY}",
        "Basic ???",
        "Basic Zm9v",
        "bearer é",
    ]
    for given in wrong:
        answer = asking.request(method, path, headers={"Authorization": given.encode()} if given else {})
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Basic ")
        assert error_of(answer)["code"] == "invalid_api_key"
    for right in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {basic}"):
        assert asking.request(method, path, headers={"Authorization": right}).status_code != 401
    assert asking.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("settings", "host", "known"),
    [
        ({}, "127.0.0.1:8000", True), ({}, "localhost", True), ({}, "[::1]:80", True), ({}, "LOCALHOST:1", True),
        ({}, "evil.example", False), ({}, "127.0.0.1.evil.example", False), ({}, "10.0.0.1", False), ({}, "", False),
        ({}, "localhost@evil.example", False), ({}, "evil@localhost", False), ({}, "[", False),
        ({"host": "10.0.0.1"}, "10.0.0.1:8000", True), ({"host": "10.0.0.1"}, "10.0.0.2", False),
        ({"host": "0.0.0.0"}, "10.0.0.2:8000", True), ({"host": "0.0.0.0"}, "evil.example", False),
        ({"host": "0.0.0.0", "names": ["box.lan"]}, "box.lan:8000", True),
    ],
)  # fmt: skip
def test_foreign_hosts_are_refused(client: Client, runs: list[Path], settings: Any, host: str, known: bool) -> None:
    answer = client(runs[:1], **settings).get("/health", headers={"Host": host})
    assert answer.status_code == (200 if known else 421)
    assert known or error_of(answer)["code"] == "unknown_host"


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1:8000", 200), ("https://127.0.0.1:8000", 200), ("http://evil.example", 403), ("null", 403),
     ("http://127.0.0.1:3000", 403), ("http://localhost:8000", 403), ("", 403), ("file://", 403)],
)  # fmt: skip
def test_pages_of_other_origins_are_refused(client: Client, runs: list[Path], origin: str, status: int) -> None:
    asking = client(runs[:1])
    headers = {"Host": "127.0.0.1:8000", "Origin": origin}
    answers = [asking.get("/v1/models", headers=headers), asking.post("/v1/completions", json=ASKING, headers=headers)]
    assert [answer.status_code for answer in answers] == [status, status]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]
    preflight = asking.options("/v1/completions", headers=headers)
    assert preflight.status_code in (403, 405)


def test_every_answer_is_closed_to_other_pages_and_to_guesses(client: Client, runs: list[Path]) -> None:
    asking = client(runs[:1])
    for path in ("/health", "/nonsense", "/v1/models", "/static/x"):
        headers = asking.get(path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"


def test_a_body_has_to_be_plain_json(client: Client, runs: list[Path]) -> None:
    asking = client(runs[:1], {"body": 1000})
    body = json.dumps(ASKING)
    for headers in (
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ):
        assert asking.post("/v1/completions", content=body, headers=headers).status_code == 415
    plain = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert asking.post("/v1/completions", content=body, headers=plain).status_code == 200
    for content in (b" " * 1001, (b" " * 100 for _ in range(11))):
        answer = asking.post("/v1/completions", content=content, headers=plain)
        assert answer.status_code == 413 and error_of(answer)["code"] == "request_too_large"
    assert asking.post("/v1/completions", content=body + " " * (1000 - len(body)), headers=plain).status_code == 200


def test_routes_and_methods_that_are_not_there(client: Client, runs: list[Path]) -> None:
    asking = client(runs[:1])
    assert error_of(asking.get("/v1/completions"))["message"].startswith("This route does not take")
    assert asking.get("/v1/completions").status_code == 405
    for path in (
        "/v2",
        "/v1/models/",
        "/v1/models/a/b",
        "/health/",
        "/v1/runs/small/recipe.yaml",
        "/v1/runs/x/metrics",
    ):
        assert asking.get(path).status_code == 404 and error_of(asking.get(path))["message"]
    assert asking.get("/v1/models/gpt").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "a/../../app.py", "%00", "app.py", "."])
def test_only_the_known_files_are_served(client: Client, runs: list[Path], name: str) -> None:
    assert client(runs[:1]).get(f"/static/{name}").status_code == 404


def test_pages_and_their_files_have_their_types(client: Client, runs: list[Path]) -> None:
    import homespun.serve

    folder = Path(homespun.serve.__file__).parent / "static"
    if not (folder / "index.html").is_file():
        pytest.skip("the pages are not there")
    asking = client(runs[:1])
    for path in ("/", "/live", "/learn"):
        answer = asking.get(path)
        assert answer.status_code == 200 and answer.headers["Content-Type"] == "text/html; charset=utf-8"
        for name in re.findall(r'(?:src|href)="/static/([^"]+)"', answer.text):
            file = asking.get(f"/static/{name}")
            assert file.content == (folder / name).read_bytes()
            assert file.headers["Content-Type"].split(";")[0] in ("text/javascript", "text/css", "image/svg+xml")


@pytest.mark.parametrize(
    ("limits", "fields", "param"),
    [
        ({"tokens": 10}, {"max_tokens": 11}, "max_tokens"),
        ({"texts": 3}, {"n": 4}, "n"),
        ({"texts": 3}, {"n": 2, "prompt": ["a", "b"]}, "n"),
        ({"rows": 1, "queue": 1}, {"n": 3}, "n"),
        ({"prompt_tokens": 5}, {"prompt": "123456"}, "prompt"),
        ({"prompt_tokens": 5}, {"prompt": [[1, 2, 3], [4, 5, 6]]}, "prompt"),
    ],
)
def test_nobody_gets_more_than_the_limits(
    client: Client, runs: list[Path], limits: Any, fields: Any, param: str
) -> None:
    answer = client(runs[:1], limits).post("/v1/completions", json=ASKING | fields)
    assert answer.status_code == 400 and error_of(answer)["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [-1]}, "prompt"), ({"prompt": [10**9]}, "prompt"), ({"prompt": [260]}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"), ({"logit_bias": {"260": 1}}, "logit_bias"), ({"regex": "("}, "regex"),
        ({"regex": "a{5000}"}, "regex"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_names_its_field(client: Client, runs: list[Path], fields: Any, param: str) -> None:
    if "regex" in fields or "response_format" in fields:
        pytest.importorskip("llguidance")
    kind = {"Content-Type": "application/json"}
    answer = client(runs[:1]).post("/v1/completions", content=json.dumps(ASKING | fields), headers=kind)
    assert answer.status_code == 400 and error_of(answer)["param"] == param
    said = {"messages": [{"role": "user", "content": "\ud800" if param == "prompt" else "x"}]}
    chat = {"model": "small"} | said | {name: each for name, each in fields.items() if name != "prompt"}
    answer = client(runs[:1]).post("/v1/chat/completions", content=json.dumps(chat), headers=kind)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == ("messages" if param == "prompt" else param)


def test_a_full_queue_says_when_to_come_again(client: Client, runs: list[Path], slow: None) -> None:
    asking = client(runs[:1], {"rows": 1, "queue": 2})
    with ThreadPoolExecutor(1) as other:
        first = other.submit(asking.post, "/v1/completions", json=ASKING | {"max_tokens": 20, "logit_bias": ON})
        while not asking.app_state["house"].runs.models["small"].scheduler.figures.written_tokens:
            time.sleep(0.001)
        for stream in (False, True):
            answer = asking.post("/v1/completions", json=ASKING | {"n": 3, "stream": stream})
            assert answer.status_code == 429 and answer.headers["Retry-After"]
            assert error_of(answer)["code"] == "server_busy"
        assert first.result().status_code == 200
    assert asking.post("/v1/completions", json=ASKING | {"n": 3}).status_code == 200


def test_a_request_has_its_time(client: Client, runs: list[Path], slow: None) -> None:
    asking = client(runs[:1], {"seconds": 0.3})
    long = ASKING | {"max_tokens": 4000, "logit_bias": ON}
    answer = asking.post("/v1/completions", json=long)
    assert answer.status_code == 504 and error_of(answer)["code"] == "timeout"
    assert answer.headers["X-Should-Retry"] == "false"
    events = events_of(asking.post("/v1/completions", json=long | {"stream": True}).text)
    assert events[-1]["error"]["code"] == "timeout" and events[0]["choices"]
    figures = asking.app_state["house"].runs.models["small"].scheduler.figures
    assert figures.written_tokens < 100


def test_nothing_is_begun_while_the_server_ends(client: Client, runs: list[Path]) -> None:
    asking = client(runs[:1])
    house = asking.app_state["house"]
    house.closing = True
    answer = asking.post("/v1/completions", json=ASKING)
    assert answer.status_code == 503 and error_of(answer)["code"] == "server_ending" and answer.headers["Retry-After"]
    house.closing, house.connections = False, 257
    answer = asking.get("/v1/models")
    assert answer.status_code == 503 and error_of(answer)["code"] == "too_many_connections"


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_is_told_and_logged_without_the_prompt(
    client: Client, runs: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Once upon a secret")

    monkeypatch.setattr("homespun.serve.writing.sampling_of", fail)
    answer = client(runs[:1]).post("/v1/completions", json=ASKING | {"prompt": "Once upon a secret", "stream": stream})
    assert answer.status_code == 500 and error_of(answer)["code"] == "internal_error"
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text + answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_numbers_that_are_none_end_an_answer_with_an_error(
    client: Client, runs: list[Path], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def nothing(logits: torch.Tensor, ids: torch.Tensor, _: int) -> torch.Tensor:
        return torch.stack((ids.float(), torch.full_like(ids, torch.nan, dtype=torch.float32)), 1)

    monkeypatch.setattr("homespun.generate.batch.describe", nothing)
    answer = client(runs[:1]).post("/v1/completions", json=ASKING | {"stream": stream})
    error = events_of(answer.text)[-1]["error"] if stream else error_of(answer)
    assert answer.status_code == (200 if stream else 500) and error["code"] == "model_failed"


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_work_within_two_tokens(
    runs: list[Path], slow: None, route: str, stream: bool
) -> None:
    house = House(open_runs(runs[:1], "last", None, Limits()), Limits())
    app = build(house)
    figures = house.runs.models["small"].scheduler.figures
    fields = {"model": "small", "stream": stream, "max_tokens": 1000, "logit_bias": ON}
    fields |= {"messages": SAYING["messages"]} if "chat" in route else {"prompt": "Once"}
    body = json.dumps(fields).encode()
    scope = {"type": "http", "method": "POST", "path": route, "query_string": b"", "root_path": "", "scheme": "http",
             "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
             "asgi": {"version": "3.0"}, "http_version": "1.1"}  # fmt: skip

    async def ask_and_leave() -> int:
        messages = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            while figures.written_tokens < 5:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None: ...

        await app(scope, receive, send)
        return figures.written_tokens

    house.runs.start()
    try:
        written = asyncio.run(ask_and_leave())
        assert 5 <= written <= 7
        time.sleep(0.1)
        assert figures.written_tokens <= 7 and figures.running == 0 and figures.cancelled == 1
    finally:
        house.runs.close()


def test_a_stream_says_what_the_whole_answer_says(client: Client, runs: list[Path]) -> None:
    asking = client(runs[:1])
    fields = {"max_tokens": 12, "n": 2, "seed": 4, "logit_bias": ON, "return_token_ids": True}
    for route, base, more in (
        ("/v1/completions", ASKING | {"prompt": ["Once", [79, 110]]}, {"logprobs": 2}),
        ("/v1/completions", ASKING, {"echo": True}),
        ("/v1/chat/completions", SAYING, {"logprobs": True, "top_logprobs": 2}),
    ):
        asked = base | fields | more
        whole = asking.post(route, json=asked).json()
        stream = asked | {"stream": True, "stream_options": {"include_usage": True}}
        *events, last, done = events_of(asking.post(route, json=stream).text)
        assert done == "[DONE]" and last["choices"] == [] and last["usage"] == whole["usage"]
        assert all(event["usage"] is None and event["id"] == last["id"] for event in events)
        assert len(whole["choices"]) == (4 if "logprobs" in more and "prompt" in base else 2)
        for choice in whole["choices"]:
            mine = [part for event in events for part in event["choices"] if part["index"] == choice["index"]]
            said = [p["text"] if "text" in p else p["delta"].get("content", "") for p in mine]
            assert "".join(said) == (choice["text"] if "text" in choice else choice["message"]["content"])
            assert [token for part in mine for token in part["token_ids"]] == choice["token_ids"]
            assert [p["prompt_token_ids"] for p in mine if "prompt_token_ids" in p] == [choice["prompt_token_ids"]]
            assert [part["finish_reason"] for part in mine if part["finish_reason"]] == [choice["finish_reason"]]
            for key in ("content",) if "chat" in route else ("tokens", "token_logprobs", "text_offset", "top_ids"):
                parts = [part["logprobs"][key] for part in mine if part["logprobs"]]
                together = [item for part in parts for item in part]
                assert together == (choice["logprobs"][key] if choice["logprobs"] else [])


def test_the_metrics_are_well_formed_and_count(client: Client) -> None:
    asking = client()
    asking.post("/v1/completions", json=ASKING | {"logit_bias": ON})
    asking.post("/v1/completions", json=ASKING | {"model": "nobody"})
    asking.get("/v1/models/a%20%22%0A")
    text = asking.get("/metrics").text
    line = r'[a-z_]+(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? [0-9.e+-]+'
    assert all(re.fullmatch(rf"# (HELP|TYPE) .+|{line}", each) for each in text.rstrip("\n").split("\n"))
    families = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(families) == len(set(families))
    assert 'homespun_requests_total{route="/v1/completions",status="200"} 1\n' in text
    assert 'homespun_requests_total{route="/v1/completions",status="404"} 1\n' in text
    assert 'homespun_requests_total{route="/v1/models/{name}",status="404"} 1\n' in text
    assert 'homespun_written_tokens_total{model="small"} 3\n' in text
    assert 'homespun_written_tokens_total{model="small-2"} 0\n' in text
    assert 'homespun_prompt_tokens_total{model="small"} 4\n' in text
    assert 'homespun_request_seconds_bucket{route="/v1/completions",le="+Inf"} 2\n' in text
    buckets = re.findall(r'_bucket\{route="/v1/completions",le="[^"]+"\} (\d+)', text)
    assert list(map(int, buckets)) == sorted(map(int, buckets))


def test_inspect_tells_what_the_model_thinks_of_each_token(client: Client, runs: list[Path]) -> None:
    asking = client()
    for name, folder in (("small", runs[0]), ("small-2", runs[1])):
        told = asking.post("/v1/inspect", json={"model": name, "text": "One day"}).json()
        run = hs.load(folder)
        ids = run.tokenizer.encode("One day")
        probabilities = run.model(torch.tensor([ids]))[0].detach().softmax(-1)
        assert [token["id"] for token in told["tokens"]] == ids
        assert [token["text"] for token in told["tokens"]] == list("One day")
        assert told["tokens"][0]["probability"] is None
        for place, token in enumerate(told["tokens"][1:]):
            assert token["probability"] == pytest.approx(float(probabilities[place, token["id"]]), rel=1e-4)
            best = probabilities[place].topk(5)
            assert [each["id"] for each in token["alternatives"]] == best.indices.tolist()
            assert [each["probability"] for each in token["alternatives"]] == pytest.approx(best.values.tolist(), 1e-4)
        if name == "small":
            assert told["experts"] is None and all(token["experts"] is None for token in told["tokens"])
        else:
            assert told["experts"] == 4
            for token in told["tokens"]:
                dense, chosen = token["experts"]
                assert dense is None and len(set(chosen)) == 2 and set(chosen) <= set(range(4))
    ids = {"model": "small", "token_ids": [1] * 64}
    assert len(asking.post("/v1/inspect", json=ids).json()["tokens"]) == 64
    for wrong in ({"token_ids": [1] * 65}, {"token_ids": [260]}, {"token_ids": [-1]}):
        answer = asking.post("/v1/inspect", json={"model": "small"} | wrong)
        assert answer.status_code == 400 and error_of(answer)["param"] == "token_ids"
    assert asking.post("/v1/inspect", json={"model": "small", "text": ""}).json()["tokens"][0]["id"] == END


def test_the_runs_are_told_and_their_rows_from_any_byte_on(client: Client, runs: list[Path], tmp_path: Path) -> None:
    young = tmp_path / "young"
    young.mkdir()
    (young / "recipe.yaml").write_bytes((runs[0] / "recipe.yaml").read_bytes())
    rows = [{"step": 1, "loss": 5.5}, {"step": 2, "loss": None}]
    (young / "metrics.jsonl").write_text('{"step": 1, "loss": 5.5}\nnonsense\n{"step": 2, "loss": NaN}\n{"step": 3,')
    asking = client([*runs, young])
    told = {run["name"]: run for run in asking.get("/v1/runs").json()["runs"]}
    assert list(told) == ["small", "small-2", "young"]
    assert told["small"]["model"] and told["small"]["step"] == 4 and told["small"]["context"] == 64
    assert told["small"]["parameters"] == sum(p.numel() for p in hs.load(runs[0]).model.parameters())
    assert (told["small"]["experts"], told["small-2"]["experts"]) == (None, 4)
    assert not told["young"]["model"] and told["young"]["training"] and told["young"]["step"] is None
    assert asking.get("/v1/models/young").status_code == 404
    assert asking.post("/v1/completions", json=ASKING | {"model": "young"}).status_code == 404
    first = asking.get("/v1/runs/young/metrics").json()
    assert first["rows"] == rows and first["start"] == 0
    assert asking.get(f"/v1/runs/young/metrics?after={first['next']}").json()["rows"] == []
    with (young / "metrics.jsonl").open("a") as file:
        file.write(' "loss": 4}\n')
    later = asking.get(f"/v1/runs/young/metrics?after={first['next']}").json()
    assert later == {"rows": [{"step": 3, "loss": 4}], "start": first["next"], "next": later["next"]}
    assert asking.get(f"/v1/runs/young/metrics?after={later['next'] + 1}").json()["start"] == 0
    assert asking.get("/v1/runs/young/samples").json() == {"rows": [], "start": 0, "next": 0}
    for wrong in ("-1", "x", "1e3", "9" * 30, "%C2%B2"):
        assert asking.get(f"/v1/runs/young/metrics?after={wrong}").status_code == 400
    assert asking.get("/v1/runs/small/samples").json()["rows"][0]["step"] == 4
    assert asking.get("/health").json() == {"status": "ok", "models": ["small", "small-2"]}


def test_a_limit_names_the_field_that_was_given(client: Client, runs: list[Path]) -> None:
    asking = client(runs[:1], {"tokens": 10})
    asked = {"model": "small", "messages": [{"role": "user", "content": "Hello"}]}
    for field in ("max_tokens", "max_completion_tokens"):
        answer = asking.post("/v1/chat/completions", json=asked | {field: 11})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == field


def test_a_number_that_json_cannot_tell_is_told_as_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1e999, "x": NaN, "y": 2.5}\n')
    assert rows_after(tmp_path / "metrics.jsonl", 0)["rows"] == [{"step": 1, "loss": None, "x": None, "y": 2.5}]
