"""The Python interface: everything the command line does, it does through these names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from homespun import config
from homespun.benchmark.bench import PARTS, Bench, Part
from homespun.benchmark.bench import bench as measure
from homespun.data.corpus import Corpus
from homespun.data.tokenizer import Tokenizer
from homespun.data.vocabulary import parse_tokenizer
from homespun.errors import CheckpointError, ConfigError
from homespun.evaluate.measure import Places
from homespun.evaluate.measure import measure as measure_run
from homespun.evaluate.report import write_report
from homespun.exchange import huggingface, peft
from homespun.exchange.memory import imported
from homespun.families import RECIPES
from homespun.generate.embedder import Embedder
from homespun.generate.engine import Completion, Generator
from homespun.generate.sampling import Sampling
from homespun.generate.speculative import DraftModel, PromptLookup
from homespun.learn import tune as tuning
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.model.lora import LoRA
from homespun.model.packed import Weights
from homespun.train import parallel
from homespun.train.checkpoint import Checkpoints
from homespun.train.estimate import Plan
from homespun.train.estimate import plan as estimate
from homespun.train.folder import environment_of, note_environment, open_folder, read_settings
from homespun.train.gather import completed, gather, gather_once, listed
from homespun.train.log import Console, PlainConsole, read_metrics
from homespun.train.machine import available_memory, keep_memory
from homespun.train.memory import rows_that_fit
from homespun.train.recipe import BUDGETS, Recipe
from homespun.train.trainer import Summary, Trainer

DEFAULT_RECIPE = "house-tiny"


def recipes() -> list[str]:
    """The names of the built-in recipes."""
    return list(RECIPES)


def recipe(name: str | Path | Recipe = DEFAULT_RECIPE, *overrides: str, file: str | Path | None = None) -> Recipe:
    """A recipe by name or from a YAML file, with the settings of another `file` and `dotted.key=value` laid over it.

    A budget among the overrides replaces every budget of the recipe. Raises `ConfigError` for what is unknown.
    """
    found = name if isinstance(name, Recipe) else _named(str(name))
    if file is not None:
        found = config.merge(found, read_settings(Path(file)), str(file))
    given = {text.split("=", 1)[0].strip() for text in overrides}
    if any(f"train.{budget}" in given for budget in BUDGETS):
        cleared = [f"train.{budget}=null" for budget in BUDGETS if f"train.{budget}" not in given]
        overrides = (*cleared, *overrides)
    return config.override(found, overrides)


def prepare(
    data: str | Sequence[str], tokenizer: str = "auto", out: str | Path | None = None, console: Console | None = None
) -> Corpus:
    """Tokenises `data` (see `docs/data.md`) into `out`, or into the cache; its folder may be given to `train`."""
    chosen = recipe(DEFAULT_RECIPE).model_copy(update={"tokenizer": parse_tokenizer(tokenizer)})
    return gather(data, chosen, out, console)


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
    keep_memory()
    world = parallel.join()
    console = console or PlainConsole()
    corpus = gather_once(data, chosen, console, world)
    chosen = completed(chosen, corpus.tokenizer)
    costs = cost(chosen.model, checkpointed=chosen.train.checkpoint_activations)
    rows_that_fit(costs, chosen.model.context, 1, available_memory(world.device))  # before anything is allocated
    if world.leader:
        open_folder(folder, chosen, corpus, listed(data))
    world.wait()
    torch.manual_seed(chosen.train.seed)
    trainer = Trainer(chosen, Decoder(chosen.model), corpus, folder, world, console, _sampler(corpus.tokenizer))
    if world.leader:
        note_environment(folder, precision=trainer.updater.precision.name, processes=world.size)
    summary = trainer.fit()
    run = Run(folder, chosen, trainer.model.eval(), corpus.tokenizer, trainer.progress.step, summary)
    if world.leader:
        run.report()
    parallel.leave()
    return run


def tune(
    run: Run | str | Path,
    pairs: str | Sequence[str],
    out: str | Path,
    *settings: str,
    lora: LoRA | int | None = None,
    checkpoint: str = "last",
    console: Console | None = None,
) -> Run:
    """Teaches a run to answer, in the new folder `out`; the same call continues: see docs/tuning.md.

    `pairs`: files of prompts with answers, or conversations. `settings`: `dotted.key=value`, of training. `lora`: train
    an adapter of this rank alone.
    """
    base = run if isinstance(run, Run) else load(run, checkpoint)
    adapter = LoRA(rank=lora) if isinstance(lora, int) else lora
    chosen = recipe(tuning.tuned_recipe(base, adapter), *settings)
    summary = tuning.tune(base, chosen, listed(pairs), Path(out), console or PlainConsole())
    tuned = load(out)
    tuned.result = summary
    tuned.report()
    return tuned


def plan(recipe: Recipe | str = DEFAULT_RECIPE, measure: bool = True) -> Plan:
    """Parameters, FLOPs, memory and time of a recipe on this machine; `measure`: time three steps."""
    return estimate(globals()["recipe"](recipe), measure)


def bench(
    recipe: Recipe | str = DEFAULT_RECIPE,
    parts: Sequence[Part] = PARTS,
    seconds: float = 3.0,
    say: Callable[[str], None] | None = None,
) -> Bench:
    """What this machine can do, and how near a recipe comes to it in training and decoding: see docs/bench.md.

    `parts`: of `train`, `decode`, `ceiling`. `seconds`: about how long each measurement takes. `say` hears of each.
    """
    return measure(globals()["recipe"](recipe), parts, seconds, say)


def load(
    path: str | Path, checkpoint: str = "last", weights: Weights | None = None, draft: str | Path | None = None
) -> Run:
    """A trained run. `checkpoint`: `last` (the newest good one), `best`, or a step such as `500`.

    `weights`: how the matrices are kept for writing, `fp32`, `bf16`, `int8` or `int4`; none means as in the run.
    `draft`: what proposes tokens while it writes: the folder of a smaller run, or `lookup` for the text itself.
    """
    folder = Path(path)
    if not (folder / "recipe.yaml").is_file():
        near = sorted(str(p.parent) for p in folder.parent.glob("*/recipe.yaml")) if folder.parent.is_dir() else []
        raise CheckpointError(
            f"There is no run in {folder}", f"Runs here: {', '.join(near)}." if near else "Train one first."
        )
    chosen = config.parse(Recipe, read_settings(folder / "recipe.yaml"), str(folder / "recipe.yaml"))
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} lacks its tokenizer.json", "The command that trained the run writes it again.")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    checkpoints = Checkpoints(folder / "checkpoints")
    notes: list[str] = []
    place = checkpoints.find(checkpoint, notes.append)
    files, state = checkpoints.read(place, only=("model",))
    with torch.device("meta"):
        model = Decoder(chosen.model)
    model.load_state_dict(files["model"], assign=True)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    run = Run(folder, chosen, model, tokenizer, int(state["progress"]["step"]), notes=notes, weights=weights)
    if draft is not None:
        lookup = str(draft) == "lookup"
        run.generator.draft = PromptLookup() if lookup else DraftModel(load(draft).generator, run.generator)
    return run


def export(
    run: Run | str | Path,
    out: str | Path,
    to: str = "hf",
    *,
    checkpoint: str = "last",
    dtype: str | None = None,
    max_shard: int | str = huggingface.SHARD,
) -> str:
    """Writes a run, or the one in a folder, into the new folder `out` for other programs; returns the class it became.

    `to`: `hf`, for transformers; `peft`, the adapter of a tuned run alone. `dtype`: fp32, bf16 or fp16 (see
    docs/exchange.md). `max_shard`: bytes of one weight file, also written `5G`.
    """
    if to not in ("hf", "peft"):
        raise ConfigError(f"There is no format {to!r} to export to", "Known: hf, peft.")
    shard = config.human_number(max_shard)
    if not isinstance(shard, int) or shard < 1:
        raise ConfigError(f"max_shard = {max_shard!r} is no number of bytes", "Write it as 5G.")
    trained = run if isinstance(run, Run) else load(run, checkpoint)
    if to == "peft":
        return peft.export_adapter(trained, Path(out))
    return huggingface.export(trained, Path(out), dtype, shard).architecture


def import_model(source: str | Path, out: str | Path, *overrides: str) -> Run:
    """Makes a run in the new folder `out` of a model that transformers saved in `source`, to write with or train on.

    `overrides`: `dotted.key=value` settings of its recipe, for training on.
    """
    huggingface.import_folder(Path(source), Path(out), overrides)
    return load(out)


class Run:
    """A trained model with its tokenizer, its recipe and its story.

    `model` is a `Decoder`, `tokenizer` a `Tokenizer`; `step` says which checkpoint this is; `result` how training
    ended, if it ended in this process; `notes` what was noticed on loading (damaged checkpoints that were passed over);
    `sampling` how it writes when nobody says: `Sampling()`, or as the maker of an imported model had it; `generator`
    writes, with the matrices kept as `load` was told, while `model` stays as it was trained.
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
        weights: Weights | None = None,
    ):
        self.folder, self.recipe, self.model, self.tokenizer = folder, recipe, model, tokenizer
        self.step, self.result, self.notes = step, result, list(notes)
        memory = imported(folder)
        self.sampling = config.parse(Sampling, memory.sampling() if memory else {}, "generation_config.json")
        begin, ends = (memory.begin, memory.ends()) if memory is not None else ((), ())
        self.generator = Generator(model, tokenizer, begin, weights, ends)

    def generate(self, prompt: str | Sequence[str] = "", sampling: Sampling | None = None, **settings: Any) -> Any:
        """The continuation of `prompt`; for a list of prompts, a list.

        Settings are those of `Sampling`: max_tokens=50, temperature=0.8, seed=1...
        """
        chosen = _sampling(sampling or self.sampling, settings)
        if isinstance(prompt, str):
            return self.generator.generate(prompt, chosen)
        return self.generator.batch(list(prompt), chosen)

    def stream(self, prompt: str = "", sampling: Sampling | None = None, **settings: Any) -> Iterator[str]:
        """The continuation of `prompt` piece by piece, as it is written."""
        return self.generator.stream(prompt, _sampling(sampling or self.sampling, settings))

    def records(
        self, prompts: Sequence[str], count: int = 1, sampling: Sampling | None = None, **settings: Any
    ) -> list[Completion]:
        """`count` completions of each prompt with ids, log-probabilities and the reason of their end."""
        return self.generator.complete(list(prompts), _sampling(sampling or self.sampling, settings), count=count)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """A vector of length 1 for each text, (n, e) float32: their products say how alike texts are."""
        return Embedder(self.model, self.tokenizer).embed(texts)

    def evaluate(self, data: Places = (), *, retrieval: Places = (), similarity: Places = ()) -> dict[str, Any]:
        """Bits per byte on the text of `data`; how good vectors are on files of questions with passages, or of pairs of
        sentences, beside what words alone reach (docs/embeddings.md). By name: `text`, the files."""
        return measure_run(self.model, self.tokenizer, self.embed, data, retrieval, similarity)

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
            "environment": environment_of(self.folder),
        }


def _named(name: str) -> Recipe:
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    if path.is_file():
        data = read_settings(path)
        base = data.pop("base", None)
        start = _named(str(base)) if base is not None else Recipe()
        return config.merge(start, {"name": path.stem} | data, str(path))
    raise ConfigError(f"There is no recipe {name!r}", config.nearest(name, RECIPES))


def _sampler(tokenizer: Tokenizer) -> Any:
    def sample(model: Decoder) -> list[tuple[str, str]]:
        text = Generator(model, tokenizer).generate("", Sampling(max_tokens=60, temperature=0.8, seed=1))
        return [("", text)]

    return sample


def _sampling(base: Sampling, settings: Mapping[str, Any]) -> Sampling:
    return config.parse(Sampling, config.to_dict(base) | dict(settings), "the sampling settings") if settings else base
