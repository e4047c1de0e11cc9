"""Errors of the Oracle client. Both stop a run: single requests that fail become results, not
exceptions.
"""

from stargate.errors import ExitCode, StargateError


class OracleError(StargateError):
    """The server rejects what we send (key, model, parameters), or does not answer at all."""

    exit_code = ExitCode.ORACLE


class BudgetError(StargateError):
    """The next call could cost more than `max_cost` allows. What was answered so far is kept."""

    exit_code = ExitCode.BUDGET
