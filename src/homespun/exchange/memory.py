"""What an imported run remembers of where it came from, so that it can leave again as it came."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from homespun import config
from homespun.config import Config
from homespun.exchange.files import read_json

IMPORTED = "imported.json"

Ids = int | list[int] | None
Stored = Literal["F32", "BF16", "F16"]


class Imported(Config):
    """`imported.json` in the folder of a run.

    `source`: the name of the folder it came from. `dtype` and `other_dtypes`: the types of the tensors on disk, and of
    those that differ. `begin`: the ids that the tokenizer's own template puts before a text: the model expects them.
    `tokens`: ids of begin, end and padding by their keys in config.json. `generation`, `tokenizer`, `chat_template`:
    the contents of the files of these names.
    """

    format: int = 1
    source: str
    model_type: str
    dtype: Stored
    other_dtypes: dict[str, Stored] = Field(default_factory=dict)
    begin: tuple[int, ...] = ()
    tokens: dict[str, Ids] = Field(default_factory=dict)
    generation: dict[str, Any] = Field(default_factory=dict)
    tokenizer: dict[str, Any] = Field(default_factory=dict)
    chat_template: str | None = None

    def sampling(self) -> dict[str, Any]:
        """How its maker had it write, in the words of `Sampling`: the most likely tokens where generation_config.json
        says not to sample, its settings where it says to, nothing where it says nothing."""
        if not self.generation.get("do_sample"):
            return {"temperature": 0.0} if "do_sample" in self.generation else {}
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return {name: self.generation[name] for name in names if self.generation.get(name)}  # 0 means no limit there

    def ends(self) -> list[int]:
        """The ids with which its maker had a text end: a chat model has one for the end of its turn."""
        found = self.generation.get("eos_token_id", self.tokens.get("eos_token_id"))
        return [token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int)]

    def dtype_of(self, name: str) -> str:
        """The type of a tensor on disk."""
        return self.other_dtypes.get(name, self.dtype)


def imported(folder: Path) -> Imported | None:
    """What a run remembers; nothing if it was trained here from the start."""
    path = folder / IMPORTED
    return config.parse(Imported, read_json(path), str(path)) if path.is_file() else None


def common(dtypes: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The most frequent type, and the others by name."""
    found = list(dtypes.values())
    usual = max(dict.fromkeys(found), key=found.count)
    return usual, {name: dtype for name, dtype in sorted(dtypes.items()) if dtype != usual}
