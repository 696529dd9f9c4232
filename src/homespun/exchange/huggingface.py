"""Runs leave as folders that transformers reads, and come in from such folders. No code is run, nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homespun import config
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import File
from homespun.errors import CheckpointError, ConfigError
from homespun.exchange.card import card
from homespun.exchange.classes import layout_for, layout_of
from homespun.exchange.files import DTYPES, WeightFiles, new_folder, read_json, save, save_weights, write_json
from homespun.exchange.layout import Layout, canonical
from homespun.exchange.memory import IMPORTED, Imported, common, imported
from homespun.exchange.pieces import Piece, pieces, shapes, to_disk
from homespun.exchange.tokens import chat_template, read_about, read_tokenizer, token_ids, write_tokenizer
from homespun.model.cost import cost
from homespun.model.decoder import ModelConfig
from homespun.model.feedforward import Experts
from homespun.optim import AdamW
from homespun.train.checkpoint import Checkpoints
from homespun.train.disk import release, write
from homespun.train.folder import ENVIRONMENT
from homespun.train.machine import environment
from homespun.train.recipe import Recipe, TrainConfig
from homespun.train.saved import Trained, unbegun

NAMES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""The types of weights on disk: ours and safetensors'."""

HEAD = "embedding_head."
"""What the names of the embedding head begin with. No class has one: it goes into a file of its own, in fp32."""

SHARD = 5 * 10**9  # bytes of one file, as transformers has it


def export(run: Trained, out: Path, dtype: str | None = None, shard: int = SHARD) -> Layout:
    """Writes a run into the new folder `out`; returns the class it became.

    `dtype`: fp32, bf16 or fp16; none means fp32, or for an imported run that was not trained on the types it came in.
    `shard`: bytes of one weight file. Raises `ConfigError` when no class holds the model, or `out` is not empty.
    """
    if dtype is not None and dtype not in NAMES:
        raise ConfigError(f"dtype = {dtype!r} is not possible", f"Choose one of: {', '.join(NAMES)}.")
    layout, memory = layout_for(run.recipe.model), imported(run.folder)
    untouched = memory if run.step == 0 else None
    settings = layout.write(run.recipe.model)
    state = run.model.state_dict()
    head = {name: state.pop(name).cpu() for name in list(state) if name.startswith(HEAD)}
    tensors = _stored(_on_disk(layout, settings, state), dtype, untouched)
    kind = str(common({name: str(tensor.dtype) for name, tensor in tensors.items()})[0]).removeprefix("torch.")
    ids = token_ids(run.tokenizer, run.recipe.model.vocab or 0, memory)
    names = {"architectures": [layout.architecture], "model_type": layout.model_type}
    generation = memory.generation if memory is not None else {key: i for key, i in ids.items() if i is not None}
    template = memory.chat_template if memory is not None else None
    if template is None and untouched is None:
        template = chat_template(run.tokenizer)
    with new_folder(out) as folder:
        write_json(folder / "config.json", names | settings | ids | {"dtype": kind, "torch_dtype": kind})
        write_json(folder / "generation_config.json", generation)
        write_tokenizer(folder, run.tokenizer, run.recipe.model.context, memory, template)
        save_weights(folder, tensors, shard)
        if head:
            save(folder / f"{HEAD}safetensors", {name.removeprefix(HEAD): tensor for name, tensor in head.items()})
        write(folder / "README.md", card(run.folder, run.recipe, run.step, layout, memory).encode())
    return layout


def _on_disk(layout: Layout, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their names on disk. Biases that only the class has are zeros."""
    target = layout.model(settings)
    full = {
        name: state[name].cpu() if name in state else torch.zeros(shape.shape) for name, shape in shapes(target).items()
    }
    assert set(state) <= set(full), "the class holds every tensor: layout_for has compared"
    return to_disk(full, pieces(target, layout.rules(target, settings)))


def _stored(tensors: Mapping[str, Tensor], dtype: str | None, memory: Imported | None) -> dict[str, Tensor]:
    """Each tensor in its type on disk, with memory of its own. A balancing bias stays fp32, as in transformers."""
    stored = {}
    for name, tensor in tensors.items():
        kind = NAMES[dtype or "fp32"]
        if dtype is None and memory is not None:
            kind = memory.dtype_of(name)
        elif name.endswith("e_score_correction_bias"):
            kind = "F32"
        stored[name] = torch.empty(tensor.shape, dtype=DTYPES[kind]).copy_(tensor)
    return stored


def import_folder(source: Path, out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Makes the run folder `out` of a folder that transformers wrote; returns its recipe.

    `overrides`: `dotted.key=value` settings for training on. Raises `ConfigError`, `CheckpointError` or `DataError`
    for what cannot be read exactly.
    """
    if not source.is_dir():
        raise ConfigError(f"{source} is no folder", "Name a folder saved by transformers.")
    settings = read_json(source / "config.json")
    if settings.get("quantization_config") is not None:
        raise ConfigError(f"{source} holds quantized weights", "Import the model that was quantized.")
    layout = layout_of(settings.get("model_type"))
    model = layout.model(settings, str(source / "config.json"))
    files = WeightFiles(source)
    tokenizer, begin = read_tokenizer(source, layout.model_type)
    _check_sizes(tokenizer, model, files)
    recipe = _recipe(source, out, model, overrides)
    parts = pieces(model, layout.rules(model, settings))
    places = _places(layout, model, parts, files)
    memory = _memory(source, layout, settings, {key: files.dtypes[place] for key, place in places.items()}, begin)
    state = _read(parts, places, files)
    with new_folder(out) as folder:
        _fill(folder, recipe, tokenizer, memory, state)
    return recipe


def _check_sizes(tokenizer: Tokenizer, model: ModelConfig, files: WeightFiles) -> None:
    """Before a name is made for every tensor that config.json speaks of."""
    part = model.feed_forward
    routed = (model.layers - len(part.dense_layers)) * part.experts if isinstance(part, Experts) else 0
    if max(model.layers, routed) > len(files.shapes):
        raise CheckpointError(
            f"{files.folder} holds {len(files.shapes):,} tensors, fewer than its config.json speaks of",
            "Fetch it again.",
        )
    if tokenizer.vocab_size > (model.vocab or 0):
        raise ConfigError(
            f"The tokenizer in {files.folder} has {tokenizer.vocab_size:,} ids, the model only {model.vocab:,}",
            "It needs a token for the end of a document that the model knows.",
        )


def _recipe(source: Path, out: Path, model: ModelConfig, overrides: Sequence[str]) -> Recipe:
    """The recipe of the run; what is changed must not be the architecture."""
    recipe = Recipe(
        name=source.resolve().name,
        model=model,
        tokenizer=File(file=str(out.absolute() / "tokenizer.json")),
        optimizer=AdamW(learning_rate=1e-4),
        train=TrainConfig(epochs=1),
    )
    changed = config.override(recipe, overrides)
    if canonical(changed.model) != canonical(model) or changed.tokenizer != recipe.tokenizer:
        raise ConfigError(
            "The architecture and the tokenizer of an imported model are given", "Change settings of training only."
        )
    return changed


def _places(layout: Layout, model: ModelConfig, parts: Sequence[Piece], files: WeightFiles) -> dict[str, str]:
    """The name in the files of each tensor that the class has. Raises `CheckpointError` for what is missing, left over
    or of another shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in to_disk(shapes(model), parts).items()}
    bare = layout.prefix and not any(key.startswith(layout.prefix) for key in files.shapes)
    found = {layout.prefix + key if bare and key != "lm_head.weight" else key: key for key in files.shapes}
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(f"{files.folder} lacks the tensor {name}", "It does not belong to this config.json.")
        if (stored := files.shapes[found[name]]) != shape:
            raise CheckpointError(
                f"{name} in {files.folder} has the shape {stored}, not {shape}",
                "It does not belong to this config.json.",
            )
    for name in sorted(found.keys() - wanted.keys()):
        if any(re.fullmatch(pattern, name) for pattern in layout.ignored(model)):
            continue
        if name == "lm_head.weight" and model.tie_embeddings:
            embedding = next(piece.theirs[0] for piece in parts if piece.ours == ("model.embed_tokens.weight",))
            if torch.equal(files.read(found[name]), files.read(found[embedding])):
                continue
            raise CheckpointError(f"{name} in {files.folder} is not the embedding", "config.json says that it is.")
        raise CheckpointError(
            f"{files.folder} holds the tensor {name}, which its config.json does not know", "Mend it."
        )
    return {name: found[name] for name in wanted}


def _read(parts: Sequence[Piece], places: Mapping[str, str], files: WeightFiles) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for piece in parts:
        tensors = piece.back([files.read(places[name]) for name in piece.theirs])
        state |= dict(zip(piece.ours, tensors, strict=True))
    return state


def _memory(
    source: Path, layout: Layout, settings: Mapping[str, Any], dtypes: Mapping[str, str], begin: tuple[int, ...]
) -> Imported:
    usual, others = common(dtypes)
    about, template = read_about(source)
    path = source / "generation_config.json"
    return config.parse(
        Imported,
        {
            "source": source.resolve().name,
            "model_type": layout.model_type,
            "dtype": usual,
            "other_dtypes": others,
            "begin": begin,
            "tokens": {key: settings.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
            "generation": read_json(path) if path.is_file() else {},
            "tokenizer": about,
            "chat_template": template,
        },
        str(source),
    )


def _fill(folder: Path, recipe: Recipe, tokenizer: Tokenizer, memory: Imported, state: Mapping[str, Tensor]) -> None:
    """A run at step 0: its optimizer has seen nothing; budget, precision and rows are still to be planned."""
    write(folder / "tokenizer.json", tokenizer.to_json().encode())
    about = environment() | {"parameters": cost(recipe.model).parameters, "imported": memory.source}
    write_json(folder / ENVIRONMENT, about)
    write_json(folder / IMPORTED, config.to_dict(memory))
    checkpoints = folder / "checkpoints"
    try:
        Checkpoints(checkpoints).save(0, {"model": state, "optimizer": {}}, unbegun(recipe))
    finally:
        release(checkpoints)
    write(folder / "recipe.yaml", config.to_yaml(recipe).encode())
