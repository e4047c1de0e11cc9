"""`stargate bench push`: its ratios and figures from literal times."""

import pytest

from stargate.benchmarks.push import RATIOS, Times, summarise
from stargate.errors import EngineError
from stargate.types import PushResult


def times() -> Times:
    return Times(
        saves=[1.0, 3.0],
        first_start=20.0,
        stopping=7.0,
        restart=38.0,
        copying=[0.1, 0.5, 0.2],
        first_push=PushResult(1, 1, 0.8, {"check": 0.1, "update": 0.6}),
        pushed=[
            PushResult(2, 1, 0.4, {"check": 0.1, "update": 0.2}),
            PushResult(3, 1, 0.9, {"check": 0.1, "update": 0.6}),
            PushResult(4, 1, 0.5, {"check": 0.2, "update": 0.25}),
        ],
    )


def test_ratios_are_of_medians() -> None:
    got = summarise(times(), num_bytes=1000, same=True)
    # Saves 2.0, restart 38.0, push 0.5, copy 0.2; stopping the old engine does not count.
    assert got.ratios == {"vs_restart": 80.0, "vs_memcpy": 2.5}
    assert got.ratios.keys() == RATIOS.keys()
    assert got.figures["vs_restart_save_on_both_sides"] == 16.0
    phases = got.figures["phases_s"]
    assert (phases["check"], phases["update"]) == (0.1, 0.25)
    assert phases["ray_and_versions"] == pytest.approx(0.15)
    assert got.figures["first_push_s"] == 0.8
    assert (got.figures["push_min_s"], got.figures["push_max_s"]) == (0.4, 0.9)


def test_a_push_that_answers_otherwise_is_no_result() -> None:
    with pytest.raises(EngineError, match="answers otherwise after a push than after a restart"):
        summarise(times(), num_bytes=1000, same=False)
