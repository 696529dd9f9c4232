"""The tokenizer's files: tokenizer.json with what transformers wants to know beside it, and the conversation format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from homespun.data.conversation import ASSISTANT, ROLES, SYSTEM, USER, Special
from homespun.data.tokenizer import ENDS, Tokenizer, library_errors
from homespun.data.vocabulary import Gpt2
from homespun.errors import ConfigError, DataError
from homespun.exchange.files import read_json, write_json
from homespun.exchange.memory import Ids, Imported
from homespun.train.disk import write

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_TEMPLATE_LIMIT = 2**20  # bytes


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, context: int, memory: Imported | None, template: str | None
) -> None:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json and, with a template, chat_template.jinja."""
    definition = json.loads(tokenizer.to_json())
    if memory is None:
        definition["post_processor"] = None  # texts were encoded without a template's tokens when this run was trained
    write(folder / "tokenizer.json", f"{json.dumps(definition, indent=2, ensure_ascii=False)}\n".encode())
    about = memory.tokenizer if memory is not None and memory.tokenizer else _about(tokenizer, context)
    write_json(folder / "tokenizer_config.json", about)
    named = {
        key: _spelled(about[key]) for key in ("bos_token", "eos_token", "unk_token", "pad_token") if about.get(key)
    }
    write_json(folder / "special_tokens_map.json", named)
    if template is not None:
        write(folder / "chat_template.jinja", template.encode())


def _about(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    spelled = {number: name for name, number in tokenizer.special.items()}
    end = spelled[tokenizer.end]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,  # a document starts after the end of another
        "eos_token": end,
        "additional_special_tokens": [name for name in tokenizer.special if name != end],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }


def _spelled(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def token_ids(tokenizer: Tokenizer, vocab: int, memory: Imported | None) -> dict[str, Ids]:
    """Ids of begin, end and padding for config.json; null where there is none that the model knows."""
    own: dict[str, Ids] = {"bos_token_id": tokenizer.end, "eos_token_id": tokenizer.end, "pad_token_id": None}
    found = memory.tokens if memory is not None else own
    return {key: value if _known(value := found.get(key), vocab) else None for key in _IDS}


def _known(ids: Ids, vocab: int) -> bool:
    listed = ids if isinstance(ids, list) else [ids]
    return bool(listed) and all(isinstance(number, int) and 0 <= number < vocab for number in listed)


def chat_template(tokenizer: Tokenizer) -> str:
    """The format of `data/conversation.py` as a template; every answer ends with the end of text."""
    end = next(name for name, number in tokenizer.special.items() if number == tokenizer.end)

    def mark(special: Special) -> str:
        return json.dumps(special.name if special.name in tokenizer.special else special.marker, ensure_ascii=False)

    lines = ["{%- for message in messages -%}"]
    for place, special in enumerate((SYSTEM, USER, ASSISTANT)):
        roles = [role for role, of in ROLES.items() if of == special]
        lines.append(f"{{%- {'el' if place else ''}if message['role'] in {roles} -%}}")
        lines.append(f"{{{{- {mark(special)} + message['content'] -}}}}")
    lines += [
        f"{{{{- {json.dumps(end, ensure_ascii=False)} -}}}}",
        "{%- else -%}",
        "{{- raise_exception('Unknown role: ' + message['role']) -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        f"{{%- if add_generation_prompt -%}}{{{{- {mark(ASSISTANT)} -}}}}{{%- endif -%}}",
    ]
    return "\n".join(lines) + "\n"


def read_tokenizer(folder: Path, model_type: str) -> tuple[Tokenizer, tuple[int, ...]]:
    """The tokenizer of a folder, and the ids that its template puts before a text.

    Raises `DataError` where there is no tokenizer.json and none can be made from what is there.
    """
    if (place := folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(place)
        return tokenizer, _begin(place.read_text(encoding="utf-8"), str(place))
    if model_type == "gpt2" and (folder / "vocab.json").is_file():
        return Gpt2(file=str(folder)).build([], 0)[0], ()
    if list(folder.glob("*.model")):
        raise DataError(
            f"{folder} has its tokenizer only in SentencePiece's format",
            "Let transformers write a tokenizer.json: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).",
        )
    raise DataError(f"{folder} holds no tokenizer.json", "Copy the one of this model there.")


def _begin(definition: str, source: str) -> tuple[int, ...]:
    with library_errors(source):
        library = tokenizers.Tokenizer.from_str(definition)
        special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
        if not special & set(ENDS):
            raise DataError(f"{source} marks no end of a document", f"Known special tokens for it: {', '.join(ENDS)}.")
        full, plain = (library.encode("a", add_special_tokens=templated).ids for templated in (True, False))
    start = next((place for place in range(len(full)) if full[place : place + len(plain)] == plain), 0)
    return tuple(full[:start])


def read_about(folder: Path) -> tuple[dict[str, Any], str | None]:
    """tokenizer_config.json without what names code, and the chat template, wherever it stands."""
    path = folder / "tokenizer_config.json"
    about = read_json(path) if path.is_file() else {}
    about = {key: value for key, value in about.items() if key not in ("auto_map", "chat_template")}
    template = (read_json(path) if path.is_file() else {}).get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        if jinja.stat().st_size > _TEMPLATE_LIMIT:
            raise ConfigError(f"{jinja} is larger than {_TEMPLATE_LIMIT:,} bytes", "It is no template.")
        template = jinja.read_bytes().decode("utf-8", "replace")
    return about, template if isinstance(template, str) else None
