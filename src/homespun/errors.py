"""What a user can be told: one sentence about the problem, one about the next step."""


class HomespunError(Exception):
    """A mistake or a limit that a user can act on.

    `problem` says what is wrong, naming the thing and its value; `hint` says what to do next. The command line prints
    both and exits with code 2; nothing is lost.
    """

    def __init__(self, problem: str, hint: str):
        super().__init__(f"{problem.rstrip('.')}. {hint}")
        self.problem = problem
        self.hint = hint


class ConfigError(HomespunError):
    """A setting is unknown, of the wrong type, out of range, or impossible in combination."""


class DataError(HomespunError):
    """A source cannot be read, or holds too little text."""


class CheckpointError(HomespunError):
    """A checkpoint or run is damaged, missing, or does not fit what was asked."""


class TrainingError(HomespunError):
    """Training cannot go on: non-finite numbers in a row, no memory, no budget."""


class MissingExtraError(HomespunError):
    """An optional package is needed."""

    def __init__(self, what: str, package: str, extra: str):
        super().__init__(f"{what} needs the package {package!r}", f"Install it with: pip install 'homespun[{extra}]'")
