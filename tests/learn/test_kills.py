"""The command itself, killed again and again while other processes write what it reads."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from homespun.learn.journal import JOURNAL
from homespun.learn.spool import folder_of, put
from tests.learn.learners import consistent, sums
from tests.train.forks import ended, fork, needs_fork

KILLS, EACH = 10, 40
LONG = 4.0  # seconds of work before a kill, at most
IDLE = 30.0  # seconds after which there is nothing left to learn
SETTINGS = ("learn.cycle_tokens=3000", "learn.evaluate_tokens=1024", "learn.tolerance=0.5", "learn.wait=0.5",
            "learn.poll=0.1", "learn.replay=0.3")  # fmt: skip


def notes(folder: Path) -> sqlite3.Connection:
    """A database of notes."""
    base = sqlite3.connect(folder / "notes.db", timeout=60)
    base.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, body TEXT)")
    return base


def write(folder: Path, run: Path, pause: float) -> None:
    """Writes texts to four places for a while: files, halves of rows, a database, the queue."""
    texts = [sums(EACH, seed) for seed in range(4)]
    with open(folder / "rows.jsonl", "a", encoding="utf-8") as rows, closing(notes(folder)) as base:
        for number in range(EACH):
            (folder / "files" / f"{number}.txt").write_text(texts[0][number])
            half = len(texts[1][number]) // 2
            rows.write('{"text": "' + texts[1][number][:half].replace("\n", "\\n"))
            rows.flush()
            base.execute("INSERT INTO notes (body) VALUES (?)", (texts[2][number],))
            base.commit()
            put(run, texts[3][number])
            time.sleep(pause)
            rows.write(texts[1][number][half:].replace("\n", "\\n") + '"}\n')
            rows.flush()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_fork
def test_ten_kills_of_the_command_lose_and_repeat_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "rows.jsonl").touch()
    notes(tmp_path).close()
    query = f"sqlite:{tmp_path / 'notes.db'}?select id, body from notes where id > :cursor order by id"
    command = [sys.executable, "-m", "homespun", "learn", str(run), str(tmp_path / "files"),
               str(tmp_path / "rows.jsonl"), query, *SETTINGS]  # fmt: skip
    draw = random.Random(os.getpid())
    writer = fork(lambda: write(tmp_path, run, pause=float(os.environ.get("HOMESPUN_TEST_PAUSE", "1"))))
    log = run / JOURNAL.with_name(JOURNAL.name + "-wal")
    try:
        for number in range(KILLS):
            learner = subprocess.Popen(
                [*command, "--watch"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            begin = time.time()
            at_work = lambda: log.exists() and log.stat().st_mtime > begin  # noqa: B023, E731
            while number % 5 and learner.poll() is None and not at_work() and time.time() - begin < IDLE:
                time.sleep(0.01)  # two of ten are killed at their start, the others at work
            time.sleep(draw.uniform(0.0, LONG))
            learner.send_signal(signal.SIGKILL)
            told, _ = learner.communicate()
            assert learner.returncode == -signal.SIGKILL, told
            print(f"--- killed after {time.time() - begin:.1f} s\n{told}")
    finally:
        assert ended(writer) == 0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    states = consistent(run, [text for seed in range(4) for text in sums(EACH, seed)])
    print(states)
    assert set(states) <= {"learned", "held", "known", "refused"} and states["learned"] > 2 * EACH
    assert not list(folder_of(run).glob("*"))
