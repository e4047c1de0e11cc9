"""The logs of scorers and trainers: whatever they print can't control a terminal."""

from pathlib import Path

import pytest

from tests.unit.actors.process.test_log_escaping import WRITES, check, play

pytestmark = pytest.mark.integration


def test_the_log_of_a_scorer_or_trainer_is_escaped(tmp_path: Path) -> None:
    log = tmp_path / "scorer-0.log"
    script = f"""{WRITES}
from stargate.actors.process.log_escaping import redirect_output
redirect_output({str(log)!r})
redirect_output({str(log)!r})
write()
"""
    assert play(script).stdout == b""
    check(log.read_text(encoding="utf-8"), 4)
