"""Writing that survives a kill, a power cut and a full disk: flush to the disk first, then rename."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import IO

from homespun.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows has no such lock: there, two trainings in one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp-"
"""What the name of everything unfinished begins with."""

_CHUNK = 2**18
_CLAIMS: dict[Path, IO[bytes]] = {}  # the locks of this process; the system drops them when it ends, however it ends


def temporary(path: Path) -> Path:
    """A new name for the unfinished `path`, in the same folder: a rename never leaves the file system."""
    return path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")


def flush(path: Path) -> None:
    """Returns when the contents of a file, or the names in a folder, are on the disk (fsync)."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows cannot open a folder, and keeps its names in a journal
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network folders cannot be flushed
            raise
    finally:
        os.close(handle)


def write(path: Path, data: bytes) -> None:
    """Writes a new file through to the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, data: bytes) -> None:
    """Writes `path` so that, whatever happens, it holds either all of the old bytes or all of the new ones."""
    unfinished = temporary(path)
    try:
        write(unfinished, data)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    flush(path.parent)


def digest(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file, in constant memory."""
    total, sha, buffer = 0, hashlib.sha256(), bytearray(_CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sha.update(view[:count])
            total += count
    return total, sha.hexdigest()


def discard(path: Path) -> None:
    """Removes a file or folder. A folder is renamed first: one killed half-way must not look like a damaged one."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith(TEMPORARY):
        path = path.rename(temporary(path))
    shutil.rmtree(path, ignore_errors=True)  # what stays is unfinished by its name, and goes at the next start


def claim(folder: Path) -> None:
    """Makes this process the only one that writes in `folder`, until it ends.

    Raises `CheckpointError` when another process holds it.
    """
    folder = folder.resolve()
    if fcntl is None or folder in _CLAIMS:
        return
    lock = (folder / ".lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise CheckpointError(
            f"Another process is training in {folder.parent}", "Wait for its end, or name another folder."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # network folders without locks
            lock.close()
            raise
    _CLAIMS[folder] = lock


def release(folder: Path) -> None:
    """Gives back what `claim` took, for a folder that this process only made."""
    if lock := _CLAIMS.pop(folder.resolve(), None):
        lock.close()
