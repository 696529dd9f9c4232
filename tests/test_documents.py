"""The five documents that the families come from: every example in them runs, taken from the documents themselves.

Nothing is changed in an example but the path of an import. What a document leaves to its reader (a batch, a data set, a
checkpoint) is given by name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
import re
import textwrap
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from homespun.config import override, read_yaml
from homespun.data.tokenizer import Tokenizer
from homespun.families import RECIPES, kenga, optimus_prime
from homespun.families.alen import LargeLanguageModel, LargeModelConfig, ModelSize
from homespun.families.kimbho import KimbhoV1Model
from homespun.families.nanokimi import Generator, KimiConfig, KimiModel, RandomTokens, TokenFile
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.run import recipe, recipes
from homespun.train.recipe import Recipe
from tests import test_docs

PROJECT = Path(__file__).parent.parent
PAGES = PROJECT / "docs" / "families"

RUNS = "runs"  # from the text of the document
PYTHON = "runs in Python"  # the direct Python form of a Rust example, written here
COMMANDS = "commands"  # the family's page names each, and what to type instead
SETTINGS = "settings"  # the same for keys of YAML
DRAWING = "drawing"  # nothing to run

BLOCKS = {
    "alen": [PYTHON] * 9 + [COMMANDS, PYTHON],
    "kenga": [RUNS, RUNS],
    "kimbho-v1": [COMMANDS, COMMANDS, RUNS, COMMANDS, RUNS, DRAWING],
    "nanokimi": [COMMANDS] * 3 + [RUNS, DRAWING, DRAWING, COMMANDS, RUNS, RUNS]
    + [SETTINGS, SETTINGS, RUNS, SETTINGS, COMMANDS],
    "optimus-prime": [COMMANDS] * 5 + [RUNS, DRAWING],
}  # fmt: skip
LANGUAGES = {RUNS: {"python"}, PYTHON: {"rust"}, COMMANDS: {"bash"},
             SETTINGS: {"yaml"}, DRAWING: {""}}  # fmt: skip
PAGE = {"kimbho-v1": "kimbho"}  # the others have the document's name

MODULES = {
    "src.neural.models.kenga": "homespun.families.kenga",
    "src.neural.trainers.autonomous_trainer": "homespun.families.kenga",
    "nanokimi": "homespun.families.nanokimi",
    "nanokimi.training.data": "homespun.families.nanokimi",
    "nanokimi.benchmark": "homespun.families.nanokimi",
}


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    text: str


def fenced(text: str) -> list[Block]:
    """The fenced blocks of a page, in order; a fence around the whole page, and one that is never closed, are none."""
    lines = text.splitlines()
    if lines[0].strip() == "```markdown":
        lines = lines[1:]
    found: list[Block] = []
    language: str | None = None
    for line in lines:
        fence = re.fullmatch(r"\s*```(\w*)\s*", line)
        if fence and language is None:
            language, body = fence[1], []
        elif fence and not fence[1]:
            found.append(Block(str(language), textwrap.dedent("\n".join(body))))
            language = None
        elif language is not None:
            body.append(line)
    return found


@pytest.fixture(scope="module")
def documents(shared: Path) -> dict[str, str]:
    """The documents by name."""
    folder = shared.parent / "seeds"
    if not folder.is_dir():
        pytest.skip(f"no documents at {folder} (set HOMESPUN_SHARED)")
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}


@pytest.fixture(scope="module")
def block(documents: dict[str, str]):
    """The text of a block, by document and number (from 1)."""
    found = {name: fenced(text) for name, text in documents.items()}
    return lambda name, number: found[name][number - 1].text


def run(text: str, **given: Any) -> dict[str, Any]:
    """Executes an example with the names that its reader defines; returns all names after it."""
    text = re.sub(r"^from (\S+) import", lambda m: f"from {MODULES.get(m[1], m[1])} import", text, flags=re.MULTILINE)
    names = {"__name__": __name__, **given}
    exec(compile(text, "example", "exec"), names)
    return names


def defaults(cls: type) -> dict[str, Any]:
    return {each.name: each.default for each in dataclasses.fields(cls)}


def same_defaults(documented: type, ours: type) -> None:
    """Every documented field is there, in its order, with its type and its default."""
    pairs = list(defaults(ours).items())[: len(defaults(documented))]
    assert pairs == list(defaults(documented).items())
    assert [type(value) for _, value in pairs] == [type(value) for value in defaults(documented).values()]


def small_kimi(block_size: int = 32) -> KimiModel:
    return KimiModel(
        KimiConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=512, block_size=block_size, moe={"num_experts": 4})
    ).eval()


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_block_of_every_document_is_accounted_for(documents):
    found = {name: [each.language for each in fenced(text)] for name, text in documents.items()}
    assert {name: len(languages) for name, languages in found.items()} == {n: len(kinds) for n, kinds in BLOCKS.items()}
    for name, languages in found.items():
        for number, (language, kind) in enumerate(zip(languages, BLOCKS[name], strict=True), 1):
            assert language in LANGUAGES[kind], (name, number)


def test_every_block_that_runs_has_a_test():
    tests = {name for name in globals() if name.startswith("test_")}
    for name, kinds in BLOCKS.items():
        for number, kind in enumerate(kinds, 1):
            if kind in (RUNS, PYTHON):
                assert any(each.startswith(f"test_{name.replace('-', '_')}_{number}_") for each in tests), (
                    name,
                    number,
                )


# -- Kenga -------------------------------------------------------------------------------------------------------------


def test_kenga_1_settings(block):
    names = run(block("kenga", 1), dataclass=dataclasses.dataclass)
    same_defaults(names["KengaConfig"], kenga.KengaConfig)


def test_kenga_2_training(block, capsys):
    batch = torch.randint(50000, (2, 17))
    names = run(block("kenga", 2), get_training_batch=lambda: batch)
    before = names["model"].model.norm.weight.detach().clone()
    asyncio.run(names["train"]())
    loss = float(re.fullmatch(r"Training loss: (\S+)\n", capsys.readouterr().out)[1])
    assert loss == pytest.approx(math.log(50000), rel=0.05)  # nothing is known yet
    assert not torch.equal(names["model"].model.norm.weight, before)


# -- Kimbho ------------------------------------------------------------------------------------------------------------


def test_kimbho_v1_3_loader(block):
    pairs = [(torch.arange(n, n + 32), torch.arange(n + 1, n + 33)) for n in range(70)]
    names = run(block("kimbho-v1", 3), YourCustomDataset=lambda _: pairs)
    inputs, targets = next(iter(names["train_loader"]))
    assert inputs.shape == targets.shape == (32, 32) and len(names["train_loader"]) == 2
    assert KimbhoV1Model()(inputs).shape == (32, 32, 1000)


def test_kimbho_v1_5_inference(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(KimbhoV1Model().state_dict(), "checkpoint_epoch_3.pt")
    if not torch.cuda.is_available():
        to = nn.Module.to
        monkeypatch.setattr(nn.Module, "to", lambda self, device: to(self, "cpu" if device == "cuda" else device))
        monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    run(block("kimbho-v1", 5), KimbhoV1Model=lambda left_out: KimbhoV1Model())
    written = re.search(r"Generated tokens: \[(.*)\]", capsys.readouterr().out)
    assert len(written[1].split(",")) == 23 and written[1].startswith("12, 45, 67")


def test_the_hyperparameters_of_kimbho(documents):
    rows = re.findall(r"^\| `(\w+)` +\| \*\*(\S+)\*\*", documents["kimbho-v1"], re.MULTILINE)
    documented = {name: float(value) for name, value in rows}
    known = inspect.signature(KimbhoV1Model).parameters
    named = {name: known[name].default for name in documented if name in known}
    made = RECIPES["kimbho-v1"]
    named |= {"seq_len": made.model.context, "batch_size": made.train.batch_tokens / made.model.context}
    named |= {"lr": made.optimizer.learning_rate, "num_epochs": made.train.epochs}
    assert named == documented and len(documented) == 11


# -- Optimus Prime -----------------------------------------------------------------------------------------------------


def test_optimus_prime_6_settings(block):
    names = run(block("optimus-prime", 6), dataclass=dataclasses.dataclass)
    same_defaults(names["ModelConfig"], optimus_prime.ModelConfig)
    same_defaults(names["TrainingConfig"], optimus_prime.TrainingConfig)
    assert optimus_prime.TrainingConfig().recipe(optimus_prime.ModelConfig()) == RECIPES["optimus-prime"]


# -- nanoKimi ----------------------------------------------------------------------------------------------------------


def test_nanokimi_4_usage(block, capsys):
    names = run(block("nanokimi", 4))
    assert cost(names["model"].config).parameters / 1e6 == pytest.approx(124, rel=0.02)  # the document's Small
    assert isinstance(names["text"], str)
    assert capsys.readouterr().out == names["text"] + "\n"


def prepared(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs an example of data preparation among the text files that it names."""
    from homespun.data.stories import stories

    monkeypatch.chdir(folder)
    for number, name in enumerate(("train.txt", "train1.txt", "train2.txt", "val.txt")):
        Path(name).write_text("\n\n".join(list(stories(40))[10 * number : 10 * number + 10]), encoding="utf-8")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        names = run(text)
    assert any("GPT-2's vocabulary files are not here" in str(each.message) for each in said)
    return names


def test_nanokimi_7_data_of_a_command(block, tmp_path, monkeypatch):
    text = re.search(r'python -c "\n(.*)"', block("nanokimi", 7), re.DOTALL)
    prepared(text[1], tmp_path, monkeypatch)
    assert len(TokenFile("data/openwebtext/train.bin")) > len(TokenFile("data/openwebtext/valid.bin", 4096)) > 0


def test_nanokimi_8_data(block, tmp_path, monkeypatch):
    names = prepared(block("nanokimi", 8), tmp_path, monkeypatch)
    train, valid = TokenFile(names["train_path"], 64), TokenFile(names["val_path"], 64)
    tokenizer = Tokenizer.load(names["train_path"].parent)
    text = "".join(Path(name).read_text(encoding="utf-8") for name in ("train1.txt", "train2.txt"))
    decoded = tokenizer.decode([int(token) for x, _ in train for token in x])
    assert decoded.startswith(text[:500])
    for dataset in (train, valid):
        assert sum(int((y >= 0).sum()) for _, y in dataset) == len(dataset.tokens) - 1  # each is asked for once
        x, y = dataset[0]
        assert torch.equal(x[1:], y[:-1]) and len(x) == 64


def test_gpt2s_own_vocabulary_is_used_where_it_is(shared, tmp_path):
    from homespun.families.nanokimi import DataConfig, TextDataProcessor

    for name in ("one.txt", "two.md"):
        (tmp_path / name).write_text(f"The quick brown fox, said {name}.", encoding="utf-8")
    config = DataConfig(vocabulary=str(shared / "gpt2_bpe"), data_dir=str(tmp_path / "data"))
    train, _ = TextDataProcessor(config).process_dataset("fox", [tmp_path / "one.txt"], [tmp_path / "two.md"])
    assert TokenFile(train).tokens[:4].tolist() == [464, 2068, 7586, 21831]


def test_nanokimi_9_benchmark(block):
    nanogpt = recipe("gpt2-nano", "model.vocab=512", "model.layers=1", "model.context=64").model
    dataset = RandomTokens(512, block_size=32, items=12)
    models = {"nanokimi_model": small_kimi(), "nanogpt_model": Decoder(nanogpt)}
    names = run(block("nanokimi", 9), model=small_kimi(), dataset=dataset, **models)
    assert names["ppl"] == pytest.approx(512, rel=0.1)
    assert list(names["results"]) == ["nanokimi", "nanogpt"]
    for name, figures in names["results"].items():
        counted = sum(p.numel() for p in models[f"{name}_model"].parameters())
        assert figures["parameters"] == counted and figures["tokens_per_second"] > 0
        assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert names["results"]["nanokimi"]["active_parameters"] < names["results"]["nanokimi"]["parameters"]


@pytest.mark.parametrize("prompt", ["The future", "", "a prompt that is longer than the context of this model is"])
def test_nanokimi_12_cache(block, prompt):
    model = small_kimi()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    names = run(block("nanokimi", 12), Generator=Generator, model=model, prompt=prompt)
    assert isinstance(names["text"], str)
    written = [names["generator"].generate_text(prompt, 40, seed=1, top_p=0.9, use_cache=use) for use in (True, False)]
    assert written[0] == written[1] and written[0]


# -- ALEN, in Python ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alen() -> LargeLanguageModel:
    return LargeLanguageModel(LargeModelConfig.micro())


def test_alen_1_attention(alen):
    attention, c = alen.decoder.model.layers[0].self_attn, alen.config
    for ours in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):  # w_q, w_k, w_v, w_o
        assert ours.weight.shape == (c.d_model, c.d_model)
    assert attention.head_size == c.d_model // c.n_heads  # d_head


def test_alen_2_feed_forward(alen):
    feed_forward, c = alen.decoder.model.layers[0].mlp, alen.config
    hidden = feed_forward.up_proj.weight.shape[0]  # w_up, w_gate, w_down
    assert feed_forward.gate_proj.weight.shape == (hidden, c.d_model)
    assert feed_forward.down_proj.weight.shape == (c.d_model, hidden)
    assert 3 * hidden == pytest.approx(2 * c.d_ff, rel=0.05)  # the parameters of two matrices of d_ff


def test_alen_3_layer(alen):
    layer = alen.decoder.model.layers[0]
    assert isinstance(layer.input_layernorm, nn.LayerNorm)  # ln1, before the attention
    assert isinstance(layer.post_attention_layernorm, nn.LayerNorm)  # ln2


def test_alen_4_model(alen):
    decoder, c = alen.decoder, alen.config
    assert decoder.model.embed_tokens.weight.shape == decoder.lm_head.weight.shape == (c.vocab_size, c.d_model)
    assert decoder.lm_head.weight is not decoder.model.embed_tokens.weight
    assert len(decoder.model.layers) == c.n_layers and isinstance(decoder.model.norm, nn.LayerNorm)  # final_ln


def test_alen_5_sizes():
    assert LargeLanguageModel(LargeModelConfig.micro()).config.size is ModelSize.Micro
    assert LargeLanguageModel.with_size(ModelSize.Small).stats().parameters_str == "21.1M"
    assert LargeLanguageModel.with_size(ModelSize.Medium).stats().parameters_str == "89.0M"


@pytest.mark.slow  # 2 B parameters need 8 GB
@pytest.mark.parametrize("size", [ModelSize.Large, ModelSize.XL])
def test_alen_5_large_sizes(size):
    assert LargeLanguageModel.with_size(size).config.size is size


def test_alen_6_training():
    model = LargeLanguageModel(LargeModelConfig.micro())
    first = model.learn("Training text here...")
    assert first.loss_before == pytest.approx(math.log(8000), rel=0.05) and first.loss_after < first.loss_before - 0.5
    answered = model.learn_qa("What is 2+2?", "The answer is 4.")
    assert answered.known == answered.lessons == 1 and model.answer("What is 2+2?") == "The answer is 4."
    updates = [model.train_on_sequence("Complete text for next-token prediction") for _ in range(3)]
    assert [each.steps for each in updates] == [1, 1, 1] and updates[-1].loss_after < updates[0].loss_before
    model.learn_qa("What is 3+3?", "The answer is 6.")
    assert model.answer("What is 2+2?") == "The answer is 4."  # still
    assert model.answer("What is 3+3?") == "The answer is 6."
    model.undo()
    assert model.answer("What is 2+2?") == "The answer is 4." and model.answer("What is 3+3?") != "The answer is 6."


def test_alen_7_generation(alen):
    generated = alen.generate("How do I", 50, 0.8)
    assert isinstance(generated, str)


def test_alen_8_statistics(alen):
    stats = alen.stats()
    assert f"Parameters: {stats.parameters_str}" == "Parameters: 1.1M"
    assert f"Vocabulary: {stats.vocab_size}/{stats.max_vocab_size}" == "Vocabulary: 260/8000"


def test_alen_9_settings(block):
    documented = re.findall(r"pub (\w+): (\w+)", block("alen", 9))
    assert documented.pop(0) == ("size", "ModelSize")
    ours = {each.name: each.type for each in dataclasses.fields(LargeModelConfig)}
    words = {"usize": ("int", "int | None"), "f32": ("float",), "bool": ("bool",)}
    for name, kind in documented:
        assert ours[name] in words[kind], name


def test_alen_8_a_vocabulary_that_grows():
    model = LargeLanguageModel(LargeModelConfig.micro())
    model.learn("the cat and the dog and the cat and the dog")
    stats = model.stats()
    assert 260 < stats.vocab_size <= stats.max_vocab_size == 8000
    full = LargeLanguageModel(dataclasses.replace(LargeModelConfig.micro(), vocab_size=262))
    for text in ("the cat and the dog and the cat and the dog", "another text, another text"):
        full.learn(text)
        assert (full.stats().vocab_size, full.stats().max_vocab_size) == (262, 262)


def test_alen_11_thoughts():
    from homespun.families.alen import LatentDecoder, ThoughtState

    thought = ThoughtState.from_input("question", 256)
    latent_decoder = LatentDecoder(256, 64)
    large_model = LargeLanguageModel(LargeModelConfig.small())
    text, confidence = latent_decoder.generate(thought)
    assert isinstance(text, str) and 0 < confidence < 1
    assert isinstance(large_model.generate("prompt", 50, 0.8), str)


def test_the_key_features_of_alen(documents, alen):
    """Those that no example shows: causal masking, teacher forcing, and gradient updates."""
    assert all(words in documents["alen"] for words in ("Causal masking", "Teacher forcing", "Gradient updates"))
    ids = torch.randint(260, (1, 12))
    alen.decoder.eval()
    with torch.no_grad():
        whole, part = alen.decoder(ids), alen.decoder(ids[:, :7])
    assert torch.allclose(whole[:, :7], part, atol=1e-5)
    before = {name: weight.clone() for name, weight in alen.decoder.state_dict().items()}
    alen.train_on_sequence("One update.")
    moved = [name for name, weight in alen.decoder.state_dict().items() if not torch.equal(weight, before[name])]
    alen.undo()
    assert moved == list(before) and all(torch.equal(before[n], w) for n, w in alen.decoder.state_dict().items())


def test_the_sizes_of_alen(documents):
    rows = re.findall(
        r"^\| \*\*(\w+)\*\* \| (\S+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", documents["alen"], re.MULTILINE
    )
    assert len(rows) == 5
    for name, parameters, *numbers in rows:
        preset = LargeModelConfig.of(ModelSize[name])
        assert [preset.d_model, preset.n_heads, preset.n_layers, preset.d_ff] == [int(number) for number in numbers]
        million = float(parameters[:-1]) * {"M": 1, "B": 1000}[parameters[-1]]
        assert cost(preset.model(preset.vocab_size)).parameters / 1e6 == pytest.approx(million, rel=0.015)


# -- the pages ---------------------------------------------------------------------------------------------------------


def page(document: str) -> str:
    return (PAGES / f"{PAGE.get(document, document)}.md").read_text(encoding="utf-8")


def typed(block: str) -> list[str]:
    """The commands of a shell block; one that spans lines is one command."""
    found: list[str] = []
    for line in block.splitlines():
        if found and found[-1].count('"') % 2:
            found[-1] += "\n" + line
        elif line.strip() and not line.startswith("#"):
            found.append(line.split("  #")[0])
    return found


@pytest.mark.parametrize("document", BLOCKS)
def test_the_page_names_every_command_and_setting(documents, document):
    text = page(document)
    for number, (kind, each) in enumerate(zip(BLOCKS[document], fenced(documents[document]), strict=True), 1):
        wanted = typed(each.text) if kind == COMMANDS else []
        if kind == SETTINGS:
            wanted = [f"`{key}`" for key in read_yaml(each.text)["training"]]
        for words in wanted:
            assert words in text, f"{document} {number}: {words}"


def pages() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md"))}


def test_every_family_with_a_document_has_a_page():
    assert set(pages()) == {PAGE.get(name, name) for name in BLOCKS}
    for name in recipes():
        for family in pages():
            if name.startswith(family):
                assert f"`{name}`" in pages()[family], name


@pytest.mark.parametrize("name", pages())
def test_a_page_puts_nothing_off(name):
    """What is there is named, and of what is not there it is said so."""
    assert "not yet" not in pages()[name]


@pytest.mark.parametrize("name", pages())
def test_what_a_page_says_can_be_done(name):
    import shlex

    text = pages()[name]
    lines = [line for each in test_docs.blocks(text, "sh") for line in each.splitlines()]
    lines += re.findall(r"`(homespun [^`]+)`", text)
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("homespun ")]
    assert commands
    for words in commands:
        test_docs.test_every_command_in_the_documents_exists(words)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (PAGES / target).exists(), target
    for each in test_docs.blocks(text, "python"):
        compile(each, name, "exec")


@pytest.mark.parametrize("name", pages())
def test_the_figures_of_a_page_are_those_of_the_recipes(name):
    """Rows of a page's table of sizes: recipe, parameters, active, and bytes of cache."""
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", pages()[name], re.MULTILINE)
    assert {row[0] for row in rows} == {each for each in recipes() if each.startswith(name)}
    for each, *figures in rows:
        made: Recipe = recipe(each)
        costs = cost(override(made, [f"model.vocab={made.tokenizer.size}"]).model)
        found = [costs.parameters, costs.active, costs.cache_per_token, costs.cache_state]
        assert [int(figure.replace(",", "")) for figure in figures] == found, each
