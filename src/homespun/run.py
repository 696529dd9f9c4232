"""The Python interface: everything the command line does, it does through these names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from homespun import config
from homespun.data.corpus import Corpus
from homespun.data.corpus import prepare as prepare_corpus
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import parse_tokenizer
from homespun.errors import CheckpointError, ConfigError
from homespun.evaluate.report import write_report
from homespun.families import RECIPES
from homespun.generate.engine import Completion, Generator
from homespun.generate.sampling import Sampling
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.train import parallel
from homespun.train.checkpoint import Checkpoints
from homespun.train.estimate import Plan
from homespun.train.estimate import plan as estimate
from homespun.train.log import Console, PlainConsole, read_metrics
from homespun.train.machine import environment
from homespun.train.recipe import BUDGETS, Recipe
from homespun.train.trainer import Summary, Trainer

DEFAULT_RECIPE = "house-small"
CHANGEABLE = frozenset({*BUDGETS, "evaluate_every", "evaluate_tokens", "save_every", "keep", "sample_every", "compile",
                        "patience", "max_bad_steps", "micro_batch", "checkpoint_activations", "precision"})  # fmt: skip
"""Training settings that may differ when a run goes on."""


def recipes() -> list[str]:
    """The names of the built-in recipes."""
    return list(RECIPES)


def recipe(name: str | Path | Recipe = DEFAULT_RECIPE, *overrides: str, file: str | Path | None = None) -> Recipe:
    """A recipe by name or from a YAML file, with the settings of another `file` and `dotted.key=value` laid over it.

    A budget among the overrides replaces every budget of the recipe. Raises `ConfigError` for what is unknown.
    """
    found = name if isinstance(name, Recipe) else _named(str(name))
    if file is not None:
        found = config.merge(found, _read_settings(Path(file)), str(file))
    given = {text.split("=", 1)[0].strip() for text in overrides}
    if any(f"train.{budget}" in given for budget in BUDGETS):
        cleared = [f"train.{budget}=null" for budget in BUDGETS if f"train.{budget}" not in given]
        overrides = (*cleared, *overrides)
    return config.override(found, overrides)


def prepare(
    data: str | Sequence[str], tokenizer: str = "auto", out: str | Path | None = None, console: Console | None = None
) -> Corpus:
    """Tokenises `data` (see `docs/data.md`) into `out`, or into the cache; its folder may be given to `train`."""
    return _prepare(
        data, recipe(DEFAULT_RECIPE).model_copy(update={"tokenizer": parse_tokenizer(tokenizer)}), out, console
    )


def train(
    data: str | Sequence[str],
    recipe: Recipe | str = DEFAULT_RECIPE,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> Run:
    """Trains on `data` as `recipe` says, in the folder `out` (default `runs/RECIPE`); the same call continues a run.

    `resume`: insist that there is a run to continue. Raises `HomespunError`s for what a user can mend.
    """
    chosen = globals()["recipe"](recipe)
    folder = Path(out) if out is not None else Path("runs") / chosen.name
    if resume and not (folder / "recipe.yaml").is_file():
        raise CheckpointError(
            f"There is no run in {folder} to resume", "Leave out --resume, or name its folder with --out."
        )
    world = parallel.join()
    console = console or PlainConsole()
    corpus = _prepare_once(data, chosen, console, world)
    chosen = _with_vocabulary(chosen, corpus.tokenizer)
    if world.leader:
        _open_folder(folder, chosen, corpus, data)
    world.wait()
    torch.manual_seed(chosen.train.seed)
    trainer = Trainer(chosen, Decoder(chosen.model), corpus, folder, world, console, _sampler(corpus.tokenizer))
    summary = trainer.fit()
    run = Run(folder, chosen, trainer.model.eval(), corpus.tokenizer, trainer.progress.step, summary)
    if world.leader:
        run.report()
    return run


def plan(recipe: Recipe | str = DEFAULT_RECIPE, measure: bool = True) -> Plan:
    """Parameters, FLOPs, memory and time of a recipe on this machine; `measure`: time three steps."""
    return estimate(globals()["recipe"](recipe), measure)


def load(path: str | Path, checkpoint: str = "last") -> Run:
    """A trained run. `checkpoint`: `last` (the newest good one), `best`, or a step such as `500`."""
    folder = Path(path)
    if not (folder / "recipe.yaml").is_file():
        near = sorted(str(p.parent) for p in folder.parent.glob("*/recipe.yaml")) if folder.parent.is_dir() else []
        raise CheckpointError(
            f"There is no run in {folder}", f"Runs here: {', '.join(near)}." if near else "Train one first."
        )
    chosen = config.parse(Recipe, _read_settings(folder / "recipe.yaml"), str(folder / "recipe.yaml"))
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    checkpoints = Checkpoints(folder / "checkpoints")
    notes: list[str] = []
    place = checkpoints.find(checkpoint, notes.append)
    files, state = checkpoints.read(place, only=("model",))
    with torch.device("meta"):
        model = Decoder(chosen.model)
    model.load_state_dict(files["model"], assign=True)
    return Run(folder, chosen, model.eval(), tokenizer, int(state["progress"]["step"]), notes=notes)


class Run:
    """A trained model with its tokenizer, its recipe and its story.

    `model` is a `Decoder`, `tokenizer` a `Tokenizer`; `step` says which checkpoint this is; `result` how training
    ended, if it ended in this process; `notes` what was noticed on loading (damaged checkpoints that were passed over).
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        model: Decoder,
        tokenizer: Tokenizer,
        step: int,
        result: Summary | None = None,
        notes: Sequence[str] = (),
    ):
        self.folder, self.recipe, self.model, self.tokenizer = folder, recipe, model, tokenizer
        self.step, self.result, self.notes = step, result, list(notes)
        self.generator = Generator(model, tokenizer)

    def generate(self, prompt: str | Sequence[str] = "", sampling: Sampling | None = None, **settings: Any) -> Any:
        """The continuation of `prompt`; for a list of prompts, a list.

        Settings are those of `Sampling`: max_tokens=50, temperature=0.8, seed=1...
        """
        chosen = _sampling(sampling, settings)
        if isinstance(prompt, str):
            return self.generator.generate(prompt, chosen)
        return self.generator.batch(list(prompt), chosen)

    def stream(self, prompt: str = "", sampling: Sampling | None = None, **settings: Any) -> Iterator[str]:
        """The continuation of `prompt` piece by piece, as it is written."""
        return self.generator.stream(prompt, _sampling(sampling, settings))

    def records(
        self, prompts: Sequence[str], count: int = 1, sampling: Sampling | None = None, **settings: Any
    ) -> list[Completion]:
        """`count` completions of each prompt with ids, log-probabilities and the reason of their end."""
        return self.generator.complete(list(prompts), _sampling(sampling, settings), count=count)

    def report(self) -> Path:
        """Writes `report.html` into the run's folder and returns its path."""
        return write_report([self.folder], self.folder / "report.html")

    def summary(self) -> dict[str, Any]:
        """The run in a few figures: recipe, sizes, last metrics, environment."""
        rows = read_metrics(self.folder / "metrics.jsonl")
        measured = [row for row in rows if row.get("validation_loss") is not None]
        trained = [row for row in rows if row.get("loss") is not None]
        best = min(measured, key=lambda row: row["validation_loss"], default=None)
        return {
            "folder": str(self.folder),
            "recipe": self.recipe.name,
            "step": self.step,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "vocabulary": self.tokenizer.vocab_size,
            "last": trained[-1] if trained else None,
            "validation": measured[-1] if measured else None,
            "best": best,
            "advice": [row["advice"] for row in rows if "advice" in row],
            "environment": json.loads((self.folder / "environment.json").read_text(encoding="utf-8")),
        }


def _named(name: str) -> Recipe:
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    if path.is_file():
        data = _read_settings(path)
        base = data.pop("base", None)
        start = _named(str(base)) if base is not None else Recipe()
        return config.merge(start, {"name": path.stem} | data, str(path))
    raise ConfigError(f"There is no recipe {name!r}", config.nearest(name, RECIPES))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return config.read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "Name a YAML file of settings.") from None


def _prepare(data: str | Sequence[str], chosen: Recipe, out: str | Path | None, console: Console | None) -> Corpus:
    sources = [data] if isinstance(data, (str, Path)) else list(data)
    shown = console or PlainConsole()
    return prepare_corpus(
        [str(source) for source in sources], chosen.tokenizer, chosen.data, Path(out) if out else None,
        progress=shown.preparing, say=shown.note,
    )  # fmt: skip


def _prepare_once(data: str | Sequence[str], chosen: Recipe, console: Console, world: parallel.World) -> Corpus:
    """The leader prepares, the others then find it in the cache."""
    if not world.leader:
        world.wait()
    corpus = _prepare(data, chosen, None, console if world.leader else PlainConsole(quiet=True))
    if world.leader:
        world.wait()
    return corpus


def _with_vocabulary(chosen: Recipe, tokenizer: Tokenizer) -> Recipe:
    """The recipe with `model.vocab` filled in; a vocabulary set by hand must hold every token."""
    asked = chosen.model.vocab
    if asked is not None and asked < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab = {asked} is smaller than the tokenizer's {tokenizer.vocab_size} tokens",
            "Leave model.vocab out, or choose a smaller tokenizer.",
        )
    return config.override(chosen, [f"model.vocab={asked or tokenizer.vocab_size}"])


def _open_folder(folder: Path, chosen: Recipe, corpus: Corpus, data: str | Sequence[str]) -> None:
    """Makes the run's folder, or checks that the run in it is this one."""
    settings = folder / "recipe.yaml"
    if settings.is_file():
        _check_same(folder, config.parse(Recipe, _read_settings(settings), str(settings)), chosen, corpus)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and holds no run", "Choose another folder with --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        about = environment() | {
            "parameters": cost(chosen.model).parameters,
            "corpus": corpus.manifest["key"],
            "data": [data] if isinstance(data, str) else [str(source) for source in data],
        }
        _write(folder / "tokenizer.json", None, corpus.tokenizer)
        _write(folder / "environment.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        _write(settings, config.to_yaml(chosen))  # last: a folder with a recipe is a run
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}", "Choose another folder with --out.") from None


def _write(path: Path, text: str | None, tokenizer: Tokenizer | None = None) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    if tokenizer is not None:
        tokenizer.save(temporary)
    else:
        temporary.write_text(text or "", encoding="utf-8")
    os.replace(temporary, path)


def _check_same(folder: Path, old: Recipe, new: Recipe, corpus: Corpus) -> None:
    """Raises `CheckpointError` unless the run in `folder` was trained with the same settings on the same text."""
    before, after = _flat(config.to_dict(old)), _flat(config.to_dict(new))
    free = {"name", *(f"train.{key}" for key in CHANGEABLE)}
    if changed := sorted(
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key) and key not in free
    ):
        key = changed[0]
        raise CheckpointError(
            f"The run in {folder} has {key} = {before.get(key)}, not {after.get(key)}",
            "Use the same settings to continue it, or choose another folder with --out.",
        )
    about = folder / "environment.json"
    if about.is_file() and json.loads(about.read_text(encoding="utf-8")).get("corpus") != corpus.manifest["key"]:
        raise CheckpointError(f"The run in {folder} was trained on other text", "Choose another folder with --out.")


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _sampler(tokenizer: Tokenizer) -> Any:
    def sample(model: Decoder) -> list[tuple[str, str]]:
        text = Generator(model, tokenizer).generate("", Sampling(max_tokens=60, temperature=0.8, seed=1))
        return [("", text)]

    return sample


def _sampling(sampling: Sampling | None, settings: Mapping[str, Any]) -> Sampling:
    base = sampling or Sampling()
    return config.parse(Sampling, config.to_dict(base) | dict(settings), "the sampling settings") if settings else base
