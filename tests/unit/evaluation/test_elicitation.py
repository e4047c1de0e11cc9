"""What dialogues bring out, counted by hand."""

import json
from dataclasses import asdict

import pytest

from stargate.errors import DataError
from stargate.evaluation.elicitation import (
    is_repeated,
    observe_elicitation,
    recites_profile,
    stated_facts,
    turn_facts,
)
from stargate.evaluation.measures import measure_checkpoint
from stargate.evaluation.statistics import BootstrapConfig, Observation
from stargate.types import Dialogue, Pair, Persona, Task, Turn
from tests.fakes.scripted import make_turn

FACTS = (
    "I cannot stand onions, but I would eat pinto beans every day.",
    "I live with my grandson Mateo, who is nine.",
    "My pension leaves me about 250 dollars a month.",
    "I gave up my car and ride the bus free.",
)
TEXT = (
    "Rosa, 67, drove city buses in San Antonio for thirty-one years and can fix small engines. "
    "After bills, her pension leaves her about 250 dollars a month."
)
ROSA = Persona("rosa", "Rosa", TEXT, "test", FACTS)


def pair(task: str = "meals", needs: bool = True, gold_facts: tuple[int, ...] = (0, 2)) -> Pair:
    return Pair(Task(task, "Plan my week?", "test", needs), ROSA, "gold", gold_facts)


def played(of: Pair, *turns: Turn, index: int = 0) -> tuple[Pair, Dialogue]:
    return of, Dialogue(f"d/{of.id}/{index}", of.id, index, len(turns), 0, 0, turns)


def words(text: str) -> int:
    return len(text.split())


def values(found: dict[str, list[Observation]], name: str) -> list[float]:
    return [observation.value for observation in found[name]]


FOOD = make_turn("What do you like to eat?", FACTS[0], elicited=(0,))
MONEY = make_turn("What is your budget?", FACTS[2], elicited=(2,))
NOTHING = make_turn("Do you like opera?", "I have no preference about that.")
STATEMENT = make_turn("Here is your plan.", "Thanks.")


def test_one_dialogue_by_hand() -> None:
    found = observe_elicitation([played(pair(), FOOD, NOTHING, STATEMENT)], words)
    assert values(found, "facts_per_dialogue") == [1.0]
    assert values(found, "facts_per_turn") == [1.0, 0.0, 0.0]
    assert values(found, "facts_at_turn_1") == [1.0]
    assert values(found, "facts_at_turn_2") == [0.0]
    assert values(found, "fact_coverage") == [0.5]
    assert values(found, "question_rate") == [1.0, 1.0, 0.0]
    assert values(found, "repeated_question_rate") == [0.0]
    assert values(found, "tokens_to_read") == [6 + 4 + 4]
    assert values(found, "tokens_to_write") == [12 + 6 + 1]
    assert values(found, "tokens_per_dialogue") == [33.0]
    for leak in ("recited_facts_per_dialogue", "unasked_facts_per_dialogue"):
        assert values(found, leak) == [0.0]
    assert found["needless_question_rate"] == []


def test_measures_over_dialogues() -> None:
    found = observe_elicitation(
        [played(pair("a"), FOOD, MONEY), played(pair("b"), NOTHING, MONEY)], words
    )
    got = measure_checkpoint(found, {}, BootstrapConfig(num_resamples=200))
    assert got["facts_per_dialogue"].mean == 1.5
    assert got["fact_coverage"].mean == 0.75
    assert got["facts_at_turn_1"].mean == 0.5
    assert got["facts_at_turn_2"].mean == 1.0
    assert (got["question_rate"].n, got["question_rate"].task_clusters) == (4, 2)
    assert got["needless_question_rate"].mean is None
    json.dumps({name: asdict(value) for name, value in got.items()}, allow_nan=False)


def test_a_fact_counts_once() -> None:
    again = make_turn("And what food do you eat?", FACTS[0], elicited=(0, 0))
    facts = turn_facts(*played(pair(), FOOD, again))
    assert [turn.elicited for turn in facts] == [(0,), ()]


def test_coverage_is_only_of_pairs_whose_gold_names_facts() -> None:
    found = observe_elicitation(
        [played(pair("a"), FOOD, MONEY), played(pair("b", gold_facts=()), FOOD)], words
    )
    assert values(found, "fact_coverage") == [1.0]
    assert values(found, "facts_per_dialogue") == [2.0, 1.0]


def test_tasks_that_need_no_question_stand_apart() -> None:
    capital = pair("capital", needs=False, gold_facts=())
    found = observe_elicitation([played(pair(), FOOD), played(capital, NOTHING, STATEMENT)], words)
    assert values(found, "question_rate") == [1.0]
    assert values(found, "needless_question_rate") == [1.0, 0.0]
    assert values(found, "needless_tokens_per_dialogue") == [15.0]
    assert values(found, "tokens_per_dialogue") == [18.0]


@pytest.mark.parametrize(
    ("question", "earlier", "repeated"),
    [
        ("What's your budget?", ["What is your budget?"], True),
        ("What is your monthly budget?", ["What is your budget?"], False),
        ("Which foods do you avoid eating?", ["What food do you avoid when eating?"], True),
        ("What do you like to eat?", ["What do you like to read?"], False),
        ("What is your budget?", ["Do you cook?", "What is your budget?"], True),
        ("Why?", ["Why?"], True),
        ("Why?", ["How?"], False),
        ("What is your budget?", [], False),
    ],
)
def test_what_is_a_repeated_question(question: str, earlier: list[str], repeated: bool) -> None:
    assert is_repeated(question, earlier) is repeated


def test_repeats_are_counted_among_later_questions() -> None:
    again = make_turn("So, what is your budget?", "I told you.")
    found = observe_elicitation([played(pair(), MONEY, STATEMENT, FOOD, again)], words)
    assert values(found, "repeated_question_rate") == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        (FACTS[1], (1,)),
        ("My grandson Mateo lives with me, he is nine.", (1,)),
        ("I'm living with Mateo, a grandson of nine years.", (1,)),
        ("I have a grandson.", ()),
        ("I have no preference about that.", ()),
        (f"{FACTS[3]} {FACTS[2]}", (2, 3)),
        ("", ()),
    ],
)
def test_what_an_answer_states(text: str, stated: tuple[int, ...]) -> None:
    assert stated_facts(text, ROSA) == stated


def test_the_roleplayer_recites_facts_that_were_not_elicited() -> None:
    chatty = make_turn("What do you like to eat?", f"{FACTS[0]} {FACTS[1]}", elicited=(0,))
    [turn] = turn_facts(*played(pair(), chatty))
    assert (turn.elicited, turn.recited, turn.num_unasked) == ((0,), (1,), 1)
    found = observe_elicitation([played(pair(), chatty)], words)
    assert values(found, "facts_per_dialogue") == [1.0]
    assert values(found, "recited_facts_per_dialogue") == [1.0]


def test_a_fact_told_before_is_no_leak() -> None:
    again = make_turn("Do you take the bus?", f"{FACTS[3]} {FACTS[0]}", elicited=(3,))
    [_, turn] = turn_facts(*played(pair(), FOOD, again))
    assert (turn.elicited, turn.recited, turn.num_unasked) == ((3,), (), 0)


def test_facts_without_a_question_are_unasked() -> None:
    gift = make_turn("Here is your plan.", FACTS[0], elicited=(0,))
    [turn] = turn_facts(*played(pair(), gift))
    assert (turn.elicited, turn.num_unasked) == ((0,), 1)
    two = make_turn("What do you eat? What can you spend?", FACTS[0], elicited=(0, 2))
    [turn] = turn_facts(*played(pair(), two))
    assert turn.num_unasked == 0


def test_without_grounding_the_words_tell() -> None:
    chatty = make_turn("What do you like to eat?", f"{FACTS[1]} {FACTS[0]}")
    silent = make_turn("Here is your plan.", FACTS[3])
    first, second = turn_facts(*played(pair(), chatty, silent), grounded=False)
    assert (first.elicited, first.recited, first.num_unasked) == ((0,), (1,), 1)
    assert (second.elicited, second.recited, second.num_unasked) == ((), (3,), 1)


def test_copying_the_profile_is_a_recital() -> None:
    copied = "Well, I drove city buses in San Antonio for thirty-one years."
    assert recites_profile(copied, ROSA)
    assert not recites_profile("I drove buses in San Antonio for years.", ROSA)
    assert not recites_profile("", ROSA)
    found = observe_elicitation([played(pair(), FOOD, make_turn("Job?", copied))], words)
    assert values(found, "recital_rate") == [0.0, 1.0]


def test_an_elicited_fact_may_be_in_the_profiles_words() -> None:
    fact = "After bills, her pension leaves her about 250 dollars a month."
    persona = Persona("r", "Rosa", TEXT, "test", (fact,))
    assert recites_profile(fact, persona)
    assert not recites_profile(fact, persona, allowed=[0])


def test_a_dialogue_of_another_pair_is_refused() -> None:
    _, dialogue = played(pair("a"), FOOD)
    with pytest.raises(DataError, match="belongs to a:rosa, got pair b:rosa"):
        turn_facts(pair("b"), dialogue)


def test_a_fact_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="persona rosa has 4 facts, got fact 9"):
        turn_facts(*played(pair(), make_turn("q?", "a", elicited=(9,))))
    with pytest.raises(DataError, match="got fact 4"):
        observe_elicitation([played(pair(gold_facts=(4,)), FOOD)], words)


def test_a_dialogue_without_turns_has_no_facts() -> None:
    found = observe_elicitation([played(pair())], words)
    assert values(found, "facts_per_dialogue") == [0.0]
    assert values(found, "fact_coverage") == [0.0]
    assert found["question_rate"] == []
