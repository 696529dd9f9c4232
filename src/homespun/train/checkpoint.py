"""Checkpoints that survive a kill at any moment, a full disk and a flipped bit.

    checkpoints/step-00000500/{model.safetensors, optimizer.safetensors, state.json, manifest.json}
    checkpoints/{last, best}      one line each: the name of a step's folder

A step is written into a temporary folder, flushed, listed in its manifest (size and sha256 of each file), flushed again
and renamed: a folder with a step's name is whole. A step that is saved again first moves its former self aside, to
`step-00000500.old`, until the new one stands. At every moment there is a good one under a name that is looked at.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from homespun.errors import CheckpointError
from homespun.train.disk import TEMPORARY, claim, digest, discard, flush, replace, temporary, write
from homespun.train.manifest import (
    FORMAT,
    MANIFEST,
    PLAIN,
    STATE,
    STEP,
    from_json,
    read_manifest,
    to_json,
    traces,
    verify,
)

LESSONS = "lessons"
"""Where the state holds what was taught by hand, which goes with the run: later lessons are learnt beside it."""

Files = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by the name of their file without `.safetensors`."""


class Checkpoints:
    """The checkpoints of one run, in `folder`. Reading changes nothing there; only training writes."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._good: dict[Path, tuple[Any, ...]] = {}  # folders found whole, with what would betray a later change

    # -- writing ------------------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Takes the folder for this process, and tidies up after a killed one. Called once, before training.

        Raises `CheckpointError` when another process trains here.
        """
        if not self.folder.is_dir():
            return
        claim(self.folder)
        for left in self.folder.glob(f"{TEMPORARY}*"):
            discard(left)
        for aside in self.folder.glob("step-*.old"):
            self._settle(aside.with_suffix(""))

    def save(self, step: int, files: Files, state: Mapping[str, Any]) -> Path:
        """Saves a step under its name and makes it `last`; returns its folder.

        files: tensors by name for each file, which gets `.safetensors` behind its name; tensors on any device. state:
        what JSON can hold. Raises `CheckpointError`, with everything as it was before, when a number is not finite, the
        disk is full or cannot be written.
        """
        _refuse_not_finite(files)
        text = to_json(state)
        target = self.folder / f"step-{step:08d}"
        unfinished = temporary(target)
        try:
            self._make_folder()
            try:
                unfinished.mkdir()
                _fill(unfinished, step, files, text)
                self._put(unfinished, target)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            self._good[target] = traces(target)
            replace(self.folder / "last", f"{target.name}\n".encode())
        except (OSError, SafetensorError) as error:
            raise self._unwritable(step, error) from error
        return target

    def mark_best(self, step: int) -> None:
        """Makes a saved step the `best` one, which `prune` never removes."""
        if not (self.folder / f"step-{step:08d}").is_dir():
            raise CheckpointError(f"Step {step} cannot be the best checkpoint: it was not saved", "Save it first.")
        try:
            replace(self.folder / "best", f"step-{step:08d}\n".encode())
        except OSError as error:
            raise self._unwritable(step, error) from error

    def prune(self, keep: int, protect: Collection[int] = ()) -> None:
        """Removes what is older than the `keep` newest good checkpoints, except the best and the steps in `protect`.

        Damaged ones do not count, so the last good one always stays.
        """
        best = self.pointed("best")
        spared = {self.folder / f"step-{step:08d}" for step in protect} | {best}
        good = 0
        for place in self._newest_first():
            if good >= max(1, keep):
                if place not in spared:
                    discard(place)
            elif place.suffix != ".old" and not self.problems(place):
                good += 1

    # -- reading ------------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps that are there, ascending, good or not."""
        return sorted({_step_of(place) for place in self._newest_first()})

    def pointed(self, name: str) -> Path | None:
        """The folder that the pointer `last` or `best` names; none where it names nothing that is there."""
        try:
            word = (self.folder / name).read_bytes()[:100].decode("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        place = self.folder / word
        return place if STEP.fullmatch(word) and place.is_dir() else None

    def newest_good(self, report: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that is whole; none when there is none at all. Damaged ones are named to `report`.

        Raises `CheckpointError` when there are checkpoints and all are damaged.
        """
        places = self._newest_first()
        for place in places:
            if not (problems := self.problems(place)):
                return place
            report(f"checkpoint {place.name} is damaged and was passed over: {'; '.join(problems)}")
        if places:
            raise CheckpointError(
                f"All checkpoints in {self.folder} are damaged", "Restore one from a copy, or start anew with --out."
            )
        return None

    def find(self, which: str, report: Callable[[str], None]) -> Path:
        """The checkpoint `last` (the newest good one), `best`, or of a step (`"500"`).

        A damaged best one is named to `report` and the newest good one taken. Raises `CheckpointError` for what is not
        there, and for a damaged step that was asked for by its number.
        """
        if which == "best":
            place = self.pointed("best")
            if place is None:
                raise CheckpointError(f"{self.folder} has no best checkpoint yet", "Use the checkpoint `last`.")
            if not (problems := self.problems(place)):
                return place
            report(
                f"the best checkpoint {place.name} is damaged, so the newest good one is used: {'; '.join(problems)}"
            )
        elif which != "last":
            return self._of_step(which)
        newest = self.newest_good(report)
        if newest is None:
            raise CheckpointError(f"{self.folder} holds no checkpoint yet", "Train the run for at least one step.")
        return newest

    def problems(self, place: Path) -> list[str]:
        """What `verify` finds. What was whole and was not touched since is not hashed again."""
        if place in self._good and self._good[place] == traces(place):
            return []
        problems = verify(place)
        if not problems:
            self._good[place] = traces(place)
        return problems

    def read(
        self, place: Path, only: Collection[str] | None = None
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """The tensors by file and name, on the CPU, and the state. `only`: the files that are wanted.

        Raises `CheckpointError` when anything about the checkpoint is not as its manifest says.
        """
        if problems := self.problems(place):
            raise CheckpointError(f"Checkpoint {place} is damaged: {'; '.join(problems)}", "Use another checkpoint.")
        _, listed = read_manifest(place)
        names = [name.removesuffix(".safetensors") for name in listed if name.endswith(".safetensors")]
        if missing := sorted(set(only or ()) - set(names)):
            raise CheckpointError(f"Checkpoint {place} has no {missing[0]}.safetensors", "Use another checkpoint.")
        try:
            files = {name: _load(place / f"{name}.safetensors") for name in names if only is None or name in only}
            state = from_json((place / STATE).read_bytes())
        except (SafetensorError, ValueError, RecursionError) as error:
            raise CheckpointError(f"Checkpoint {place} cannot be read: {error}", "Use another checkpoint.") from None
        return files, state

    # -- the order of things ------------------------------------------------------------------------------------------

    def _newest_first(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        places = [place for place in self.folder.iterdir() if STEP.fullmatch(place.name)]
        return sorted(places, key=lambda place: (_step_of(place), place.suffix != ".old"), reverse=True)

    def _of_step(self, which: str) -> Path:
        place = self.folder / f"step-{int(which):08d}" if re.fullmatch(r"\d{1,18}", which) else None
        if place is None or not place.is_dir():
            known = ", ".join(["last", "best", *map(str, self.steps())])
            raise CheckpointError(f"There is no checkpoint {which!r} in {self.folder}", f"Choose one of: {known}.")
        if problems := self.problems(place):
            raise CheckpointError(f"Checkpoint {place} is damaged: {'; '.join(problems)}", "Use the checkpoint `last`.")
        return place

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            flush(self.folder.parent)
        claim(self.folder)

    def _put(self, unfinished: Path, target: Path) -> None:
        """Gives a finished folder its name. Killed at any line: `target` or `target.old` is there, and whole."""
        self._settle(target)
        aside = target.with_name(f"{target.name}.old")
        if os.path.lexists(target):
            target.rename(aside)
        unfinished.rename(target)
        flush(self.folder)
        if os.path.lexists(aside):
            discard(aside)

    def _settle(self, target: Path) -> None:
        """Ends what a kill in `_put` left: of `target` and `target.old`, one good one stays, as `target`."""
        aside = target.with_name(f"{target.name}.old")
        if not os.path.lexists(aside):
            return
        if os.path.lexists(target):
            if not self.problems(target):
                return discard(aside)
            discard(target)
        aside.rename(target)
        flush(self.folder)

    def _unwritable(self, step: int, error: Exception) -> CheckpointError:
        found = re.search(r"os error (\d+)", str(error))  # how safetensors tells the system's error number
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        reason = os.strerror(number) if number is not None else str(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            reason += f" ({shutil.disk_usage(self.folder).free / 1e6:,.0f} MB are free)"
        return CheckpointError(
            f"The checkpoint of step {step} could not be saved in {self.folder}: {reason}",
            "The checkpoints before it are intact. Make room, or lower train.keep, and give the same command to go on.",
        )


def _fill(folder: Path, step: int, files: Files, state: bytes) -> None:
    """Writes all files of a checkpoint; the manifest last, when all it lists is on the disk."""
    write(folder / STATE, state)
    for name, tensors in files.items():
        path = folder / f"{name}.safetensors"
        assert PLAIN.fullmatch(path.name), f"{path.name!r} is no plain file name"
        save_file(_storable(tensors), path, metadata={"format": "pt"})
        shutil.copymode(folder / STATE, path)  # safetensors gives its files to the owner alone
        flush(path)
    found = {path.name: digest(path) for path in sorted(folder.iterdir())}
    listed = {name: {"size": size, "sha256": sha} for name, (size, sha) in found.items()}
    flush(folder)
    write(folder / MANIFEST, to_json({"format": FORMAT, "step": step, "files": listed}))
    flush(folder)


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with a storage of its own: copied only where that is not so already."""
    stored, seen = {}, set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.nbytes() != plain.nbytes or storage.data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        stored[name] = plain
    return stored


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in memory of their own: a mapped file that is cut short would kill the process."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _refuse_not_finite(files: Files) -> None:
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.numel() and not _all_finite(tensor):
                raise CheckpointError(
                    f"{name} of {file}.safetensors is not finite, so nothing was saved",
                    "The checkpoints before it are intact. Lower optimizer.learning_rate.",
                )


def _all_finite(tensor: Tensor) -> bool:
    """Without a copy of the tensor: NaN is the smallest and the largest of numbers, wherever it stands."""
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _step_of(place: Path) -> int:
    match = STEP.fullmatch(place.name)
    assert match is not None
    return int(match[1])
