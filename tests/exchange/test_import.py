"""Models of transformers come in bit for bit, and leave as they came."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import homespun as hs
from tests.exchange.models import CLASSES, SEEDS, greedy, load, make, save, tokens


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CLASSES)
def test_an_imported_model_is_the_same_and_leaves_as_it_came(name: str, seed: int, tmp_path: Path) -> None:
    theirs = make(name, seed)
    run = hs.import_model(save(theirs, tmp_path / "theirs"), tmp_path / "run")
    x = tokens()
    with torch.no_grad():
        torch.testing.assert_close(run.model(x), theirs(x).logits, rtol=0, atol=1e-5 if name == "GPT2" else 0)
    written = theirs.generate(
        x[:1, :8],
        attention_mask=torch.ones(1, 8),
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(greedy(run.model, x[:1, :8], 32), written)
    hs.export(run, tmp_path / "ours")
    first, second = (tmp_path / place / "model.safetensors" for place in ("theirs", "ours"))
    assert first.read_bytes() == second.read_bytes()
    half = load(tmp_path / "ours", torch.bfloat16)
    with torch.no_grad():
        difference = (run.model.to(torch.bfloat16)(x) - half(x).logits).abs().max()
    assert difference <= (0.05 if name == "GPT2" else 0)


@pytest.mark.parametrize("name", CLASSES)
def test_bf16_weights_come_and_leave_as_bf16(name: str, tmp_path: Path) -> None:
    theirs = make(name, 1)
    save(theirs, tmp_path / "full")
    save(load(tmp_path / "full", torch.bfloat16), tmp_path / "half")
    run = hs.import_model(tmp_path / "half", tmp_path / "run")
    assert all(tensor.dtype == torch.float32 for tensor in run.model.state_dict().values())
    hs.export(run, tmp_path / "again")
    first, second = (tmp_path / place / "model.safetensors" for place in ("half", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"


def test_half_split_rotary_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    theirs = make("DeepseekV3", 1, rope_interleave=False)
    run = hs.import_model(save(theirs, tmp_path / "theirs"), tmp_path / "run")
    x = tokens()
    with torch.no_grad():
        assert torch.equal(run.model(x), theirs(x).logits)
        hs.export(run, tmp_path / "ours")  # in pairs, as this class has it by default
        assert torch.equal(load(tmp_path / "ours")(x).logits, theirs(x).logits)


def test_old_gpt2_files_without_prefix_and_with_masks(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs = make("GPT2", 0)
    folder = save(theirs, tmp_path / "theirs")
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(folder / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    run = hs.import_model(folder, tmp_path / "run")
    x = tokens()
    with torch.no_grad():
        torch.testing.assert_close(run.model(x), theirs(x).logits, rtol=0, atol=1e-5)


def test_layers_that_predict_a_second_token_are_left_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(make("DeepseekV3", 0), tmp_path / "theirs")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.3.eh_proj.weight": torch.ones(2)}, folder / "model.safetensors")
    assert hs.import_model(folder, tmp_path / "run").recipe.model.layers == 3


def test_several_weight_files_come_in_and_leave(tmp_path: Path) -> None:
    theirs = make("Qwen3Moe", 1)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    save(make("Qwen3Moe", 1), tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "tokenizer.json", tmp_path / "theirs")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    run = hs.import_model(tmp_path / "theirs", tmp_path / "run")
    hs.export(run, tmp_path / "ours", max_shard="40k")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    x = tokens()
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "ours")(x).logits, theirs(x).logits)


def test_older_dialect_of_rotary_settings(tmp_path: Path) -> None:
    theirs = make("Llama", 1)
    folder = save(theirs, tmp_path / "theirs")
    settings = json.loads((folder / "config.json").read_text())
    rope = settings.pop("rope_parameters")
    settings["rope_theta"] = rope.pop("rope_theta")
    settings["rope_scaling"] = rope
    (folder / "config.json").write_text(json.dumps(settings))
    run = hs.import_model(folder, tmp_path / "run")
    x = tokens()
    with torch.no_grad():
        assert torch.equal(run.model(x), theirs(x).logits)
