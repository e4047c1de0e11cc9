"""A Roleplayer behind an API: what it says, through the Oracle's client.

    messages -> ChatRequest -> Oracle (limits, retries, budget; no cache unless asked) -> Answer

RUN/roleplayer.sqlite keeps the meter, so the money that a run may cost is that of all its sittings;
on another machine it begins where roleplayer_cost.json, one of the run's records, says.
A dialogue that is on disk is never played again; one that was under way is, and is paid again.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stargate.config.oracle import CostConfig
from stargate.config.roleplayer import ApiRoleplayerConfig
from stargate.errors import RecordDropped
from stargate.monitoring.journal import COST_FILE
from stargate.oracle.client import Oracle
from stargate.oracle.cost import Ledger, Meter
from stargate.oracle.database import Database
from stargate.oracle.records import AnswerStatus, ChatRequest, Complete
from stargate.records.files import read_json
from stargate.records.store import parse, reading
from stargate.text.chat import Message
from stargate.text.reasoning import spoken_part
from stargate.types import Answer, StopReason

ROLEPLAYER_FILE = "roleplayer.sqlite"
# The statuses of which the text is what the user said, if it is any.
_SAID = (AnswerStatus.OK, AnswerStatus.CUT_OFF, AnswerStatus.EMPTY)


class ApiCall:
    """One call of a Roleplayer behind an API: a RoleplayerCall."""

    def __init__(self, oracle: Complete, config: ApiRoleplayerConfig) -> None:
        self._oracle = oracle
        self._config = config

    async def __call__(
        self, messages: Sequence[Message], session: str, number: int, seed: int
    ) -> Answer:
        sampling, where = self._config.sampling, f"{session} answer {number + 1}"
        result = await self._oracle.complete(
            ChatRequest(
                tuple(messages),
                self._config.model,
                sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed if self._config.seeded else None,
                purpose="roleplayer",
                record=where,
            )
        )
        if result.status is AnswerStatus.TOO_LONG:
            raise RecordDropped("prompt_too_long", where, result.detail)
        if result.status not in _SAID:
            raise RecordDropped(f"answer_{result.status}", where, result.detail)
        cut_off = result.status is AnswerStatus.CUT_OFF
        said = spoken_part(result.text) or ""  # all of it may be a thought that was cut off
        return Answer(said.strip(), None, StopReason.LENGTH if cut_off else StopReason.STOP)


def open_roleplayer_oracle(config: ApiRoleplayerConfig, run_dir: Path) -> Oracle:
    """The client of a run's Roleplayer; close it (`aclose`) when the run has ended.

    On another machine than before, its meter begins where the run's records say. Raises DataError.
    """
    file, record = run_dir / ROLEPLAYER_FILE, run_dir / COST_FILE
    before = None if file.exists() else read_json(record)
    oracle = Oracle(config.oracle, file, caches=config.cache)
    if before is not None:
        with reading(record):
            oracle.carry_on(config.model, parse(Meter, before))
    return oracle


def roleplayer_cost(run_dir: Path) -> dict[str, Any] | None:
    """What the Roleplayer of a run has cost so far, in all sittings; None without an API."""
    file = run_dir / ROLEPLAYER_FILE
    if not file.is_file():
        return None
    database = Database(file)
    try:
        ledger = Ledger(database, CostConfig())
        ledger.recover()
        return asdict(ledger.read())
    finally:
        database.close()
