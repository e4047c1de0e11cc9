"""Diversity and fit of questions, counted by hand."""

import pytest

from stargate.evaluation.catalog import measure_info
from stargate.evaluation.diversity import observe_diversity
from stargate.evaluation.statistics import Observation
from stargate.types import Dialogue, Pair, Persona, Task, Turn
from tests.fakes.scripted import make_turn

FACTS = ("I drink tea.", "I own a dog.", "I sleep late.", "I dislike rain.")
# The facts that the golds of each task use.
GOLDS = {"brunch": (0, 2), "walk": (1, 3), "gift": (0,), "trip": (3,)}
TOLD = "I told you that already."


def pair(task: str, persona: str = "p", needs: bool = True) -> Pair:
    who = Persona(persona, persona.title(), "About.", "test", FACTS)
    return Pair(Task(task, "Help me?", "test", needs), who, "gold", GOLDS.get(task, ()))


PAIRS = [pair(task) for task in GOLDS]


def played(of: Pair, *turns: Turn) -> tuple[Pair, Dialogue]:
    return of, Dialogue(f"d/{of.id}", of.id, 0, len(turns), 0, 0, turns)


def asking(task: str, *questions: str, persona: str = "p") -> tuple[Pair, Dialogue]:
    turns = (make_turn(question, "No preference.") for question in questions)
    return played(pair(task, persona), *turns)


def observed(*dialogues: tuple[Pair, Dialogue]) -> dict[str, list[Observation]]:
    return observe_diversity(dialogues, PAIRS, grounded=True, told_already=TOLD)


def values(found: dict[str, list[Observation]], name: str) -> list[float]:
    return [observation.value for observation in found[name]]


TEA = make_turn("What do you drink?", FACTS[0], elicited=(0,))
SLEEP = make_turn("When do you get up?", FACTS[2], elicited=(2,))
RAIN = make_turn("What weather do you dislike?", FACTS[3], elicited=(3,))
AGAIN = make_turn("Which drinks do you enjoy?", TOLD)


def test_task_gain_is_what_is_due_to_the_task() -> None:
    # Tea and sleep: all of brunch; of the others' golds none of walk, all of gift, none of trip.
    # Tea and rain: half of brunch; half of walk, all of gift, all of trip.
    found = observed(played(pair("brunch"), TEA, SLEEP), played(pair("brunch"), TEA, RAIN))
    assert values(found, "task_gain") == pytest.approx([1 - 1 / 3, 0.5 - 2.5 / 3])


def test_task_gain_compares_golds_of_the_same_person() -> None:
    stranger = pair("brunch", "q")
    found = observe_diversity(
        [played(stranger, TEA, SLEEP)], [*PAIRS, stranger], grounded=True, told_already=None
    )
    assert found["task_gain"] == []
    assert "answered_already_rate" not in found


def test_task_gain_leaves_plain_tasks_and_golds_without_facts_alone() -> None:
    plain = pair("gift", needs=False)
    found = observe_diversity(
        [played(pair("brunch"), TEA), played(pair("other"), TEA), played(plain, TEA)],
        [pair("brunch"), pair("walk"), pair("other"), plain],
        grounded=True,
        told_already=TOLD,
    )
    # Half of brunch's facts, none of walk's; gift needs no question, so it is no other task.
    assert found["task_gain"] == [Observation("brunch", "p", 0.5)]


def test_a_fact_that_was_taken_back_is_not_gained() -> None:
    back = make_turn("Any pets?", FACTS[1], elicited=(1,), retracted=(0,))
    found = observed(played(pair("gift"), TEA, back))
    # Tea is gone; the dog is half of walk, and nothing of brunch and trip.
    assert values(found, "task_gain") == pytest.approx([0 - 0.5 / 3])


def test_distinct_questions_over_all_is_the_mean() -> None:
    found = observed(
        asking("brunch", "What do you drink?", "Do you drink tea?"),
        asking("walk", "So what would you drink? Any pets?"),
        asking("gift", "Here is your plan."),
    )
    assert found["distinct_question_rate"] == [
        Observation("brunch", "p", 0.5),
        Observation("brunch", "p", 1.0),
        Observation("walk", "p", 0.5),
        Observation("walk", "p", 1.0),
    ]
    got = values(found, "distinct_question_rate")
    assert sum(got) / len(got) == 3 / 4


def test_a_generic_question_stands_in_three_other_tasks() -> None:
    everywhere = ("What green tea drinks suit you?", "Which green tea drinks suit your taste?")
    found = observed(
        asking("brunch", everywhere[0], "Any pets?", persona="p"),
        asking("brunch", "Any pets?", persona="q"),  # the same task, so no other one
        asking("walk", everywhere[1], "Any pets?"),
        asking("gift", everywhere[0], "Any pets?"),
        asking("trip", everywhere[1]),
    )
    got = [(o.task, o.persona, o.value) for o in found["generic_question_rate"]]
    assert got == [
        ("brunch", "p", 1.0),
        ("brunch", "p", 0.0),
        ("brunch", "q", 0.0),
        ("walk", "p", 1.0),
        ("walk", "p", 0.0),
        ("gift", "p", 1.0),
        ("gift", "p", 0.0),
        ("trip", "p", 1.0),
    ]


def test_with_three_tasks_nobody_knows_what_is_generic() -> None:
    found = observed(*(asking(task, "Any pets?") for task in ("brunch", "walk", "gift")))
    assert found["generic_question_rate"] == []
    assert len(found["distinct_question_rate"]) == 3


def test_questions_of_plain_tasks_count_nowhere() -> None:
    found = observed(played(pair("capital", needs=False), TEA, AGAIN))
    assert all(observations == [] for observations in found.values()) and len(found) == 4


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (AGAIN, [1.0]),
        (make_turn("Which drinks do you enjoy?", f"{TOLD} What a day!"), [1.0]),
        (make_turn("And what else do you drink?", FACTS[0], elicited=(0,)), [1.0]),
        (make_turn("What else?", FACTS[1], elicited=(0, 1)), [0.0]),
        (make_turn("Do you like opera?", "No preference."), [0.0]),
        (SLEEP, [0.0]),
        (make_turn("Here is your plan.", TOLD), []),
    ],
)
def test_what_was_answered_already(later: Turn, expected: list[float]) -> None:
    found = observed(played(pair("brunch"), TEA, later))
    assert values(found, "answered_already_rate") == expected


def test_a_fact_that_was_taken_back_may_be_told_again() -> None:
    back = make_turn("Any pets?", "Forget the tea. I own a dog.", elicited=(1,), retracted=(0,))
    found = observed(played(pair("brunch"), TEA, back, TEA, AGAIN))
    assert values(found, "answered_already_rate") == [0.0, 0.0, 1.0]


def test_without_grounding_only_the_questions_are_known() -> None:
    dialogues = [played(pair("brunch"), TEA, SLEEP)]
    found = observe_diversity(dialogues, PAIRS, grounded=False, told_already=None)
    assert set(found) == {"distinct_question_rate", "generic_question_rate"}


def test_every_measure_has_its_entry_in_the_catalog() -> None:
    infos = [measure_info(name) for name in observed(asking("brunch", "Any pets?"))]
    assert [info.more_is_better if info else None for info in infos] == [True, False, True, False]
