"""One process of a run: `python -m tests.train.rank FOLDER SETTING...`, started alone or as one of several ranks."""

import dataclasses
import sys
import time
from pathlib import Path

import torch

from homespun.errors import HomespunError
from homespun.train import parallel
from tests.train.house import RECIPE, trainer


def main() -> None:
    folder, *settings = sys.argv[1:]
    torch.set_num_threads(1)
    slow = settings and settings[0] == "slow"
    world = parallel.join()
    run = trainer(Path(folder), *settings[bool(slow) :], recipe=RECIPE, world=world)
    if poisoned := [setting for setting in settings if setting.startswith("train.max_bad_steps=3")]:
        objective = run.updater.objective

        def poison(model, part):
            losses = objective(model, part)
            if poisoned and world.rank == world.size - 1 and run.progress.step in (2, 5):
                return dataclasses.replace(losses, loss=losses.loss * float("nan"), total=losses.total * float("nan"))
            return losses

        run.updater.objective = poison
    if slow:  # steps long enough for a signal to arrive in one
        step = run.updater.step
        run.updater.step = lambda *given: (time.sleep(0.05), step(*given))[1]
        print("ready", flush=True)
    try:
        summary = run.fit()
    except HomespunError as error:
        sys.exit(str(error))
    print(
        f"rank {world.rank} steps {summary.steps} reason {summary.reason} skipped {run.updater.finite.total}",
        flush=True,
    )
    world.wait()
    parallel.leave()
    if world.leader and world.size > 1:
        time.sleep(1)  # it keeps the group's store (under torchrun the agent does): the others leave first
    sys.exit(128 + summary.signal if summary.signal else 0)


if __name__ == "__main__":
    main()
