"""Selection, score requests and training examples: what the trainer learns, on literal ids."""

from dataclasses import replace

import pytest

from stargate.algorithm.score_requests import GoldScoring, to_dialogue_score
from stargate.algorithm.selection import select
from stargate.algorithm.star_gate import StarGate
from stargate.config.algorithm import StarGateConfig
from stargate.errors import RecordDropped
from stargate.types import (
    Dialogue,
    DialogueScore,
    Generation,
    ScoreResult,
    StopReason,
    TrainingExample,
    Turn,
)
from tests.fakes.scripted import ASSISTANT, END, USER, byte_chat, make_pair, make_turn, text_ids
from tests.unit.text.test_views import VIEWS

NL = ord("\n")
PAIR = make_pair(gold="G")
DIALOGUE = Dialogue("t0/t:p/0", PAIR.id, 0, 1, 0, 0, (make_turn("q?", "a"),))
RESPONSE = Generation("r", text_ids("r"), StopReason.STOP, 0, 10)


def scores(*values: float) -> list[DialogueScore]:
    return [DialogueScore(f"d{i}", "p", value, 3) for i, value in enumerate(values)]


def example(
    target: str,
    dialogue: Dialogue = DIALOGUE,
    response: Generation = RESPONSE,
    max_length: int = 1024,
    **options: object,
) -> TrainingExample:
    config = StarGateConfig(target=target, **options)  # type: ignore[arg-type]
    return StarGate(config, VIEWS, byte_chat(), max_length).example(PAIR, dialogue, response)


def test_best_of_n_takes_the_highest_sum() -> None:
    chosen = select("p", scores(-30.0, -10.5, -20.0), "gold", seed=0)
    assert chosen.dialogue_id == "d1"
    assert chosen.gold_logprob == -10.5
    assert chosen.candidate_scores == (-30.0, -10.5, -20.0)


def test_ties_go_to_the_first() -> None:
    assert select("p", scores(-1.0, -1.0), "gold", seed=0).dialogue_id == "d0"


def test_random_selection_is_seeded_and_ignores_scores() -> None:
    chosen = {select(f"p{i}", scores(0.0, -9.0), "random", seed=1).dialogue_id for i in range(30)}
    assert chosen == {"d0", "d1"}
    assert select("p", scores(0, 1, 2), "random", 5) == select("p", scores(0, 1, 2), "random", 5)


def test_score_request_is_the_plain_dialogue_then_the_gold() -> None:
    request = GoldScoring(VIEWS, byte_chat(), 100).after_dialogue("k", PAIR, DIALOGUE.turns)
    assert request.context_ids == (
        *(USER, *map(ord, "P: t?"), END, NL),
        *(ASSISTANT, *map(ord, "q?"), END, NL),
        *(USER, *map(ord, "a | t?"), END, NL),
        ASSISTANT,
    )
    assert request.golds == ((ord("G"),),)


def test_a_score_is_the_plain_sum() -> None:
    score = to_dialogue_score(DIALOGUE, ScoreResult("k", ((-1.0, -2.5),)))
    assert (score.gold_logprob, score.num_gold_tokens) == (-3.5, 2)


def test_an_empty_gold_and_a_too_long_context_are_dropped() -> None:
    with pytest.raises(RecordDropped, match="empty_gold"):
        GoldScoring(VIEWS, byte_chat(), 100).after_dialogue("k", make_pair(gold=" "), ())
    with pytest.raises(RecordDropped, match=r"score_too_long.*the context has 20"):
        GoldScoring(VIEWS, byte_chat(), 20).after_dialogue("k", PAIR, DIALOGUE.turns)


def test_own_response_learns_question_and_response() -> None:
    got = example("own_response")
    assert got.input_ids == (
        *(USER, *map(ord, "P: t?"), END, NL),
        *(ASSISTANT, *map(ord, "q?"), END),
        *(NL, USER, *map(ord, "a | t?"), END, NL),
        *(ASSISTANT, ord("r"), END),
    )
    learned = [token for token, mask in zip(got.input_ids, got.weights, strict=True) if mask]
    assert learned == [*map(ord, "q?"), END, ord("r"), END]
    assert got.weights[0] == 0


def test_questions_only_learns_the_question_and_ends_there() -> None:
    got = example("questions_only")
    assert got.input_ids[-3:] == (*map(ord, "q?"), END)
    assert got.num_loss_tokens == 3


def test_gold_response_learns_question_and_gold() -> None:
    got = example("gold_response")
    learned = [token for token, mask in zip(got.input_ids, got.weights, strict=True) if mask]
    assert learned == [*map(ord, "q?"), END, ord("G"), END]


def test_a_cut_off_response_does_not_teach_to_end() -> None:
    cut = Generation("rr", text_ids("rr", end=False), StopReason.LENGTH, 0, 10)
    got = example("own_response", response=cut)
    assert got.input_ids[-2:] == (ord("r"), ord("r"))


def test_a_too_long_example_is_dropped_with_its_length() -> None:
    length = len(example("own_response").input_ids)
    assert len(example("own_response", max_length=length).input_ids) == length
    with pytest.raises(RecordDropped, match=f"example_too_long: {length} tokens"):
        example("own_response", max_length=length - 1)


def test_only_answered_questions_have_loss_when_asked_for() -> None:
    turns = (
        make_turn("q1", "a", elicited=(2,)),
        make_turn("q2", "no preference"),
        make_turn("q3", "told already"),
    )
    dialogue = Dialogue("t0/t:p/0", PAIR.id, 0, 1, 0, 0, turns)

    def learned(dialogue: Dialogue, **changes: object) -> tuple[str, int]:
        made = example(**{"target": "own_response", "dialogue": dialogue, **changes})  # type: ignore[arg-type]
        ids = [i for i, m in zip(made.input_ids, made.weights, strict=True) if m and i != END]
        return "".join(map(chr, ids)), len(made.input_ids)

    opening = 1 + len("P: t?") + 2
    first = opening + 1 + len("q1") + 1
    asked = {"target": "questions_only"}
    assert learned(dialogue, **asked)[0] == "q1q2q3"
    # What follows the last question that has loss is left out: it would be computed for nothing.
    assert learned(dialogue, **asked, questions="answered") == ("q1", first)
    assert learned(dialogue, questions="answered")[0] == "q1r"
    silent = Dialogue("t0/t:p/0", PAIR.id, 0, 1, 0, 0, turns[1:])
    with pytest.raises(
        RecordDropped, match="no question came to its end and was answered with a fact"
    ):
        learned(silent, **asked, questions="answered")


def test_a_question_that_was_cut_off_has_no_loss() -> None:
    cut = replace(make_turn("q1", "a", elicited=(2,)), question_stop=StopReason.LENGTH)
    whole = make_turn("q2", "a", elicited=(1,))

    def learned(target: str, questions: str, *turns: Turn) -> str:
        dialogue = Dialogue("t0/t:p/0", PAIR.id, 0, 2, 0, 0, turns)
        made = example(target, dialogue, questions=questions)
        ids = [i for i, m in zip(made.input_ids, made.weights, strict=True) if m and i != END]
        return "".join(map(chr, ids))

    for questions in ("all", "answered"):
        assert learned("own_response", questions, cut, whole) == "q2r"
        assert learned("questions_only", questions, whole, cut) == "q2"
        assert learned("gold_response", questions, cut, whole) == "q2G"
    with pytest.raises(RecordDropped, match=r"no question came to its end$"):
        learned("questions_only", "all", cut)
