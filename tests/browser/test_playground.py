"""The playground, clicked through against a real server."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import homespun as hs
from tests.browser.watched import END, Watched, expect, pictured
from tests.serve.process import Process

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
Visit = Callable[..., Watched]

CHOSEN = """all => all.map(token => [...token.querySelectorAll(".layer")]
  .map(layer => [...layer.children].map(chip => Number(chip.textContent))))"""
DEEP = {"tokens": [{"id": 79, "text": "O", "experts": [None, [0], [5]]}] * 3, "experts": 8}
UNDO = "button:text-is('Undo branch')"
STYLE = "mark => [getComputedStyle(mark).backgroundColor, getComputedStyle(mark).textDecorationLine]"


def test_a_prompt_is_written_as_it_streams(visit: Visit) -> None:
    at = visit()
    expect(at.find("#model")).to_have_value("small")
    at.set(max_tokens=400, seed=5, logit_bias=f"{END}: -100")
    at.find("#prompt").fill("Once <b>upon</b>")
    at.page.keyboard.press("Control+Enter")
    expect(at.find(".token[data-index]").first).to_be_visible()
    assert at.find(".token[data-index]").count() < 400, "tokens are shown before the last one is written"
    at.settle()
    expect(at.find(".token[data-index]")).to_have_count(400)
    expect(at.find(".figures-line")).to_contain_text("400 tokens in")
    expect(at.find(".figures-line")).to_contain_text("tokens/s")
    expect(at.find(".figures-line")).to_contain_text("seed 5")
    expect(at.find(".words .prompt")).to_have_text("Once <b>upon</b>")
    path, body = at.asked[-1]
    answer = at.api(path, body)["choices"][0]
    assert at.texts() == [pictured(answer["text"])]
    expect(at.find("#spoken")).to_contain_text("The text is finished.")


def test_tokens_are_marked_by_their_probability(visit: Visit) -> None:
    at = visit()
    at.write("Once upon", tokens=60, temperature=1, seed=3)
    path, body = at.asked[-1]
    told = at.api(path, body)["choices"][0]["logprobs"]["token_logprobs"]
    likely = [math.exp(value) for value in told]
    levels = [next((i for i, least in enumerate((0.8, 0.5, 0.2, 0.05)) if p >= least), 4) for p in likely]
    shown = at.find(".token[data-index]").evaluate_all("all => all.map(t => Number(t.className.match(/p([0-4])/)[1]))")
    assert shown == levels and len(set(levels)) > 1
    expect(at.find(".token[data-index]").first).to_have_attribute("aria-label", re.compile(r", (< )?[\d.]+ %$"))
    strong, weak = (at.find(f".legend .p{level}").evaluate(STYLE) for level in (4, 0))
    assert strong[0] != weak[0] and strong[1] != weak[1], "the marks differ by more than colour"


def test_stop_ends_the_text_and_the_work(visit: Visit) -> None:
    at = visit()
    at.set(max_tokens=4000, logit_bias=f"{END}: -100")
    at.find("#prompt").fill("Once")
    for stop in (lambda: at.find("#stop").click(), lambda: at.page.keyboard.press("Escape")):
        at.find("#write").click()
        expect(at.find(".token[data-index]").nth(5)).to_be_visible()
        stop()
        at.settle()
        expect(at.find(".figures-line")).to_contain_text("was stopped")
        assert at.find(".token[data-index]").count() < 4000
        at.server.wait_for("homespun_running", lambda value: value == 0)
    expect(at.find(".problem:visible")).to_have_count(0)


def test_pointing_at_a_token_shows_the_five_best_and_a_click_branches(visit: Visit) -> None:
    at = visit()
    at.write("Once upon", tokens=20, seed=11)
    before = at.texts()
    path, body = at.asked[-1]
    told = at.api(path, body)["choices"][0]
    best = sorted(told["logprobs"]["top_logprobs"][4].values(), reverse=True)[:5]
    at.find("[data-index='4']").hover()
    rows = at.find("#alternatives .card-row")
    expect(rows).to_have_count(5)
    shares = [float(share.strip("< %")) for share in at.find("#alternatives .share").all_inner_texts()]
    assert shares == pytest.approx([100 * math.exp(value) for value in best], abs=0.51)
    rows.and_(at.find(":not([disabled])")).first.click()
    at.settle()
    path, branched = at.asked[-1]
    assert path == "/v1/completions" and len(at.asked) == 2
    ids = told["prompt_token_ids"] + told["token_ids"][:4]
    assert branched["prompt"][:-1] == ids and branched["prompt"][-1] != told["token_ids"][4]
    assert {**branched, "prompt": 0, "n": 0} == {**body, "prompt": 0, "n": 0, "stream": True}
    expect(at.find("[data-index='4']")).to_have_class(re.compile(r"\bby-hand\b"))
    further = at.api(path, branched)["choices"][0]
    expect(at.find(".token[data-index]")).to_have_count(5 + 20)
    assert at.texts()[0].endswith(pictured(further["text"]))
    at.find(UNDO).click()
    assert at.texts() == before
    expect(at.find(UNDO)).to_be_hidden()


def test_a_text_may_go_on_and_keep_its_seed(visit: Visit) -> None:
    at = visit()
    at.write("Once", tokens=12)
    seed = at.asked[-1][1]["seed"]
    at.find("button:text-is('Go on')").click()
    expect(at.find(".token[data-index]")).to_have_count(24)
    at.settle()
    whole = at.api("/v1/completions", {**at.asked[0][1], "max_tokens": 24})["choices"][0]["text"]
    assert at.texts() == [pictured(whole)], "what goes on is what would have been written at once"
    at.find("button:text-is('Keep seed')").click()
    expect(at.find("#control-seed")).to_have_value(str(seed))
    expect(at.find("#control-seed")).to_be_focused()


def test_a_conversation(visit: Visit) -> None:
    at = visit()
    at.find("label[for=mode-chat]").click()
    expect(at.find("#base-hint")).to_contain_text("small has learned no conversations")
    at.find(".system summary").click()
    at.find("#system").fill("Be short.")
    at.set(max_tokens=16, n=2, logit_bias=f"{END}: -100")
    at.find("#prompt").fill("Hello")
    at.page.keyboard.press("Control+Enter")
    expect(at.find(".reply")).to_have_count(2)
    at.settle()
    expect(at.find("#prompt")).to_have_value("")
    second = at.api(*at.asked[0])["choices"][1]["message"]["content"]
    at.find(".go-on-with").nth(1).click()
    at.find("#prompt").fill("And then?")
    at.find("#write").click()
    expect(at.find(".reply")).to_have_count(4)
    at.settle()
    path, body = at.asked[-1]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": second}, {"role": "user", "content": "And then?"},
    ]  # fmt: skip
    at.find("#again").click()
    expect(at.find(".said")).to_have_count(2)
    at.settle()
    assert at.asked[-1][1]["messages"] == body["messages"]
    at.find("#new").click()
    expect(at.find(".said")).to_have_count(0)
    expect(at.find("#prompt")).to_be_focused()


def test_a_reply_branches_from_its_prompt(visit: Visit) -> None:
    at = visit()
    at.find("label[for=mode-chat]").click()
    at.write("Hello", tokens=12, seed=2)
    told = at.api(*at.asked[0])["choices"][0]
    at.find("[data-index='0']").click()
    at.find("#alternatives .card-row:not([disabled])").first.click()
    at.settle()
    path, body = at.asked[-1]
    assert path == "/v1/completions" and body["prompt"][:-1] == told["prompt_token_ids"]
    expect(at.find(".token[data-index]")).to_have_count(13)


def test_two_runs_on_one_prompt_and_seed(visit: Visit) -> None:
    at = visit()
    at.find("#compare").check()
    at.find("#other").select_option("small")
    at.write("Once upon")
    first, second = at.texts()
    assert first == second and len(first) > 10
    at.find("#other").select_option("other")
    at.find("#other-temperature").fill("0.3")
    at.write("Once upon")
    (_, one), (_, two) = at.asked[-2:]
    assert (one["model"], two["model"], two["temperature"]) == ("small", "other", 0.3)
    assert one | {"model": 0, "temperature": 0} == two | {"model": 0, "temperature": 0}
    assert at.find(".pane h2").all_inner_texts() == ["small", "other"]
    assert len(set(at.texts())) == 2
    left, right = (at.find(".pane").nth(i).bounding_box() for i in (0, 1))
    assert left is not None and right is not None and left["y"] == right["y"] and left["x"] < right["x"]


def test_the_experts_of_each_token(visit: Visit) -> None:
    at = visit()
    expect(at.find("#experts-switch")).to_be_hidden()
    at.find("#model").select_option("experts")
    at.write("Once upon", tokens=20)
    at.find("#experts").check()
    expect(at.find(".words .gloss")).to_have_count(29)  # the prompt is read as well
    path, body = at.asked[-1]
    told = at.api(path, body)["tokens"]
    shown = at.find(".words .token").evaluate_all(CHOSEN)
    assert path == "/v1/inspect" and shown == [[layer for layer in token["experts"] if layer] for token in told]
    expect(at.find("[data-index='0']")).to_have_attribute("aria-label", re.compile(r"; layer 1: \d and \d$"))
    at.find("[data-index='3']").click()
    expect(at.find("#alternatives .card-row")).to_have_count(5)
    expect(at.find("#layer")).to_be_hidden()
    at.find("#experts").uncheck()
    expect(at.find(".words .gloss")).to_have_count(0)


def test_one_layer_of_experts(visit: Visit) -> None:
    at = visit()
    at.page.route("**/v1/inspect", lambda route: route.fulfill(json=DEEP))
    at.find("#model").select_option("experts")
    at.find("#experts").check()
    at.write("O", tokens=2)
    expect(at.find(".layers")).to_contain_text("in layers 1, 2.")
    assert at.find(".words .token").evaluate_all(CHOSEN) == [[[0], [5]]] * 3
    at.find("#layer").select_option("layer 2")
    assert at.find(".words .token").evaluate_all(CHOSEN) == [[[5]]] * 3
    expect(at.find(".layers")).to_contain_text("in layer 2.")


def test_experts_of_a_text_longer_than_the_context(visit: Visit) -> None:
    at = visit()
    at.find("#model").select_option("experts")
    at.find("#experts").check()
    at.write("Once upon", tokens=100)
    expect(at.find(".words .gloss")).to_have_count(64)
    expect(at.find(".token[data-index]")).to_have_count(100)


def test_passages_that_were_looked_up_stand_below_the_text(
    chromium: Browser, runs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("The <b>fox</b> sleeps in the barn.\n", encoding="utf-8")
    hs.Index.build(tmp_path / "notes.txt", tmp_path / "notes.index")
    process = Process(runs["small"], "--retrieve", tmp_path / "notes.index")
    context = chromium.new_context(base_url=process.address)
    at = Watched(context.new_page(), process)
    try:
        at.page.goto("/")
        at.write("Where is the fox?", tokens=4)
        assert at.find(".sources > summary").inner_text() == "Sources: 1"
        at.find(".sources > summary").click()
        expect(at.find(".sources li")).to_have_text("notes.txt:1 The <b>fox</b> sleeps in the barn.")
        at.write("What else?", tokens=4)
        expect(at.find(".sources")).to_be_hidden()
    finally:
        context.close()
        assert "Traceback" not in process.end()
    assert at.foreign == at.complaints == []
