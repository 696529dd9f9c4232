"""Checkpoints: what is saved comes back to the bit; kills, full disks, damage and forgeries do no harm."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from homespun.errors import CheckpointError
from homespun.train.checkpoint import Checkpoints
from homespun.train.disk import digest
from homespun.train.manifest import verify
from tests.train.forks import ended, fork, killed_at, needs_fork


def files(value: float, size: int = 64) -> dict[str, dict[str, torch.Tensor]]:
    """A small model and optimizer in which every number is `value`."""
    numbers = torch.full((size,), float(value))
    return {"model": {"w": numbers}, "optimizer": {"m": numbers.clone(), "t": torch.ones(())}}


def silent(sentence: str) -> None:
    raise AssertionError(f"nothing was expected to be reported: {sentence}")


def value_of(checkpoints: Checkpoints, place: Path | None) -> float:
    """Reads a checkpoint and asserts that it is of one piece."""
    assert place is not None
    found, state = checkpoints.read(place)
    values = {*found["model"]["w"].tolist(), *found["optimizer"]["m"].tolist(), state["value"]}
    assert len(values) == 1
    return values.pop()


def save(folder: Path, step: int, value: float | None = None) -> Path:
    value = step if value is None else value
    return Checkpoints(folder).save(step, files(value), {"value": value})


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".tmp-") or name.endswith(".old")]


def sign(place: Path) -> None:
    """A manifest that agrees with whatever lies in the folder: what a forger would write."""
    manifest = json.loads((place / "manifest.json").read_bytes())
    names = sorted(path.name for path in place.iterdir() if path.name != "manifest.json" and path.is_file())
    pairs = {name: digest(place / name) for name in names}
    manifest["files"] = {name: {"size": size, "sha256": sha} for name, (size, sha) in pairs.items()}
    (place / "manifest.json").write_text(json.dumps(manifest))


# -- what is saved comes back ------------------------------------------------------------------------------------------


def test_every_tensor_and_the_state_come_back_to_the_bit(tmp_path: Path) -> None:
    wide = torch.randn(4, 6)
    tensors = {
        "bf16": torch.randn(3, 5).bfloat16(),
        "fp16": torch.randn(3).half(),
        "double": torch.randn(3, dtype=torch.float64),
        "counts": torch.tensor([2**60, -1]),
        "flags": torch.tensor([True, False]),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "number": torch.tensor(7.0),
        "empty": torch.empty(0, 3),
        "turned": wide.T,
        "part": wide[1:3],
        "same": wide,
        "again": wide,
        "learnt": torch.nn.Parameter(torch.randn(2)),
    }
    state = {"step": 5, "losses": [0.1, None, 1e-300], "name": "żółw 🐢", "deep": {"big": 2**70}}
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    place = checkpoints.save(5, {"model": tensors, "nothing": {}}, state)
    found, told = Checkpoints(tmp_path / "run" / "checkpoints").read(place)
    assert told == state and found.keys() == {"model", "nothing"} and found["nothing"] == {}
    assert found["model"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found["model"][name].dtype == tensor.dtype and torch.equal(found["model"][name], tensor), name
    assert verify(place) == []
    assert sorted(path.name for path in place.iterdir()) == [
        "manifest.json", "model.safetensors", "nothing.safetensors", "state.json",
    ]  # fmt: skip


def test_files_can_be_read_by_whoever_may_read_the_folder(tmp_path: Path) -> None:
    place = save(tmp_path, 1)
    assert len({path.stat().st_mode for path in place.iterdir()}) == 1


def test_only_the_files_asked_for_are_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    place = checkpoints.save(1, files(1.0), {})
    assert checkpoints.read(place, only=("model",))[0].keys() == {"model"}
    with pytest.raises(CheckpointError, match="no adapter.safetensors"):
        checkpoints.read(place, only=("adapter",))


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path: Path) -> None:
    place = save(tmp_path, 1)
    found, _ = Checkpoints(tmp_path).read(place)
    os.truncate(place / "model.safetensors", 0)
    assert found["model"]["w"].sum() == 64


def test_last_and_best_point_at_what_was_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest_good(silent) is None and checkpoints.pointed("last") is None
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.find("last", silent)
    for step in (1, 2, 3):
        checkpoints.save(step, files(step), {"value": step})
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        checkpoints.find("best", silent)
    checkpoints.mark_best(2)
    assert (tmp_path / "last").read_text() == "step-00000003\n" and (tmp_path / "best").read_text() == "step-00000002\n"
    found = {which: value_of(checkpoints, checkpoints.find(which, silent)) for which in ("last", "best", "1")}
    assert found == {"last": 3, "best": 2, "1": 1}
    assert checkpoints.steps() == [1, 2, 3]
    with pytest.raises(CheckpointError, match="last, best, 1, 2, 3"):
        checkpoints.find("4", silent)
    with pytest.raises(CheckpointError, match="not saved"):
        checkpoints.mark_best(9)


def test_a_step_saved_again_replaces_the_former(tmp_path: Path) -> None:
    save(tmp_path, 7, 1.0)
    place = save(tmp_path, 7, 2.0)
    assert value_of(Checkpoints(tmp_path), place) == 2.0 and leftovers(tmp_path) == []


# -- kills -------------------------------------------------------------------------------------------------------------


@needs_fork
def test_a_save_loop_killed_twelve_times_always_resumes_from_a_good_checkpoint(tmp_path: Path) -> None:
    chance = random.Random(1)
    begun, written = os.pipe()

    def work() -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.clean()
        place = checkpoints.newest_good(silent)
        step = int(value_of(checkpoints, place)) if place else 0
        while True:
            step += 1
            for _ in range(1 + step % 2):  # every second step is saved twice
                checkpoints.save(step, files(step), {"value": step})
            if step % 3 == 0:
                checkpoints.mark_best(step)
            checkpoints.prune(keep=2)
            os.write(written, b".")

    reached = 0
    for _ in range(12):
        child = fork(work)
        assert os.read(begun, 1000)  # it saved at least once
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        checkpoints = Checkpoints(tmp_path)
        step = int(value_of(checkpoints, checkpoints.newest_good(silent)))
        assert step >= max(1, reached), "a checkpoint that was there is gone"
        best = checkpoints.pointed("best")
        assert best is None or verify(best) == []
        reached = step
    assert reached >= 12


def every_moment(template: Path, work: Callable[[Path], object], check: Callable[[Path], object]) -> int:
    """Kills `work` before each of its changes to the disk in turn, each time in a fresh copy; returns how many."""
    moment = 0
    while True:
        folder = template.with_name(f"{template.name}-{moment}")
        shutil.copytree(template, folder)
        if not killed_at(moment, lambda: work(folder)):  # noqa: B023
            return moment
        check(folder)
        moment += 1


@needs_fork
@pytest.mark.parametrize("former", [False, True], ids=["first save", "the same step again"])
def test_a_kill_at_any_moment_of_a_save_costs_nothing(tmp_path: Path, former: bool) -> None:
    save(tmp_path / "run", 4)
    if former:
        save(tmp_path / "run", 5)

    def check(folder: Path) -> None:
        checkpoints = Checkpoints(folder)
        value = value_of(checkpoints, checkpoints.newest_good(silent))
        assert value in ((5.0, 55.0) if former else (4.0, 55.0))
        assert checkpoints.pointed("last") is not None or former  # without `former`, at worst the one before
        killed_at(2, lambda: Checkpoints(folder).clean())  # tidying up may be killed as well
        Checkpoints(folder).clean()
        assert leftovers(folder) == []
        newest = Checkpoints(folder).newest_good(silent)
        assert value_of(Checkpoints(folder), newest) == value
        assert newest.name == ("step-00000005" if former or value == 55.0 else "step-00000004")

    assert every_moment(tmp_path / "run", lambda folder: save(folder, 5, 55.0), check) > 20


@needs_fork
def test_a_save_over_what_a_kill_left_is_as_safe_as_any(tmp_path: Path) -> None:
    place = save(tmp_path / "run", 5)
    shutil.copytree(place, place.with_name("step-00000005.old"))
    os.truncate(place / "model.safetensors", 3)

    def check(folder: Path) -> None:
        checkpoints = Checkpoints(folder)
        assert value_of(checkpoints, checkpoints.newest_good(lambda sentence: None)) in (5.0, 55.0)

    assert every_moment(tmp_path / "run", lambda folder: save(folder, 5, 55.0), check) > 20
    assert value_of(Checkpoints(tmp_path / "run"), save(tmp_path / "run", 5, 55.0)) == 55.0
    assert leftovers(tmp_path / "run") == []


@needs_fork
def test_a_kill_at_any_moment_of_cleaning_loses_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save(folder, 5, 1.0).rename(folder / "step-00000005.old")
    save(folder, 6, 2.0).rename(folder / ".tmp-step-00000006-0123abcd")

    def check(folder: Path) -> None:
        assert value_of(Checkpoints(folder), Checkpoints(folder).newest_good(silent)) == 1.0

    assert every_moment(folder, lambda folder: Checkpoints(folder).clean(), check) > 5


@needs_fork
def test_a_kill_at_any_moment_of_pruning_leaves_nothing_that_looks_damaged(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path / "run", step)

    def check(folder: Path) -> None:
        checkpoints = Checkpoints(folder)
        assert 3 in checkpoints.steps()
        assert all(verify(folder / f"step-{step:08d}") == [] for step in checkpoints.steps())

    assert every_moment(tmp_path / "run", lambda folder: Checkpoints(folder).prune(1), check) > 4


def test_all_is_on_the_disk_before_the_manifest_and_the_manifest_before_the_name(tmp_path: Path, monkeypatch) -> None:
    """What a power cut leaves: only what was flushed before."""
    flushed: list[int] = []  # inodes, in order
    named = []
    fsync, rename = os.fsync, os.rename

    def flush(handle: int) -> None:
        fsync(handle)
        flushed.append(os.fstat(handle).st_ino)

    def check_and_rename(old: Path, new: Path, **more: object) -> None:
        if new == tmp_path / "step-00000005":
            inodes = {path.name: path.stat().st_ino for path in Path(old).iterdir()}
            manifest = flushed.index(inodes.pop("manifest.json"))
            assert max(flushed.index(inode) for inode in inodes.values()) < manifest
            folder = Path(old).stat().st_ino
            assert folder in flushed[:manifest] and folder in flushed[manifest:]
            named.append(len(flushed))
        rename(old, new, **more)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", check_and_rename)
    for _ in range(2):
        flushed.clear()
        save(tmp_path, 5)
        assert tmp_path.stat().st_ino in flushed[named[-1] :]  # and then the name itself
    assert len(named) == 2


def test_of_a_step_and_its_former_self_the_good_one_stays(tmp_path: Path) -> None:
    place = save(tmp_path, 5, 1.0)
    shutil.copytree(place, tmp_path / "step-00000005.old")
    os.truncate(place / "model.safetensors", 3)
    told: list[str] = []
    assert Checkpoints(tmp_path).newest_good(told.append) == tmp_path / "step-00000005.old" and len(told) == 1
    Checkpoints(tmp_path).clean()
    assert Checkpoints(tmp_path).newest_good(silent) == place and leftovers(tmp_path) == []


@needs_fork
def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    begun, written = os.pipe()

    def hold() -> None:
        save(folder, 1)
        os.write(written, b".")
        time.sleep(60)

    child = fork(hold)
    try:
        assert os.read(begun, 1) == b"."
        with pytest.raises(CheckpointError, match="Another process is training in .*run"):
            Checkpoints(folder).clean()
        with pytest.raises(CheckpointError, match="Another process"):
            save(folder, 2)
        assert value_of(Checkpoints(folder), Checkpoints(folder).newest_good(silent)) == 1  # reading is free
    finally:
        os.kill(child, signal.SIGKILL)
        ended(child)
    Checkpoints(folder).clean()
    save(folder, 2)


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def largest_file() -> Iterator[object]:
    resource = pytest.importorskip("resource", reason="this system has no limits on file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, 8, 40_000, 200_000], ids=["nothing", "state", "model", "optimizer"])
def test_a_file_that_cannot_grow_leaves_the_checkpoint_before(tmp_path: Path, largest_file, limit: int) -> None:
    save(tmp_path, 1)
    big = {"model": {"w": torch.zeros(20_000)}, "optimizer": {"m": torch.zeros(80_000)}}
    for step in (2, 1):  # a new step, and one that is there already
        largest_file(limit)
        with pytest.raises(CheckpointError, match="could not be saved in .*: File too large") as caught:
            Checkpoints(tmp_path).save(step, big, {"value": 1.0})
        largest_file(-1)
        assert "intact" in caught.value.hint
        assert leftovers(tmp_path) == [] and Checkpoints(tmp_path).steps() == [1]
        assert value_of(Checkpoints(tmp_path), Checkpoints(tmp_path).newest_good(silent)) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(small_disk: Path) -> None:
    folder = small_disk / "run" / "checkpoints"
    save(folder, 1)
    big = {"model": {"w": torch.zeros(100_000)}, "optimizer": {"m": torch.zeros(200_000)}}
    for step in (2, 1):
        with pytest.raises(CheckpointError, match="No space left on device .*MB are free"):
            Checkpoints(folder).save(step, big, {})
        assert leftovers(folder) == [] and Checkpoints(folder).steps() == [1]
        assert value_of(Checkpoints(folder), Checkpoints(folder).newest_good(silent)) == 1
    (small_disk / "rest").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(CheckpointError, match="No space left"):
        Checkpoints(folder).mark_best(1)
    (small_disk / "rest").unlink()
    save(folder, 2)
    assert value_of(Checkpoints(folder), Checkpoints(folder).newest_good(silent)) == 2


@pytest.mark.parametrize("moment", range(1, 40, 3))
def test_an_input_error_at_any_moment_leaves_a_good_checkpoint(tmp_path: Path, monkeypatch, moment: int) -> None:
    save(tmp_path, 1, 1.0)
    left = moment

    def failing(function):
        def call(*arguments, **named):
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return function(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in ("fsync", "rename", "replace", "mkdir"):
            patch.setattr(os, name, failing(getattr(os, name)))
        try:
            save(tmp_path, 1, 2.0)
        except CheckpointError as error:
            assert "Input/output error" in error.problem
    checkpoints = Checkpoints(tmp_path)
    assert value_of(checkpoints, checkpoints.newest_good(silent)) in (1.0, 2.0)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp-")]
    checkpoints.clean()
    assert leftovers(tmp_path) == []


# -- damage ------------------------------------------------------------------------------------------------------------

NAMES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def passed_over(folder: Path, name: str) -> str:
    """Asserts that step 2 of 2 is named and passed over; returns what was reported."""
    told: list[str] = []
    checkpoints = Checkpoints(folder)
    assert value_of(checkpoints, checkpoints.newest_good(told.append)) == 1
    assert len(told) == 1 and "step-00000002" in told[0] and name in told[0]
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.read(folder / "step-00000002")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.find("2", silent)
    return told[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    whole = path.read_bytes()
    chance = random.Random(0)
    for bit in [0, 8 * len(whole) - 1, *(chance.randrange(8 * len(whole)) for _ in range(20))]:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        passed_over(tmp_path, "" if name == "manifest.json" else name)
    path.write_bytes(whole[:-2])  # the last byte of JSON may be a line end
    passed_over(tmp_path, name)
    path.write_bytes(b"")
    passed_over(tmp_path, name)
    path.write_bytes(whole + b" ")
    if name != "manifest.json":  # a blank after it changes no meaning
        passed_over(tmp_path, name)
    path.unlink()
    assert "missing" in passed_over(tmp_path, name)
    path.write_bytes(whole)
    assert value_of(Checkpoints(tmp_path), Checkpoints(tmp_path).newest_good(silent)) == 2


def test_no_single_bit_of_a_manifest_can_flip_unseen(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(2, {}, {}) / "manifest.json"
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(whole)):
            at = bit // 8
            for byte in (whole[at] ^ (1 << bit % 8), whole[at]):
                file.seek(at)
                file.write(bytes([byte]))
                assert bool(verify(path.parent)) == (byte != whole[at]), f"bit {bit}, {whole[at - 20 : at + 20]!r}"


def test_damage_after_a_check_is_seen_by_the_same_object(tmp_path: Path) -> None:
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    place = checkpoints.save(2, files(2.0), {"value": 2.0})
    assert checkpoints.newest_good(silent) == place
    path = place / "model.safetensors"
    times, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    time.sleep(0.02)  # longer than the tick of the clock that the system stamps files with
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert checkpoints.newest_good(lambda sentence: None) == tmp_path / "step-00000001"


def test_an_unlisted_file_is_named_and_a_hidden_one_is_not(tmp_path: Path) -> None:
    place = save(tmp_path, 1)
    (place / ".DS_Store").write_bytes(b"a file manager was here")
    assert verify(place) == []
    (place / "extra.py").write_text("")
    assert verify(place) == ["extra.py is not in the manifest"]


def test_a_damaged_best_gives_way_to_the_newest_good_one(tmp_path: Path) -> None:
    best = save(tmp_path, 1)
    newest = save(tmp_path, 2)
    Checkpoints(tmp_path).mark_best(1)
    (best / "state.json").unlink()
    told: list[str] = []
    assert Checkpoints(tmp_path).find("best", told.append) == newest
    assert "step-00000001" in told[0] and "state.json is missing" in told[0]


def test_when_all_are_damaged_training_does_not_silently_start_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="All checkpoints in .* are damaged"):
        Checkpoints(tmp_path).newest_good(lambda sentence: None)


# -- pruning -----------------------------------------------------------------------------------------------------------


def test_pruning_keeps_the_newest_the_best_and_the_protected(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.mark_best(2)
    checkpoints.prune(keep=2, protect=(4,))
    assert checkpoints.steps() == [2, 4, 6, 7]
    checkpoints.mark_best(7)
    checkpoints.prune(keep=1)
    assert checkpoints.steps() == [7]
    checkpoints.prune(keep=0)
    assert checkpoints.steps() == [7]
    assert leftovers(tmp_path) == []


def test_pruning_counts_only_what_is_whole(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    for step in (3, 4, 5):
        os.truncate(tmp_path / f"step-{step:08d}" / "optimizer.safetensors", 5)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.prune(keep=2)
    assert {1, 2} <= set(checkpoints.steps())
    checkpoints.prune(keep=1)
    assert 2 in checkpoints.steps() and 1 not in checkpoints.steps()
    assert value_of(checkpoints, checkpoints.newest_good(lambda sentence: None)) == 2


def test_pruning_does_not_fall_over_a_spoilt_pointer(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    for spoilt in (b"", b"\xff\xfe", b"../../elsewhere\n", b"/\n", b"step-00000009\n"):
        (tmp_path / "best").write_bytes(spoilt)
        assert Checkpoints(tmp_path).pointed("best") is None
    Checkpoints(tmp_path).prune(keep=1)
    assert Checkpoints(tmp_path).steps() == [2]


# -- forgeries ---------------------------------------------------------------------------------------------------------


NAMES_THAT_LEAVE = ["../secret.safetensors", "/etc/passwd", "a/b", "..", "", ".hidden", "a\\b", "a\0b", "manifest.json"]


@pytest.mark.parametrize("name", NAMES_THAT_LEAVE)
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    place = save(tmp_path, 1)
    shutil.copy(place / "model.safetensors", tmp_path / "secret.safetensors")
    manifest = json.loads((place / "manifest.json").read_bytes())
    manifest["files"][name] = manifest["files"]["model.safetensors"]
    (place / "manifest.json").write_text(json.dumps(manifest))
    assert "no plain file name" in verify(place)[0]
    with pytest.raises(CheckpointError, match="no plain file name"):
        Checkpoints(tmp_path).read(place)


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    place = save(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "step-00000001").symlink_to(place)
    assert verify(tmp_path / "b" / "step-00000001") == ["it is no folder"]
    (place / "model.safetensors").rename(tmp_path / "secret")
    (place / "model.safetensors").symlink_to(tmp_path / "secret")
    assert verify(place) == ["model.safetensors is no plain file"]
    with pytest.raises(CheckpointError, match="no plain file"):
        Checkpoints(tmp_path / "a").read(place)


def header(text: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


FORGED = {
    "empty": b"",
    "short": b"\x01",
    "endless header": header(b"{}", 2**60),
    "header past the end": header(b"{}", 100),
    "no json": header(b"not json"),
    "data past the end": header(b'{"w":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'),
    "shape against size": header(b'{"w":{"dtype":"F32","shape":[1000],"data_offsets":[0,4]}}', data=b"1234"),
    "negative offsets": header(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', data=b"1234"),
    "overflow": header(b'{"w":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}', data=b"1234"),
    "unknown type": header(b'{"w":{"dtype":"OBJECT","shape":[1],"data_offsets":[0,4]}}', data=b"1234"),
    "pickle": pickle.dumps(Bomb()),
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_weights_are_refused_and_run_nothing(tmp_path: Path, monkeypatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    place = save(tmp_path / "run", 1)
    (place / "model.safetensors").write_bytes(FORGED[kind])
    sign(place)
    assert verify(place) == []
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoints(tmp_path / "run").read(place)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("text", [b'{"value": NaN}', b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_forged_state_is_refused(tmp_path: Path, text: bytes) -> None:
    place = save(tmp_path, 1)
    (place / "state.json").write_bytes(text)
    sign(place)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoints(tmp_path).read(place)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"format": None}, "format None"),
        ({"step": 99}, "it is step 99"),
        ({"step": "1"}, "does not hold"),
        ({"files": []}, "does not hold"),
        ({"files": {}}, "does not name state.json"),
        ({"files": {"state.json": {"size": "1", "sha256": ""}}}, "size and sha256"),
        ({"run": "x"}, "does not hold"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    place = save(tmp_path, 1)
    manifest = json.loads((place / "manifest.json").read_bytes()) | change
    (place / "manifest.json").write_text(json.dumps(manifest))
    assert said in verify(place)[0]


def test_an_oversized_manifest_is_not_read(tmp_path: Path) -> None:
    place = save(tmp_path, 1)
    with (place / "manifest.json").open("ab") as file:
        file.write(b" " * 2**20)
    assert "larger than" in verify(place)[0]


def test_the_manifest_holds_the_plain_sha256_of_each_file(tmp_path: Path) -> None:
    place = save(tmp_path, 1)
    for name, entry in json.loads((place / "manifest.json").read_bytes())["files"].items():
        data = (place / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# -- numbers that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_no_nan_or_infinity_is_saved(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    save(tmp_path, 1)
    tensor = torch.zeros(3, 50, dtype=dtype)
    tensor[1, 7] = bad
    with pytest.raises(CheckpointError, match="m of optimizer.safetensors is not finite"):
        Checkpoints(tmp_path).save(2, {"model": {"w": torch.ones(2)}, "optimizer": {"m": tensor}}, {})
    with pytest.raises(CheckpointError, match="state cannot be saved"):
        Checkpoints(tmp_path).save(2, files(2.0), {"best": bad})
    assert Checkpoints(tmp_path).find("last", silent).name == "step-00000001"
    assert sorted(os.listdir(tmp_path)) == [".lock", "last", "step-00000001"]
