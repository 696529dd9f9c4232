"""The manifest of a corpus: what its files hold, checked before anything of it is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from homespun.errors import DataError

FORMAT = "homespun-corpus"
VERSION = 1  # changes whenever the same sources would give other files
FILES = ("train.bin", "valid.bin", "tokenizer.json")


def damaged(folder: Path, what: str) -> DataError:
    """The error for a corpus that is not as its manifest says."""
    return DataError(f"The corpus {folder} is damaged: {what}", "Delete that folder and prepare it again.")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, if everything that is read from it has the form it should have."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except FileNotFoundError:
        raise DataError(f"{folder} is no prepared corpus: it has no manifest.json", "Make one with: prepare") from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder, f"manifest.json cannot be read ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{folder} is no prepared corpus", "Make one with: prepare")
    if manifest.get("version") != VERSION:
        problem = f"The corpus {folder} has format {manifest.get('version')!r}; this program reads {VERSION}"
        raise DataError(problem, "Prepare it again.")
    try:
        width = {"uint16": 2, "uint32": 4}[manifest["type"]]
        for side in ("train", "valid"):
            counts = [manifest["splits"][side][name] for name in ("tokens", "documents", "bytes", "characters")]
            matching = manifest["files"][f"{side}.bin"]["bytes"] == counts[0] * width
            if not matching or not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError
        complete = all(isinstance(manifest["files"][name]["sha256"], str) for name in FILES)
        if not complete or not isinstance(manifest["notes"], list) or not isinstance(manifest["key"], str):
            raise ValueError
        for side in ("train", "valid"):  # the parts of a mixture stand one behind the other
            end = 0
            for part in manifest.get("parts", {}).values():
                start, tokens = part[side]["start"], part[side]["tokens"]
                if type(tokens) is not int or tokens < 0 or start != end:
                    raise ValueError
                end = start + tokens
            if "parts" in manifest and end != manifest["splits"][side]["tokens"]:
                raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged(folder, "manifest.json is incomplete or contradicts itself") from None
    return manifest
