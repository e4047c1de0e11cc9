"""Records that travel as bytes arrive as they were."""

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stargate.actors.rpc.batched_calls import CallBatch, Delivery
from stargate.actors.rpc.wire import Records, pack, unpack
from stargate.errors import EngineError, RecordDropped
from stargate.types import (
    Dialogue,
    DialoguePlan,
    GenerateRequest,
    Generation,
    Pair,
    Persona,
    Sampling,
    ScoreRequest,
    ScoreResult,
    StopReason,
    Task,
    Turn,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
IDS = st.lists(st.integers(0, 2**31), max_size=8).map(tuple)
INT = st.integers(-(2**63), 2**63)
STOP = st.sampled_from(StopReason)
FLOAT = st.floats(allow_nan=False)
LOGPROBS = st.none() | st.lists(FLOAT, max_size=8).map(tuple)
TURNS = st.builds(Turn, TEXT, IDS, STOP, TEXT, IDS, STOP, IDS, LOGPROBS)
SAMPLINGS = st.builds(Sampling, FLOAT, FLOAT, st.integers(1), INT, st.booleans())
PAIRS = st.builds(
    Pair,
    st.builds(Task, TEXT, TEXT, TEXT, st.booleans()),
    st.builds(Persona, TEXT, TEXT, TEXT, TEXT, st.lists(TEXT, max_size=3).map(tuple)),
    st.none() | TEXT,
    IDS,
)
RECORDS = st.one_of(
    st.builds(GenerateRequest, TEXT, TEXT, IDS, SAMPLINGS),
    st.builds(Generation, TEXT, IDS, STOP, INT, INT, INT, LOGPROBS),
    st.builds(Dialogue, TEXT, TEXT, INT, INT, INT, INT, st.lists(TURNS).map(tuple), FLOAT),
    st.builds(DialoguePlan, TEXT, PAIRS, INT, INT, INT),
    st.builds(ScoreRequest, TEXT, IDS, st.lists(IDS, max_size=3).map(tuple)),
    st.builds(ScoreResult, TEXT, st.lists(st.lists(FLOAT).map(tuple), max_size=3).map(tuple)),
)


@given(st.lists(st.tuples(st.integers(), RECORDS), max_size=4))
def test_what_is_packed_comes_back(records: list[tuple[int, Any]]) -> None:
    assert unpack(pack(records)) == records
    batch = pickle.loads(pickle.dumps(CallBatch("me", 3, records, [1, 2])))
    assert (batch.client, batch.number, list(batch.requests)) == ("me", 3, records)
    assert list(batch.cancelled) == [1, 2]
    delivery = pickle.loads(pickle.dumps(Delivery(records, "dead")))
    assert (list(delivery.ended), delivery.fatal) == (records, "dead")


def test_stop_reasons_stay_members_and_errors_stay_ours() -> None:
    generation = Generation("a", (1,), StopReason.LENGTH, 0, 1)
    dropped = RecordDropped("turn_timeout", "t0/x", "late")
    ended = unpack(pack([(0, generation), (1, dropped), (2, EngineError("gone"))]))
    assert ended[0][1].stop is StopReason.LENGTH
    assert isinstance(ended[1][1], RecordDropped)
    assert (ended[1][1].reason, str(ended[1][1])) == (dropped.reason, str(dropped))
    assert str(ended[2][1]) == "gone"


@pytest.mark.parametrize("dumps", ["pickle", "cloudpickle"])
def test_a_list_of_records_arrives_as_a_plain_list(dumps: str) -> None:
    module = pytest.importorskip(dumps)
    gold = tuple(range(300, 400))
    requests = [ScoreRequest(str(n), (1, 2), (gold,)) for n in range(10)]
    data = module.dumps(Records(requests))
    arrived = pickle.loads(data)
    assert type(arrived) is list
    assert arrived == requests
    assert len(data) < 1000  # the gold, which all share, travels once
