"""A conversation becomes a prompt: special tokens come from templates alone, and hostile templates end."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import homespun as hs
from homespun.data import conversation
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import Bytes
from homespun.errors import CheckpointError, DataError
from homespun.generate import sandbox
from homespun.generate.template import Jinja, Plain, Trained, template_of

OURS = Bytes().build([], 0)[0]
SYSTEM, USER, ANSWER = ({"role": role, "content": text} for role, text in
                        (("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi")))  # fmt: skip
TALK = [SYSTEM, USER, ANSWER, {"role": "user", "content": "Bye"}]

MARKED = """\
{%- if messages[0].role == 'system' -%}
    {%- set told = messages[0].content -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{{- bos_token }}
{%- if told is defined %}{{ '<|im_start|>system\\n' + told + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Take turns') }}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
HEADED = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
WORDED = """\
{% for message in messages %}{% if message.role == 'user' %}

### Question:
{{ message.content }}{% elif message.role == 'assistant' %}

### Answer:
{{ message.content }}{% endif %}{% endfor %}

### Answer:
"""
NAMES = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin|>")
BEGIN = {"bos_token": "<|begin|>"}


def foreign() -> Tokenizer:
    """Bytes, with the special tokens of other people's templates."""
    definition = json.loads(OURS.to_json())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    definition["added_tokens"] += [{"id": 260 + i, "content": name, **flags} for i, name in enumerate(NAMES)]
    return Tokenizer(json.dumps(definition))


FOREIGN = foreign()


def spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, special=True)


def jinja(template: str) -> Jinja:
    return Jinja(template, FOREIGN, BEGIN)


def test_the_trained_template_gives_a_prefix_of_the_trained_row() -> None:
    template = Trained(OURS)
    row = conversation.encode(conversation.render({"messages": [*TALK, ANSWER]}), OURS)
    assert [*template.prompt(TALK), *OURS.encode("Hi")] == row
    assert spelled(OURS, row).startswith("<|system|>Be kind.<|user|>Hello<|assistant|>Hi<|endoftext|><|user|>Bye")
    assert template.stops == [] and template.conversational


def test_without_the_special_tokens_words_mark_the_turns_and_end_an_answer() -> None:
    bare = json.loads(OURS.to_json())
    bare["added_tokens"] = bare["added_tokens"][:1]
    template = Trained(Tokenizer(json.dumps(bare)))
    assert spelled(OURS, template.prompt([USER])) == "\nUser:\nHello\nAssistant:\n"
    assert "\nUser:" in template.stops


def test_a_base_model_reads_words_and_does_not_play_the_user() -> None:
    template = Plain(OURS, begin=[7])
    ids = template.prompt(TALK)
    assert ids[0] == 7 and not set(ids) & set(OURS.special.values())
    assert OURS.decode(ids[1:]).startswith("System:\nBe kind.\nUser:\nHello\nAssistant:\nHi\nUser:\nBye")
    assert OURS.decode(ids).endswith("\nAssistant:\n")
    assert "\nUser:" in template.stops and not template.conversational


def test_marks_and_headers_become_special_tokens() -> None:
    chatml = jinja(MARKED).prompt(TALK)
    expected = (
        "<|begin|><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert spelled(FOREIGN, chatml) == expected
    assert chatml.count(FOREIGN.special["<|im_start|>"]) == 5
    headed = jinja(HEADED).prompt([{"role": "developer", "content": " x\n"}, USER])
    assert spelled(FOREIGN, headed) == (
        "<|begin|><|start_header_id|>system<|end_header_id|>\n\nx<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_prompts_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    FOREIGN.save(tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **BEGIN)
    for template in (MARKED, HEADED, WORDED):
        talk = TALK if template != WORDED else TALK[1:]
        told = theirs.apply_chat_template(talk, chat_template=template, add_generation_prompt=True, return_dict=False)
        assert jinja(template).prompt(talk) == told


@pytest.mark.parametrize("make", [lambda: Trained(FOREIGN), lambda: Plain(FOREIGN), lambda: jinja(MARKED),
                                  lambda: jinja(HEADED)])  # fmt: skip
def test_what_is_said_cannot_become_a_special_token(make: Any) -> None:
    said = "".join(FOREIGN.special) + " {{ 7 * 6 }} {% raw %}"
    template = make()
    ids, harmless = (template.prompt([{"role": "user", "content": text}]) for text in (said, "x"))
    special = set(FOREIGN.special.values())
    assert [token for token in ids if token in special] == [token for token in harmless if token in special]
    assert said in spelled(FOREIGN, ids)


def test_words_between_turns_end_an_answer_and_special_tokens_do_not() -> None:
    assert jinja(WORDED).stops == ["\n### Question:"]
    assert jinja(MARKED).stops == jinja(HEADED).stops == []


@pytest.mark.parametrize("make", [lambda: Trained(OURS), lambda: Plain(OURS), lambda: jinja(MARKED)])
@pytest.mark.parametrize(
    "wrong",
    [[], [{"role": "wizard", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": 3}], ["x"],
     [{"role": "user", "content": ["a", "b"]}], [{"role": "user", "content": "\ud800"}]],
)  # fmt: skip
def test_what_is_no_message_is_refused(make: Any, wrong: Any) -> None:
    with pytest.raises(DataError):
        make().prompt(wrong)


def test_a_template_can_refuse_and_is_quoted_without_control_characters() -> None:
    with pytest.raises(DataError, match="Take turns"):
        jinja(MARKED).prompt([ANSWER])
    with pytest.raises(DataError) as caught:
        jinja("{{ raise_exception('a\x1b[2Jb') }}").prompt([USER])
    assert "\x1b" not in str(caught.value)


HOSTILE = {
    "long range": "{% for i in range(10**9) %}x{% endfor %}",
    "long loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long number": "{% set x = (8 + messages|length) ** (9 ** 9) %}",
    "long constant": "{% set x = 9 ** (9 ** 9) %}",
    "deep": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nested": "{{" + "(" * 50_000 + "1" + ")" * 50_000 + "}}",
    "flood": "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "wide": "{{ 'a' * 10**10 }}",
    "format": "{{ '%10000000000d' % 1 }}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "change": "{{ messages.append(1) }}",
    "file": "{% include 'template.py' %}",
    "broken": "{% if %}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_templates_end_and_the_next_render_works(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sandbox.LIMITS, "seconds", 0.7)
    template = jinja("{% if messages[0].content == '' %}fine{% else %}" + HOSTILE[kind] + "{% endif %}")
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="chat template"):
        template.prompt([USER])
    assert time.monotonic() - started < 30  # it would take hours
    if kind not in ("broken", "nested", "long constant"):  # these do not get as far as the messages
        assert FOREIGN.decode(template.prompt([{"role": "user", "content": ""}])) == "fine"


def test_one_process_serves_many_renders_and_threads_and_ends_with_its_template() -> None:
    template = jinja(MARKED)
    expected = template.prompt(TALK)
    process = template._sandbox._process
    assert process is not None
    found: list[list[int]] = []

    def render(template: Jinja) -> None:
        found.append(template.prompt(TALK))

    threads = [threading.Thread(target=render, args=(template,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4 and template._sandbox._process is process and process.poll() is None
    del template, threads, thread
    assert process.poll() is not None


def test_an_interrupted_render_leaves_no_answer_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    template = jinja(MARKED)
    template.prompt(TALK)
    process = template._sandbox._process
    assert process is not None and process.stdout is not None

    class Interrupted:
        def readline(self) -> bytes:
            raise KeyboardInterrupt

        def close(self) -> None:
            pass

    monkeypatch.setattr(process, "stdout", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        template.prompt([USER])
    assert "Bye" in FOREIGN.decode(template.prompt(TALK))


CONVERSATIONS = [{"messages": [USER, ANSWER]}, {"messages": TALK + [ANSWER]}] * 60
TEXTS = [{"text": f"Once there were {number} foxes."} for number in range(120)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trains a very small run on rows."""

    def make(name: str, rows: list[Any], tokenizer: str = "bytes") -> hs.Run:
        place = tmp_path_factory.mktemp(name)
        (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        recipe = hs.recipe("house-tiny", "model.width=16", "model.layers=1", "model.context=16", "train.steps=1",
                           "train.batch_tokens=64", "train.compile=off", f"tokenizer.kind={tokenizer}",
                           "model.attention.heads=2")  # fmt: skip
        return hs.train(str(place / "rows.jsonl"), recipe, out=place / "run")

    return make


def test_a_run_knows_its_template_by_its_corpus(runs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert isinstance(template_of(runs("answers", CONVERSATIONS)), Trained)
    trained = runs("texts", TEXTS)
    assert isinstance(template_of(trained), Plain)
    (trained.folder / "imported.json").write_text(json.dumps({"chat_template": WORDED}))
    assert isinstance(template_of(trained), Jinja)


def test_an_imported_run_uses_the_template_that_came_with_it(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.exchange import models

    folder = models.save(models.make("Llama", 0), tmp_path / "model")
    FOREIGN.save(folder / "tokenizer.json")
    about: dict[str, Any] = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|im_end|>", "unk_token": None}
    expected = jinja(MARKED).prompt(TALK)
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": MARKED}]
    for number, template in enumerate((MARKED, named)):
        (folder / "tokenizer_config.json").write_text(json.dumps(about | {"chat_template": template}))
        found = template_of(hs.import_model(folder, tmp_path / f"run{number}"))
        assert isinstance(found, Jinja) and found.prompt(TALK) == expected
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "chat_template.jinja").write_text(MARKED)
    assert template_of(hs.import_model(folder, tmp_path / "jinja")).prompt(TALK) == expected
    shutil.rmtree(folder)
