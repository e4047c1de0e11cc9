"""The errors that a user can meet. Each message says what, where, what was got and what to do.

They carry one string only, so that they survive pickling across Ray. The command line prints
them as one line and exits with their `exit_code`; anything else is a defect and keeps its
traceback.
"""


class StargateError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = 1


class ConfigError(StargateError):
    """A configuration file or an override is wrong."""

    exit_code = 2


class DataError(StargateError):
    """A data file is missing, empty or malformed."""

    exit_code = 3


class ModelError(StargateError):
    """A model folder, tokenizer or chat template can't be used."""

    exit_code = 4


class MachineError(StargateError):
    """The machine lacks something that the run needs: memory, disk, a compiler, a GPU."""

    exit_code = 5


class DivergenceError(StargateError):
    """A loss or gradient that must not become a checkpoint, or a checkpoint that can't speak."""

    exit_code = 6


class EngineError(StargateError):
    """An inference engine failed or answered what it must not."""

    exit_code = 7


class RecordDropped(StargateError):
    """One record can't be used. It is dropped and counted under `reason`; the run goes on.

    `reason` is a short stable key ("prompt_too_long"), `where` names the record.
    """

    def __init__(self, reason: str, where: str, detail: str) -> None:
        super().__init__(reason, where, detail)
        self.reason = reason
        self.where = where
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {self.detail}"


def one_line(error: BaseException) -> str:
    """Somebody else's message on one line; "" where it has none."""
    return " ".join(str(error).split())
