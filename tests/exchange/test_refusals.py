"""What cannot be read exactly is refused with a sentence that names it, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import homespun as hs
from homespun.errors import CheckpointError, ConfigError, DataError, HomespunError
from tests.exchange.models import make, save

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("Llama", 0, tie_word_embeddings=False), tmp_path_factory.mktemp("llama"))


def settings(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors(**changes: torch.Tensor | None) -> Change:
    def change(folder: Path) -> None:
        found = load_file(folder / "model.safetensors") | changes
        kept = {name: tensor for name, tensor in found.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def index(weight_map: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _without_end(path: Path) -> None:
    path.write_text(path.read_text().replace("<|endoftext|>", "<|finis|>"))


NORM, GATE = "model.norm.weight", "model.layers.1.mlp.gate_proj.weight"
REFUSED: dict[str, tuple[Change, str]] = {
    "pickle": (only_pickle, "pytorch_model.bin.*save_pretrained"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
    "no settings": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "broken settings": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "unknown type": (settings(model_type="mamba"), "'mamba'"),
    "no type": (settings(model_type=None), "model_type = None"),
    "quantized": (settings(quantization_config={"quant_method": "fp8"}), "quantized"),
    "activation": (settings(hidden_act="relu"), "hidden_act = 'relu'.*'silu'"),
    "rotary type": (settings(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "'dynamic'"),
    "rotary factor": (settings(rope_scaling={"type": "linear"}), "without factor"),
    "rotary by layer": (settings(rope_parameters={"full_attention": {"rope_theta": 1.0}}), "layer to layer"),
    "partly turned": (settings(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),
    "missing setting": (settings(hidden_size=None), "lacks hidden_size"),
    "wrong setting": (settings(num_hidden_layers="many"), "layers"),
    "wrong type": (settings(hidden_size="wide"), "wrong type"),
    "huge": (settings(num_hidden_layers=10**9), "num_hidden_layers = 1000000000"),
    "large": (settings(num_hidden_layers=900), "fewer than"),
    "other tokenizer": (lambda folder: _without_end(folder / "tokenizer.json"), "marks no end of a document"),
    "missing tensor": (tensors(**{NORM: None}), f"lacks the tensor {NORM}"),
    "extra tensor": (tensors(surprise=torch.ones(2)), "the tensor surprise"),
    "wrong shape": (tensors(**{GATE: torch.ones(3, 32)}), rf"{GATE}.*\(3, 32\), not \(\d+, 32\)"),
    "untied": (settings(tie_word_embeddings=True), "lm_head.weight.*not the embedding"),
    "type of numbers": (tensors(**{NORM: torch.ones(32, dtype=torch.float64)}), "F64"),
    "not finite": (tensors(**{NORM: torch.full((32,), torch.nan)}), "not finite"),
    "cut file": (cut, "cannot be read"),
    "index outside": (index({NORM: "../model.safetensors"}), "'../model.safetensors'"),
    "index absolute": (index({NORM: "/etc/model.safetensors"}), "no safetensors file here"),
    "index of pickle": (index({NORM: "model.bin"}), "'model.bin'"),
    "index of nothing": (index({}), "no weight_map"),
    "index that lies": (index({NORM: "model-00001-of-00001.safetensors"}), "disagree about"),
    "index of a missing file": (index({NORM: "none.safetensors"}), "none.safetensors cannot be read"),
    "sentencepiece": (only_sentencepiece, "SentencePiece.*tokenizer.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    "small vocabulary": (settings(vocab_size=100), "260 ids, the model only 100"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_exactly_is_refused(name: str, original: Path, tmp_path: Path) -> None:
    change, said = REFUSED[name]
    folder = tmp_path / "model"
    shutil.copytree(original, folder)
    change(folder)
    with pytest.raises(HomespunError, match=said) as refused:
        hs.import_model(folder, tmp_path / "run")
    assert isinstance(refused.value, (CheckpointError, ConfigError, DataError))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("GPT2", "scale_attn_by_inverse_layer_idx", True),
        ("GPT2", "activation_function", "relu"),
        ("StableLm", "use_parallel_residual", True),
        ("StableLm", "qk_layernorm", True),
        ("DeepseekV3", "topk_method", "greedy"),
        ("DeepseekV3", "attention_bias", True),
    ],
)
def test_settings_that_are_not_built_are_refused(name: str, key: str, value: Any, tmp_path: Path) -> None:
    folder = save(make(name, 0), tmp_path / "model")
    settings(**{key: value})(folder)
    with pytest.raises(ConfigError, match=key):
        hs.import_model(folder, tmp_path / "run")


def test_nothing_is_written_over(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run = hs.import_model(original, out)  # an empty folder is as good as none
    for write in (lambda: hs.import_model(original, out), lambda: hs.export(run, out)):
        with pytest.raises(ConfigError, match="exists already"):
            write()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        hs.export(run, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_a_failed_export_leaves_nothing(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from homespun.exchange import huggingface

    run = hs.import_model(original, tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "save_weights", full)
    with pytest.raises(ConfigError, match="No space left"):
        hs.export(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_wrong_wishes_are_named(original: Path, tmp_path: Path) -> None:
    run = hs.import_model(original, tmp_path / "run")
    for wish, said in (({"to": "onnx"}, "onnx"), ({"dtype": "int8"}, "int8"), ({"max_shard": "soon"}, "soon")):
        with pytest.raises(ConfigError, match=said):
            hs.export(run, tmp_path / "out", **wish)
    with pytest.raises(ConfigError, match="architecture"):
        hs.import_model(original, tmp_path / "other", "model.layers=2")
    with pytest.raises(ConfigError, match="learning_rate"):
        hs.import_model(original, tmp_path / "other", "optimizer.learning_rat=2")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
