"""Every benchmark in turn, on a machine where nothing else runs: about twenty minutes on two cores.

    python benchmarks/all.py --nanogpt CLONE --peers-python ENVIRONMENT/bin/python

One that fails is named at the end; the others run on.
"""

from __future__ import annotations

import subprocess
import sys
import time

from contest import FOLDER, options, peer_options, say

SEQUENCE = [
    "train.py --size 10m --rounds 5",
    "train.py --size 1m --rounds 5 --only ours plain nanoGPT fp32",
    "decode.py --size 10m --batch 1 --rounds 3",
    "decode.py --size 10m --batch 8 --rounds 3",
    "decode.py --size 124m --batch 1 --tokens 128 --rounds 3",
    "time_to_loss.py --rounds 1",
    "moe.py --rounds 5",
]


def main() -> None:
    parser = peer_options(options(__doc__))
    parser.set_defaults(rounds=None)  # each has its own number, unless one is given for all
    given = parser.parse_args()
    peers = ["--peers-python", given.peers_python, *(["--nanogpt", given.nanogpt] if given.nanogpt else [])]
    failed = []
    for line in SEQUENCE:
        script, *settings = line.split()
        command = [sys.executable, str(FOLDER / script), *settings, "--results", str(given.results)]
        command += ["--rounds", str(given.rounds)] if given.rounds else []
        say(f"== {line}")
        begin = time.perf_counter()
        if subprocess.run([*command, *(peers if script != "moe.py" else [])]).returncode:
            failed.append(line)
        say(f"== took {time.perf_counter() - begin:.0f} s")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
