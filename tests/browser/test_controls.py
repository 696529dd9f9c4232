"""The controls of the playground, and what it says when something is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.watched import Watched, expect
from tests.serve.process import Process

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
Visit = Callable[..., Watched]

NO_STORAGE = """
for (const name of ["getItem", "setItem"]) Storage.prototype[name] = () => { throw new DOMException("private"); };
"""


def test_every_control_is_sent_and_taken(visit: Visit) -> None:
    at = visit()
    numbers: dict[str, Any] = {
        "temperature": 1.2, "top_p": 0.9, "max_tokens": 8, "seed": 4, "n": 2, "top_k": 40, "min_p": 0.01,
        "typical_p": 0.95, "repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": -0.5,
    }  # fmt: skip
    at.write("Once", **numbers, stop="The end\n\\n\\n", logit_bias="101: 2.5\n256: -100")
    expect(at.find(".text")).to_have_count(2)
    body = at.asked[-1][1]
    assert {name: body[name] for name in numbers} == numbers
    assert body["stop"] == ["The end", "\n\n"] and body["logit_bias"] == {"101": 2.5, "256": -100}
    expect(at.find("#more-count")).to_have_text("8 set")
    at.find("#reset").click()
    expect(at.find("#control-temperature")).to_have_value("0.8")
    at.write("Once", tokens=3)
    sent = at.asked[-1][1].keys() - {"model", "prompt", "stream", "logprobs", "return_token_ids", "seed"}
    assert sent == {"temperature", "max_tokens", "n", "logit_bias"}, "what is off is not sent"


def test_a_text_is_bound_to_an_expression_or_a_schema(visit: Visit) -> None:
    pytest.importorskip("llguidance")
    at = visit()
    at.write("Once", tokens=20, logit_bias="", regex="[0-9]{4}")
    assert at.asked[-1][1]["regex"] == "[0-9]{4}" and re.fullmatch("[0-9]{4}", at.texts()[0])
    at.write("Once", tokens=20, logit_bias="", regex="", response_format='{"enum": ["yes", "no"]}')
    assert at.asked[-1][1]["response_format"]["json_schema"]["schema"] == {"enum": ["yes", "no"]}
    assert at.texts()[0] in ('"yes"', '"no"')


def test_a_slider_moves_its_number(visit: Visit) -> None:
    at = visit()
    at.find("#control-temperature").fill("1.5")
    slider = at.find(".field:has(#control-temperature) input[type=range]")
    expect(slider).to_have_value("1.5")
    slider.evaluate("input => { input.value = 0.4; input.dispatchEvent(new Event('input')); }")
    expect(at.find("#control-temperature")).to_have_value("0.4")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("temperature", "3", "Temperature should be a number from 0 to 2."),
        ("n", "1.5", "Texts should be a whole number from 1 to 64."),
        ("logit_bias", "x: 3", "Logit bias: “x: 3” should be a token's id, a colon, and a number from -100 to 100."),
        ("response_format", "[1]", 'JSON schema should be a JSON object, such as {"type": "object"}.'),
    ],
)
def test_a_wrong_setting_is_named_and_gets_the_focus(visit: Visit, name: str, value: str, sentence: str) -> None:
    at = visit()
    at.set(**{name: value})
    at.find(".more > summary").click()  # folded away
    at.find("#write").click()
    expect(at.find("#problem")).to_have_text(sentence)
    expect(at.find(f"#control-{name}")).to_be_focused()
    assert at.asked == []


def test_an_error_of_the_server_is_one_sentence(visit: Visit) -> None:
    at = visit()
    at.refusals.add(400)
    at.set(max_tokens=5000)
    at.find("#write").click()
    expect(at.find(".pane .problem")).to_have_text("A text may have 4,096 tokens here, not 5,000.")
    at.settle()
    at.write("Once")
    expect(at.find(".pane .problem")).to_be_hidden()


def test_what_was_said_comes_back_when_it_is_not_answered(visit: Visit) -> None:
    at = visit()
    at.refusals.add(400)
    at.find("label[for=mode-chat]").click()
    at.set(max_tokens=5000)
    at.find("#prompt").fill("Hello")
    at.find("#write").click()
    expect(at.find(".pane .problem")).to_be_visible()
    expect(at.find("#prompt")).to_have_value("Hello")
    expect(at.find(".said")).to_have_count(0)


def test_a_server_that_is_gone(visit: Visit) -> None:
    at = visit()
    at.page.route("**/v1/completions", lambda route: route.abort())
    at.find("#write").click()
    expect(at.find(".pane .problem")).to_have_text("The server cannot be reached.")
    at.settle()
    assert len(at.complaints) == 1 and "ERR_FAILED" in at.complaints.pop()


def test_an_answer_that_breaks_off(visit: Visit) -> None:
    at = visit()
    half = 'data: {"choices": [{"index": 0, "text": "", "logprobs": null, "finish_reason": null}]}\n\n'
    at.page.route("**/v1/completions", lambda route: route.fulfill(body=half, content_type="text/event-stream"))
    at.find("#write").click()
    expect(at.find(".pane .problem")).to_have_text("The connection broke before the text was finished.")
    expect(at.find(".figures-line")).to_contain_text("broke off")
    at.settle()


def test_settings_are_remembered(visit: Visit) -> None:
    at = visit()
    expect(at.find("#model")).to_have_value("small")
    at.set(temperature=0.3, top_k=7)
    at.find("#model").select_option("other")
    at.find("#compare").check()
    at.find("#colours").uncheck()
    at.page.reload()
    expect(at.find("#model")).to_have_value("other")
    expect(at.find("#control-temperature")).to_have_value("0.3")
    expect(at.find("#control-top_k")).to_have_value("7")
    expect(at.find("#other")).to_be_visible()
    expect(at.find("#colours")).not_to_be_checked()


def test_a_browser_that_keeps_nothing(visit: Visit) -> None:
    at = visit(script=NO_STORAGE)
    at.write("Once", tokens=5)
    expect(at.find(".token[data-index]")).to_have_count(5)


def test_a_server_with_a_key(chromium: Browser, runs: dict[str, Path], tmp_path: Path) -> None:
    key = "a-key-that-is-long-enough"
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text(key, encoding="utf-8")
    server = Process(runs["small"], "--api-key-file", tmp_path / "key", key=key)
    credentials: Any = {"username": "anybody", "password": key}
    context = chromium.new_context(base_url=server.address, http_credentials=credentials)
    at = Watched(context.new_page(), server)
    at.page.goto("/")
    at.write("Once", tokens=5)
    expect(at.find(".token[data-index]")).to_have_count(5)
    context.close()
    server.end()
