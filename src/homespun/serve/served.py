"""The runs of a server: models that write, and trainings that can be watched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from homespun.config import to_dict
from homespun.errors import CheckpointError
from homespun.generate.template import template_of
from homespun.model.packed import Weights
from homespun.retrieve.prompt import Grounding
from homespun.run import Run, load
from homespun.serve.errors import Refusal
from homespun.serve.limits import Limits
from homespun.serve.scheduler import Scheduler
from homespun.train.checkpoint import Checkpoints


class Served:
    """A run under its name, with the thread that writes for everybody who asks for it.

    `run`: none while it has no checkpoint; then it can be watched only. `template`: how its conversations become
    prompts. `grounding`: looks passages up for what it is asked.
    """

    def __init__(self, name: str, folder: Path, run: Run | None, limits: Limits):
        self.name, self.folder, self.run = name, folder, run
        self._scheduler = Scheduler(run.generator, limits.rows, limits.queue) if run is not None else None
        self.template = template_of(run) if run is not None else None
        self.grounding: Grounding | None = None
        self.created = int((folder / "recipe.yaml").stat().st_mtime)

    @property
    def scheduler(self) -> Scheduler:
        """Who writes. Raises a `Refusal` where there is no model."""
        if self._scheduler is None:
            raise no_model(self.name)
        return self._scheduler

    @property
    def fingerprint(self) -> str:
        """Changes when the weights do."""
        return f"step-{self.run.step}" if self.run is not None else ""

    @cached_property
    def experts(self) -> int | None:
        """How many experts a layer of it has; none for a dense model."""
        settings = to_dict(self.run.recipe.model)["feed_forward"] if self.run is not None else {}
        return settings.get("experts")


class Runs:
    """The runs by name."""

    def __init__(self, served: Iterable[Served]):
        self.all = {each.name: each for each in served}
        self.models = {name: each for name, each in self.all.items() if each.run is not None}

    def model(self, name: str) -> Served:
        """The one that writes under this name. Raises a `Refusal`."""
        if name not in self.models:
            raise no_model(name)
        return self.models[name]

    def start(self) -> None:
        """Starts the threads that write."""
        for served in self.models.values():
            served.scheduler.start()

    def close(self) -> None:
        """Ends them; what is not finished is given up."""
        for served in self.models.values():
            served.scheduler.close(0)


def open_runs(folders: Sequence[Path], checkpoint: str, weights: Weights | None, limits: Limits) -> Runs:
    """Loads the runs, each under the name of its folder; of two with one name, the second is `name-2`.

    A run whose training has not saved anything yet can be watched. Raises `HomespunError`s.
    """
    taken: dict[str, Served] = {}
    for folder in folders:
        place = folder.resolve()
        name, number = place.name or "run", 2
        while name in taken:
            name, number = f"{place.name}-{number}", number + 1
        unsaved = (place / "recipe.yaml").is_file() and not Checkpoints(place / "checkpoints").steps()
        run = None if unsaved else load(folder, checkpoint, weights)
        taken[name] = Served(name, place, run, limits)
    if not taken:
        raise CheckpointError("No run was named", "Give the folder of a run.")
    return Runs(taken.values())


def no_model(name: str) -> Refusal:
    """What is said of a name that no model has."""
    return Refusal(404, f"There is no model {name!r:.200}", "model_not_found", "model")
