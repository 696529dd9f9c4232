"""What was taught, kept: as the next checkpoint of a run, or as a run of its own; and undone.

A taught checkpoint holds the lessons in its state, so that the next ones are learnt beside them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from homespun import config
from homespun.data.material import Material
from homespun.errors import CheckpointError, ConfigError
from homespun.learn.lessons import Lesson, has_answers, own_material
from homespun.learn.lessons import material_of as read_material
from homespun.learn.teach import Taught, Teacher, Teaching
from homespun.train.checkpoint import LESSONS, Checkpoints
from homespun.train.disk import discard, flush, release, replace, temporary
from homespun.train.folder import note_environment
from homespun.train.log import Console, PlainConsole
from homespun.train.saved import Trained


@dataclass(frozen=True)
class Saved:
    """Where a taught model lies, and what its lessons changed."""

    folder: Path
    step: int
    taught: Taught


def teach(
    run: Trained,
    lessons: Sequence[Lesson],
    out: str | Path | None = None,
    *,
    replay: Sequence[str] | None = None,
    settings: Teaching | None = None,
    console: Console | None = None,
) -> Saved:
    """Teaches a run, and saves it as its next checkpoint, or as a new run in the folder `out`.

    `lessons`: rows of data, `{"prompt": ..., "completion": ...}` or `{"text": ...}`. `replay`: text to hold on to,
    where it is not what the run was trained on. Raises `HomespunError`s for what a user can mend; then nothing on the
    disk is changed.
    """
    console = console or PlainConsole(quiet=True)
    if out is None and run.recipe.tuned is not None and run.recipe.tuned.adapter is not None:
        raise ConfigError(
            f"{run.folder} holds an adapter, which lessons would leave behind", "Name a new run with --out."
        )
    checkpoints = Checkpoints(run.folder / "checkpoints")
    if out is None:
        checkpoints.clean()  # nobody else may write from here on
        if checkpoints.steps()[-1:] != [run.step]:
            raise CheckpointError(f"{run.folder} has newer checkpoints than {run.step}", "Name a new run with --out.")
    place, state = _checkpoint(run)
    material = _material(run, replay, console)
    if material is None:
        console.note("the run names no text of its own: nothing of it is repeated beside the lesson, or measured")
    teacher = Teacher(run.model, run.tokenizer, material, settings, state.get(LESSONS, ()), say=_progress(console))
    console.start(None, f"{run.recipe.name} by hand")
    try:
        taught = teacher.teach(lessons)
    finally:
        console.close()
    step = run.step + taught.steps
    files = {"model": run.model.state_dict()}
    progress = state["progress"] | {"step": step, "saved": step}  # whoever trains on need not save it again
    now = state | {LESSONS: [*map(dict, teacher.lessons)], "progress": progress}
    now["taught"] = {"from": run.step if out is None else None, "step": step, **asdict(taught)}
    if out is None:
        others = checkpoints.read(place)[0]
        checkpoints.save(step, others | files, now)
        checkpoints.prune(max(2, run.recipe.train.keep), (run.step,))
        note_environment(run.folder, taught=has_answers(teacher.lessons))
        return Saved(run.folder, step, taught)
    _new_run(run, Path(out), step, files | _optimizer(place), now)
    return Saved(Path(out), step, taught)


def undo(folder: str | Path) -> tuple[int, int]:
    """Takes the newest checkpoint of a run away, if it was taught by hand; the step it was, and the one before it.

    Raises `CheckpointError` where the newest checkpoint was not taught, or there is none before it.
    """
    checkpoints = Checkpoints(Path(folder) / "checkpoints")
    checkpoints.clean()
    newest = checkpoints.newest_good(lambda note: None)
    state = checkpoints.read(newest, only=())[1] if newest is not None else {}
    taught = state.get("taught", {})
    if newest is None or taught.get("step") != state["progress"]["step"]:  # what came later may have kept the note
        raise CheckpointError(f"The newest checkpoint in {folder} was not taught by hand", "There is nothing to undo.")
    before = taught["from"]
    if before is None:
        raise CheckpointError(
            f"{folder} was made by this lesson, from another run, which is as it was", "Delete the folder."
        )
    if before not in checkpoints.steps():
        raise CheckpointError(
            f"Step {before} of {folder}, which the lesson began with, is gone", "Raise train.keep to keep more of them."
        )
    former = checkpoints.find(str(before), lambda note: None)
    replace(checkpoints.folder / "last", f"{former.name}\n".encode())
    discard(newest)
    left = checkpoints.read(former, only=())[1].get(LESSONS, ())
    note_environment(Path(folder), taught=has_answers(left))
    return state["progress"]["step"], before


def _progress(console: Console) -> Callable[[int, int, float], None]:
    begin = time.monotonic()

    def say(total: int, update: int, loss: float) -> None:
        left = (total - update) * (time.monotonic() - begin) / update
        console.update(update, {"total": total, "loss": loss, "seconds_left": left})

    return say


def teacher_of(
    run: Trained,
    *,
    replay: Sequence[str] | None = None,
    settings: Teaching | None = None,
    console: Console | None = None,
) -> Teacher:
    """A teacher of a run in memory: it saves nothing."""
    material = _material(run, replay, console or PlainConsole(quiet=True))
    return Teacher(run.model, run.tokenizer, material, settings, _checkpoint(run)[1].get(LESSONS, ()))


def _material(run: Trained, replay: Sequence[str] | None, console: Console) -> Material | None:
    if replay:
        plain = run.recipe.model_copy(update={"tuned": None, "data": type(run.recipe.data)()})
        file = config.override(plain, ["tokenizer.kind=file", f"tokenizer.file={run.folder / 'tokenizer.json'}"])
        return read_material(list(replay), file, run.tokenizer, console)
    return own_material(run.folder, run.recipe, run.tokenizer, console)


def _checkpoint(run: Trained) -> tuple[Path, dict[str, Any]]:
    checkpoints = Checkpoints(run.folder / "checkpoints")
    place = checkpoints.find(str(run.step), lambda note: None)
    return place, checkpoints.read(place, only=())[1]


def _optimizer(place: Path) -> dict[str, Any]:
    return Checkpoints(place.parent).read(place, only=("optimizer",))[0]


def _new_run(run: Trained, out: Path, step: int, files: dict[str, Any], state: dict[str, Any]) -> None:
    """All of it in a folder of another name, which is renamed when it is whole."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already", "Nothing is written over: name a new folder.")
    unfinished = temporary(out.absolute())
    tuned = run.recipe.tuned and run.recipe.tuned.model_copy(update={"adapter": None})
    recipe = run.recipe.model_copy(update={"name": f"{run.recipe.name}-taught", "tuned": tuned})
    try:
        unfinished.mkdir(parents=True)
        for name in ("tokenizer.json", "environment.json", "imported.json", "metrics.jsonl"):
            if (run.folder / name).is_file():
                shutil.copyfile(run.folder / name, unfinished / name)
        note_environment(unfinished, taught=has_answers(state[LESSONS]))
        checkpoints = Checkpoints(unfinished / "checkpoints")
        checkpoints.save(step, files, state)
        release(checkpoints.folder)
        replace(unfinished / "recipe.yaml", config.to_yaml(recipe).encode())
        if out.is_dir():
            out.rmdir()
        unfinished.rename(out)
        flush(unfinished.parent)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}", "Make room, or name another folder.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
