"""How much a checkpoint's questions differ, and whether they are those of the task: records alone.

    (Pair, Dialogue) -> elicited facts, keys of questions -> observations by measure

task_gain               share of the gold's facts that the dialogue brought out, minus the mean
                        share of the facts of the same persona's other golds that the same answers
                        hold: what the task contributed. One per dialogue; 0 for questions that are
                        as good for any task, however much they bring out
distinct_question_rate  different questions over all. A question's observation is 1 / the number of
                        questions of its kind, and the mean of these is that share exactly
generic_question_rate   share of questions that were asked, or nearly, in 3 or more other tasks
answered_already_rate   share of later turns with a question whose fact was told before

One observation per question for the two in the middle. Their intervals resample tasks and personas
as all others do, with kinds and near copies as this evaluation found them: more dialogues bring
more copies, so both measures are compared between evaluations of the same size only. All are over
tasks that need a question. task_gain and answered_already_rate need a Roleplayer that is grounded
in facts, generic_question_rate four tasks.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from stargate.evaluation.statistics import Observation
from stargate.rollout.question_text import Key, question_key, questions_in, tasks_with_copies
from stargate.types import Dialogue, Pair, told_facts

# In how many other tasks a question must have been asked to be a generic one.
_GENERIC_TASKS = 3

_Asked = tuple[Pair, Key]


def observe_diversity(
    played: Iterable[tuple[Pair, Dialogue]],
    pairs: Iterable[Pair],
    *,
    grounded: bool,
    told_already: str | None,
) -> dict[str, list[Observation]]:
    """Observations by measure; one that needs grounding is absent without it.

    `played` are the dialogues of one checkpoint, `pairs` all of the data: their golds are the
    other tasks' ones. `told_already` is what the Roleplayer says where a told fact answers; None
    if nobody knows.
    """
    needed = [(pair, dialogue) for pair, dialogue in played if pair.task.needs_question]
    asked = [
        (pair, question_key(question))
        for pair, dialogue in needed
        for turn in dialogue.turns
        for question in questions_in(turn.question)
    ]
    found = {
        "distinct_question_rate": list(_distinct(asked)),
        "generic_question_rate": list(_generic(asked)),
    }
    if grounded:
        found["task_gain"] = list(_task_gain(needed, pairs))
        if told_already is not None:
            found["answered_already_rate"] = list(_answered_already(needed, told_already))
    return found


def _distinct(asked: Sequence[_Asked]) -> Iterator[Observation]:
    size = Counter(key for _, key in asked)
    for pair, key in asked:
        yield _observed(pair, 1 / size[key])


def _generic(asked: Sequence[_Asked]) -> Iterator[Observation]:
    tasks: dict[Key, set[str]] = defaultdict(set)
    for pair, key in asked:
        tasks[key].add(pair.task.id)
    if len(set().union(*tasks.values())) <= _GENERIC_TASKS:
        return
    asked_in = tasks_with_copies(tasks, _GENERIC_TASKS + 1)
    for pair, key in asked:
        yield _observed(pair, len(asked_in[key] - {pair.task.id}) >= _GENERIC_TASKS)


def _task_gain(
    needed: Iterable[tuple[Pair, Dialogue]], pairs: Iterable[Pair]
) -> Iterator[Observation]:
    golds: dict[str, dict[str, set[int]]] = defaultdict(dict)  # persona, task -> its gold's facts
    for pair in pairs:
        if pair.gold_facts and pair.task.needs_question:
            golds[pair.persona.id][pair.task.id] = set(pair.gold_facts)
    for pair, dialogue in needed:
        own = golds[pair.persona.id].get(pair.task.id)
        others = [gold for task, gold in golds[pair.persona.id].items() if task != pair.task.id]
        if own and others:
            told = set(dialogue.elicited)
            elsewhere = [len(told & gold) / len(gold) for gold in others]
            yield _observed(pair, len(told & own) / len(own) - sum(elsewhere) / len(elsewhere))


def _answered_already(
    needed: Iterable[tuple[Pair, Dialogue]], told_already: str
) -> Iterator[Observation]:
    for pair, dialogue in needed:
        for number, turn in enumerate(dialogue.turns):
            if number and questions_in(turn.question):
                told = set(told_facts(dialogue.turns[:number]))
                # A chatty user says more than that; one of older records told the fact again.
                again = bool(turn.elicited) and set(turn.elicited) <= told
                yield _observed(pair, again or told_already in turn.answer)


def _observed(pair: Pair, value: float) -> Observation:
    return Observation(pair.task.id, pair.persona.id, float(value))
