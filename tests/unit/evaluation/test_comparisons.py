"""Which pairs and which responses a judge compares."""

from collections import Counter
from random import Random

import pytest

from stargate.evaluation.comparisons import (
    ComparedResponse,
    Comparison,
    Response,
    choose_pairs,
    trial_comparisons,
    win_rate_comparisons,
    with_next_personas,
    without_names,
)
from stargate.records.counters import Counters
from tests.fakes.scripted import make_pair

GRID = [make_pair(f"t{t}", f"p{p}", f"gold t{t} p{p}") for t in range(6) for p in range(4)]


def response(version: int, pair: str, index: int = 0, responder: int | None = None) -> Response:
    by = version if responder is None else responder
    text = f"m{by} after m{version} {pair} {index}"
    return Response(f"eval-m{version}/{pair}/{index}", pair, by, text, len(text), "stop")


@pytest.mark.parametrize("num", [1, 4, 6, 12, 18, 23])
def test_pairs_are_spread_over_tasks_and_personas(num: int) -> None:
    for seed in range(20):
        chosen = choose_pairs(GRID, num, seed)
        assert len({pair.id for pair in chosen}) == num
        tasks = Counter({pair.task.id: 0 for pair in GRID})
        personas = Counter({pair.persona.id: 0 for pair in GRID})
        tasks.update(pair.task.id for pair in chosen)
        personas.update(pair.persona.id for pair in chosen)
        # The smallest spread there can be would be 1 here and 0 where num divides.
        assert max(tasks.values()) - min(tasks.values()) <= 2
        assert max(personas.values()) - min(personas.values()) <= 2


def test_the_choice_depends_on_the_seed_alone_and_grows() -> None:
    shuffled = Random(1).sample(GRID, len(GRID))
    assert choose_pairs(shuffled, 7, 0) == choose_pairs(GRID, 7, 0)
    assert choose_pairs(GRID, 12, 0)[:7] == choose_pairs(GRID, 7, 0)
    assert choose_pairs(GRID, 7, 1) != choose_pairs(GRID, 7, 0)
    assert {pair.id for pair in choose_pairs(GRID, 7, 0)} != {pair.id for pair in GRID[:7]}


def test_all_pairs_with_a_gold_are_chosen_without_a_limit() -> None:
    plain = make_pair("plain", "p0", None)
    for limit in (None, 24, 99):
        chosen = choose_pairs([plain, *GRID], limit, 0)
        assert sorted(pair.id for pair in chosen) == sorted(pair.id for pair in GRID)


def test_win_rate_comparisons() -> None:
    pair = make_pair("t", "p")
    candidates = [response(1, "t:p", 0), response(1, "t:p", 0, responder=0)]
    baselines = [response(0, "t:p", 1), response(0, "t:p", 0)]
    counters = Counters()
    assert win_rate_comparisons(1, [pair], candidates, baselines, counters.drop) == [
        Comparison(
            "own",
            pair,
            ComparedResponse("m1 eval-m1/t:p/0", "m1 after m1 t:p 0", 17),
            ComparedResponse("m0 eval-m0/t:p/0", "m0 after m0 t:p 0", 17),
        ),
        Comparison(
            "fixed",
            pair,
            ComparedResponse("m0 eval-m1/t:p/0", "m0 after m1 t:p 0", 17),
            ComparedResponse("m0 eval-m0/t:p/0", "m0 after m0 t:p 0", 17),
        ),
    ]
    assert not counters.dropped


def test_trial_comparisons() -> None:
    pairs = [make_pair("t", "p", "gold p"), make_pair("u", "p"), make_pair("t", "q", "gold q")]
    responses = [response(0, "t:p", 0), response(0, "t:p", 1), response(0, "t:q", 0)]
    counters = Counters()
    comparisons = trial_comparisons(pairs[:1], pairs, responses, "Great!", len, counters.drop)
    own = ComparedResponse("m0 eval-m0/t:p/0", "m0 after m0 t:p 0", 17)
    assert [(b.name, b.candidate, b.baseline) for b in comparisons] == [
        ("gold", ComparedResponse("gold", "gold p", 6), own),
        ("self", own, ComparedResponse("m0 eval-m0/t:p/1", "m0 after m0 t:p 1", 17)),
        ("praise", own, ComparedResponse("praise", "Great!", 6)),
        ("shuffled", own, ComparedResponse("m0 eval-m0/t:q/0", "m0 after m0 t:q 0", 17)),
    ]
    assert not counters.dropped


def test_no_side_of_a_trial_says_a_name() -> None:
    pairs = [make_pair("t", "rosa", "Rosa, walk."), make_pair("t", "ivan", "Ivan, run.")]
    said = {"rosa": ("Hi Rosa!", "Rosa's plan"), "ivan": ("Hi Ivan!", "Ivan's plan")}
    responses = [
        Response(f"eval-m0/t:{who}/{index}", f"t:{who}", 0, text, 2, "stop")
        for who, texts in said.items()
        for index, text in enumerate(texts)
    ]
    args = (pairs[:1], pairs, responses, "Great!", len, Counters().drop)
    assert [(b.name, b.candidate.text, b.baseline.text) for b in trial_comparisons(*args)] == [
        ("gold", "Friend, walk.", "Hi Friend!"),
        ("self", "Hi Friend!", "Friend's plan"),
        ("praise", "Hi Friend!", "Great!"),
        ("shuffled", "Hi Friend!", "Hi Friend!"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Rosa Diaz", "Hi Rosa Diaz, Rosa's plan, ROSA!", "Hi Friend, Friend's plan, Friend!"),
        ("Rosa Diaz", "Ask Rosalind about rosa gardens.", "Ask Rosalind about rosa gardens."),
        ("Ana de la Cruz", "Ana, la casa de Cruz", "Friend, la casa de Friend"),
        ("Anne-Marie", "Dear Anne-Marie (or Anne)", "Dear Friend (or Friend)"),
        ("J. O'Brien", "J. O'Brien, Mr. O'Brien", "Friend, Mr. O'Friend"),
        ("\u674e\u660e", "\u674e\u660e\u4f60\u597d", "Friend\u4f60\u597d"),
        ("Will", "Will, I will walk.", "Friend, I will walk."),
        ("", "Walk.", "Walk."),
    ],
)
def test_names_give_way_to_a_friend(name: str, text: str, expected: str) -> None:
    assert without_names(text, [name]) == expected


def test_the_next_persona_is_found_cyclically_and_beyond_the_chosen() -> None:
    pairs = [make_pair("t", name) for name in "pqr"]
    responses = [response(0, f"t:{name}") for name in "pr"]
    [*_, last] = trial_comparisons(pairs[2:], pairs, responses, "Great!", len, Counters().drop)
    assert (last.name, last.baseline.label) == ("shuffled", "m0 eval-m0/t:p/0")
    # q has no response, so p's neighbour is r.
    [*_, last] = trial_comparisons(pairs[:1], pairs, responses, "Great!", len, Counters().drop)
    assert last.baseline.label == "m0 eval-m0/t:r/0"
    assert [pair.id for pair in with_next_personas(pairs[1:], pairs)] == ["t:q", "t:r", "t:p"]


def test_pairs_without_responses_are_counted() -> None:
    pair = make_pair("t", "p")
    counters = Counters()
    assert win_rate_comparisons(1, [pair], [response(1, "t:p")], [], counters.drop) == []
    assert counters.dropped == {"no_comparison": 2}
    assert counters.dropped_examples["no_comparison"] == [
        "own t:p: no_comparison: 0 of 1 responses",
        "fixed t:p: no_comparison: 0 of 1 responses",
    ]
    comparisons = trial_comparisons(
        [pair], [pair], [response(0, "t:p")], "Great!", len, counters.drop
    )
    assert [b.name for b in comparisons] == ["gold", "praise"]
    assert counters.dropped == {"no_comparison": 4}  # self: 1 of 2; shuffled: nobody else
