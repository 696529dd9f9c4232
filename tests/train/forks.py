"""Processes to be killed: a fork has torch loaded already, so a test may kill a hundred of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def fork(work: Callable[[], object]) -> int:
    """Runs `work` in a process of its own, which ends with status 0 when it returns and 1 when it raises."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # a test run in the background ignores Ctrl-C
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        work()
        status = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Waits: the exit status, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(moment: int, work: Callable[[], object]) -> bool:
    """Runs `work` in a fork that is killed right before its change number `moment` of the file system.

    Changes are what Python tells its auditors (open, rename, remove, make and remove folders), and each flush. False
    when the work ended before that.
    """

    def count(event: str, _: object = None) -> None:
        nonlocal moment
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "fsync"):
            moment -= 1
            if moment < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def armed() -> None:
        fsync = os.fsync
        os.fsync = lambda handle: (count("fsync"), fsync(handle))[1]  # type: ignore[assignment]
        sys.addaudithook(count)
        work()

    status = ended(fork(armed))
    assert status in (0, -signal.SIGKILL), f"the work failed by itself: {status}"
    return status != 0
