"""The errors that a user can meet. Each message says what, where, what was got and what to do.

They carry one string only, so that they survive pickling across Ray. The command line prints
them as one line and exits with their `exit_code`; anything else is a defect and keeps its
traceback.
"""

from enum import IntEnum, unique


@unique
class ExitCode(IntEnum):
    """What each exit code of a command means. 130 is Ctrl-C or SIGTERM, as a shell has it."""

    ERROR = 1
    CONFIG = 2
    DATA = 3
    MODEL = 4
    MACHINE = 5
    DIVERGENCE = 6
    ENGINE = 7
    ORACLE = 8  # it rejects us, or does not answer
    BUDGET = 9  # max_cost is reached
    STORAGE = 10  # shared storage did not take what it had to, or another machine holds the run
    SUBMISSION = 11  # a job never began
    FAULTY_DATA = 12  # `stargate data check` found more than it may


class StargateError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = ExitCode.ERROR


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the work in order, and the user was told how to go on."""


class ConfigError(StargateError):
    """A configuration file or an override is wrong."""

    exit_code = ExitCode.CONFIG


class DataError(StargateError):
    """A data file is missing, empty or malformed."""

    exit_code = ExitCode.DATA


class ModelError(StargateError):
    """A model folder, tokenizer or chat template can't be used."""

    exit_code = ExitCode.MODEL


class MachineError(StargateError):
    """The machine lacks something that the run needs: memory, disk, a compiler, a GPU."""

    exit_code = ExitCode.MACHINE


class DivergenceError(StargateError):
    """A loss or gradient that must not become a checkpoint, or a checkpoint that can't speak."""

    exit_code = ExitCode.DIVERGENCE


class EngineError(StargateError):
    """An inference engine failed or answered what it must not."""

    exit_code = ExitCode.ENGINE


class OracleError(StargateError):
    """The Oracle's server rejects what we send (key, model, parameters), or does not answer at all:
    the run stops. Single requests that fail become results, not exceptions.
    """

    exit_code = ExitCode.ORACLE


class BudgetError(StargateError):
    """The next call of the Oracle could cost more than `max_cost` allows. What was answered so far
    is kept.
    """

    exit_code = ExitCode.BUDGET


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
