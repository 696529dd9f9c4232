"""Folders that appear whole or not at all, JSON, and weights in safetensors files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from homespun.errors import CheckpointError, ConfigError
from homespun.train.disk import flush, temporary, write
from homespun.train.manifest import PLAIN, from_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SIZE_LIMIT = 64 * 2**20  # bytes of a JSON file; an index of a very large model has a few million
_CODE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `out` when the block ends well, and nothing stays of it otherwise.

    Raises `ConfigError` when `out` is there and not empty, or cannot be written.
    """
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ConfigError(f"{out} exists already", "Nothing is written over: name a new folder.")
    unfinished = temporary(out.absolute())
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        flush(unfinished)
        if out.is_dir():
            out.rmdir()
        unfinished.rename(out)
        flush(unfinished.parent)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{out} cannot be written: {error}", "Make room, or name another folder.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `ConfigError` when there is none."""
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise ConfigError(f"{path} is larger than {SIZE_LIMIT:,} bytes", "It is no file of this kind.")
        return from_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"There is no {path.name} in {path.parent}", "Name a folder saved by transformers.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "Fetch it again.") from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """JSON in the manner of transformers: sorted, two spaces."""
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write(path, f"{text}\n".encode())


class WeightFiles:
    """The tensors of a folder, by name: in model.safetensors, or in the files that its index names.

    Nothing is read but headers until `read`. Raises `CheckpointError` for what is missing, damaged or said twice, and
    for folders that hold no safetensors: other formats can run code when they are opened.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._file: dict[str, str] = {}
        named: dict[str, set[str]] = {}
        for key, file in _index(folder).items():
            named.setdefault(file, set()).add(key)
        for file, keys in (named or {WEIGHTS: set()}).items():
            self._add(file)
            held = {key for key, place in self._file.items() if place == file}
            if named and (wrong := sorted(held ^ keys)):
                raise CheckpointError(f"{INDEX} and {file} disagree about {wrong[0]}", "Fetch both again.")

    def read(self, name: str) -> Tensor:
        """A tensor as fp32, which holds bf16 and fp16 exactly, in memory of its own."""
        with self._open(self._file[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor.to(torch.float32, copy=True)

    def _add(self, file: str) -> None:
        with self._open(file) as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no dictionary
                part = opened.get_slice(key)
                if key in self._file:
                    raise CheckpointError(f"{key} is in {self._file[key]} and in {file}", "Fetch the files again.")
                if part.get_dtype() not in DTYPES:
                    known = ", ".join(DTYPES)
                    raise CheckpointError(f"{key} has the type {part.get_dtype()}", f"Only {known} can be imported.")
                self._file[key], self.dtypes[key] = file, part.get_dtype()
                self.shapes[key] = tuple(part.get_shape())

    @contextmanager
    def _open(self, file: str) -> Iterator[Any]:
        try:
            with safe_open(self.folder / file, framework="pt") as opened:
                yield opened
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder / file} cannot be read: {error}", "Fetch it again.") from None


def _index(folder: Path) -> dict[str, str]:
    """The file of each tensor; nothing where all are in one."""
    if (folder / WEIGHTS).is_file():
        return {}
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{folder / INDEX} has no weight_map", "Fetch it again.")
    for file in listed.values():
        if not isinstance(file, str) or not PLAIN.fullmatch(file) or not file.endswith(".safetensors"):
            raise CheckpointError(f"{INDEX} names {file!r:.80}, which is no safetensors file here", "Do not trust it.")
    return listed


def _no_weights(folder: Path) -> CheckpointError:
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _CODE)
    if not others:
        return CheckpointError(f"{folder} holds no {WEIGHTS}", "Name a folder saved by transformers.")
    return CheckpointError(
        f"{folder} holds its weights only as {others[0]}, which can run code when it is opened",
        "If you trust it, let transformers convert it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW).",
    )


def save_weights(folder: Path, tensors: Mapping[str, Tensor], shard: int) -> None:
    """Writes the tensors to model.safetensors, or with more than `shard` bytes to several files and an index."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in sorted(tensors):
        if groups[-1] and size + tensors[name].nbytes > shard:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensors[name].nbytes
    names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    names = names if len(groups) > 1 else [WEIGHTS]
    for file, group in zip(names, groups, strict=True):
        save(folder / file, {name: tensors[name] for name in group})
    if len(groups) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        listed = {name: file for file, group in zip(names, groups, strict=True) for name in group}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": listed})


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors to one safetensors file, with the rights of the config.json beside it."""
    save_file(dict(tensors), path, metadata={"format": "pt"})
    shutil.copymode(path.parent / "config.json", path)  # safetensors gives its files to the owner alone
    flush(path)


def escape(text: str) -> str:
    """Text for Markdown, on one line, without markup of its own."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))
