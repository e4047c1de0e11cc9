"""The pure parts of `stargate bench score`: what is counted, shared out and compared."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from stargate.benchmarks.score import Results, largest_difference
from stargate.benchmarks.score_sides import Answer, by_length
from stargate.benchmarks.score_work import (
    DIALOGUES,
    PairRequests,
    Stretch,
    num_tokens,
    num_unique,
    stretches,
    with_golds,
)
from stargate.errors import DivergenceError
from stargate.types import ScoreRequest

PAIR = (
    ScoreRequest("p/0", (1, 2, 3), ((8, 9), (8, 8, 8))),
    ScoreRequest("p/1", (1, 2, 4, 5), ((8, 9),)),
)
OTHER = (ScoreRequest("q/0", (1, 2, 3), ((7,),)),)


class FakeWorker:
    """Answers with log-probs of 0, after as many seconds as it was told."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.sent: list[Sequence[PairRequests]] = []

    def send(self, work: Sequence[PairRequests]) -> None:
        self.sent.append(work)

    def answer(self) -> Answer:
        golds = [g for pair in self.sent[-1] for request in pair for g in request.golds]
        return Answer(self._seconds, [(0.0,) * len(gold) for gold in golds])


def test_tokens_are_counted_as_asked_for_and_once() -> None:
    assert num_tokens([PAIR, OTHER]) == (3 + 2) + (3 + 3) + (4 + 2) + (3 + 1)
    # 1 2 | 3 | 8 | 8 8 | 4 5 | 8 of the one pair, 1 2 3 of the other: pairs share nothing.
    assert num_unique([PAIR, OTHER]) == (2 + 1 + 1 + 2 + 2 + 1) + 3


def test_stretches_are_the_unique_tokens() -> None:
    found = stretches([with_golds([PAIR], 1)[0], OTHER])
    assert found == [Stretch((1, 2, 3, 8), 2), Stretch((4, 5, 8), 2), Stretch((1, 2, 3), 1)]
    several = stretches([PAIR])
    assert sum(len(one.ids) for one in several) == num_unique([PAIR])
    assert Stretch((8, 8), 2) in several


def test_fewer_golds_are_the_first_ones() -> None:
    [(first, second)] = with_golds([PAIR], 1)
    assert first == ScoreRequest("p/0", (1, 2, 3), ((8, 9),))
    assert second == PAIR[1]


def test_batches_of_the_bare_pass_are_sorted_and_within_the_limit() -> None:
    sequences = [Stretch((1,) * n, 1) for n in (3, 10, 4, 9)]
    lengths = [[len(one.ids) for one in batch] for batch in by_length(sequences, 20)]
    assert lengths == [[10, 9], [4, 3]]
    assert [len(batch) for batch in by_length(sequences, 1)] == [1, 1, 1, 1]


def test_workers_share_the_pairs_and_the_slower_one_counts() -> None:
    results, workers = Results(), [FakeWorker(2.0), FakeWorker(3.0)]
    asked: Any = workers
    results.run("scorer_2", asked, [PAIR, OTHER])
    results.run("scorer_2", asked, [PAIR, OTHER])
    assert results.seconds == {"scorer_2": 6.0}
    assert workers[0].sent == [[PAIR], [PAIR]]
    assert workers[1].sent == [[OTHER], [OTHER]]
    assert results.logprobs["scorer_2"] == {
        ("p/0", 0): (0.0, 0.0),
        ("p/0", 1): (0.0, 0.0, 0.0),
        ("p/1", 0): (0.0, 0.0),
        ("q/0", 0): (0.0,),
    }


def test_the_largest_difference_is_of_a_gold_s_mean() -> None:
    one = {("a", 0): (-1.0, -2.0), ("b", 0): (-1.0,), ("c", 0): (-9.0,)}
    other = {("a", 0): (-1.1, -1.9), ("b", 0): (-1.03,)}
    assert largest_difference(one, other) == pytest.approx(0.03)
    with pytest.raises(ValueError, match="no gold is in both"):
        largest_difference(one, {})


def made(scorer: float, float32: float) -> Results:
    """Results whose only difference is the mean log-prob of one gold."""
    key = ("p/0", 0)
    values = dict.fromkeys(("long_1", "long_n", "recorded_n", "scorer_1", "scorer_2"), scorer)
    values |= dict.fromkeys(("turns_all", "turns_final"), scorer)
    values |= {"float32": float32, "prompt_logprobs_1": 5.0}
    return Results({}, {name: {key: (value,)} for name, value in values.items()})


def test_a_scorer_that_differs_from_float32_is_an_error_vllm_is_a_figure() -> None:
    made(-1.0, -1.019).check()
    assert made(-1.0, -1.0).differences()["prompt_logprobs_from_float32"] == 6.0
    with pytest.raises(DivergenceError, match=r"scorer_from_float32.*0.0210 nats per token"):
        made(-1.0, -1.021).check()
    with pytest.raises(DivergenceError):
        made(float("nan"), -1.0).check()


def test_the_recorded_dialogues_are_whole() -> None:
    rows = [json.loads(line) for line in DIALOGUES.read_text(encoding="utf-8").splitlines()]
    assert len({(row["task_id"], row["persona_id"]) for row in rows}) == len(rows) == 24
    assert all(len(row["dialogues"]) == 4 for row in rows)
    assert all(len(turns) == 3 for row in rows for turns in row["dialogues"])
