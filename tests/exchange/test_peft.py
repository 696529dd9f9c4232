"""Adapters leave for peft: base and adapter on disk are the tuned model on disk, and peft itself agrees where it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import homespun as hs
from homespun.errors import ConfigError
from homespun.model.lora import LoRA
from homespun.train.log import PlainConsole

QUIET = PlainConsole(quiet=True)
SMALL = ("model.width=32", "model.layers=2", "model.context=32", "train.batch_tokens=128", "train.compile=off",
         "train.precision=fp32", "tokenizer.kind=bytes", "train.steps=1")  # fmt: skip
LATENT = LoRA(rank=3, alpha=5, targets=("kv_a_proj_with_mqa", "kv_b_proj", "o_proj"))
CASES = {
    "gpt2-nano": (("model.attention.heads=2",), LoRA(rank=3, alpha=5)),
    "optimus-prime-standard": (("model.attention.heads=4", "model.attention.kv_heads=2"), LoRA(rank=3, alpha=5)),
    "optimus-prime": ((), LATENT),
    "nanokimi-nano-mla": ((), LATENT),
}


@pytest.fixture(scope="module", params=CASES)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small base, the same tuned, and what they leave as."""
    place, (settings, lora) = tmp_path_factory.mktemp("peft"), CASES[request.param]
    rows = place / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q{n}", "completion": f"a{n}"}) + "\n" for n in range(30)))
    base = hs.train("stories:30", hs.recipe(request.param, *SMALL, *settings), out=place / "base", console=QUIET)
    quick = ("train.steps=12", "optimizer.learning_rate=0.02", "train.batch_tokens=128", "train.precision=fp32")
    tuned = hs.tune(base, str(rows), place / "tuned", *quick, lora=lora, console=QUIET)
    hs.export(base, place / "base-hf")
    hs.export(tuned, place / "tuned-hf")
    hs.export(tuned, place / "peft", to="peft")
    return {name: place / name for name in ("base", "tuned", "base-hf", "tuned-hf", "peft")}


def test_base_and_adapter_make_the_tuned_model(folders: dict[str, Path]) -> None:
    """By the formula of peft: W + alpha / r * B A, turned where inputs are rows, ranks and alphas by their patterns."""
    settings = json.loads((folders["peft"] / "adapter_config.json").read_text())
    adapter = load_file(folders["peft"] / "adapter_model.safetensors")
    base, tuned = (load_file(folders[name] / "model.safetensors") for name in ("base-hf", "tuned-hf"))
    changed = 0
    for module in settings["target_modules"]:
        a, b = (adapter.pop(f"base_model.model.{module}.lora_{letter}.weight") for letter in "AB")
        key = module.replace(".", r"\.")
        rank, alpha = (settings[f"{name}_pattern"].get(key, settings[usual])
                       for name, usual in (("rank", "r"), ("alpha", "lora_alpha")))  # fmt: skip
        assert a.shape[0] == b.shape[1] == rank
        change = alpha / rank * b @ a
        expected = base[f"{module}.weight"] + (change.T if settings["fan_in_fan_out"] else change)
        torch.testing.assert_close(tuned.pop(f"{module}.weight"), expected, atol=1e-6, rtol=1e-5)
        changed += bool(change.abs().max() > 1e-3)
    assert changed == len(settings["target_modules"]) and not adapter
    assert all(torch.equal(tensor, base[name]) for name, tensor in tuned.items())


def test_peft_reads_it(folders: dict[str, Path]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["base-hf"], dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(model, folders["peft"]).eval()
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        ours, theirs = hs.load(folders["tuned"]).model(tokens), adapted(tokens).logits
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - hs.load(folders["base"]).model(tokens)).abs().max() > 1e-2


def test_what_has_no_adapter_or_cannot_leave_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no adapter"):
        hs.export(hs.load(folders["base"]), tmp_path / "out", to="peft")
    with pytest.raises(ConfigError, match="Known: hf, peft"):
        hs.export(hs.load(folders["base"]), tmp_path / "out", to="pfet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "settings", "targets", "message"),
    [
        (
            "gpt2-nano",
            ("model.attention.heads=2",),
            ("q_proj",),
            "cannot leave as a part of transformer.h.0.attn.c_attn",
        ),
        ("optimus-prime", (), ("gate_proj",), "peft takes gate_proj of a DeepseekV3ForCausalLM for experts"),
    ],
)
def test_adapters_that_the_class_has_no_place_for(
    recipe: str, settings: tuple[str, ...], targets: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "q", "completion": "a"}\n' * 2)
    base = hs.train("stories:30", hs.recipe(recipe, *SMALL, *settings), out=tmp_path / "base", console=QUIET)
    lora = LoRA(rank=2, targets=targets)
    tuned = hs.tune(base, str(rows), tmp_path / "tuned", "train.steps=1", lora=lora, console=QUIET)
    with pytest.raises(ConfigError, match=message):
        hs.export(tuned, tmp_path / "out", to="peft")
