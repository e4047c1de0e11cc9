"""Does a model ask where something is missing, and answer where nothing is? Its first turn says.

    (Pair, Dialogue) -> whether the first turn asks -> observations by measure

ask_rate                of tasks that need a question (vague ones)
needless_ask_rate       of tasks that need none (plain ones)
ask_balanced_accuracy   mean of: asks on a vague task; does not ask on a plain one
ask_accuracy            share of tasks at which it does the right thing
always_ask_accuracy     what asking at every task would have: the share of vague tasks
never_ask_accuracy      what never asking would have: the share of plain tasks

IN3's test has 88 % vague tasks, so that plain accuracy praises who always asks; balanced accuracy
gives both constant policies 0.5. The last four need tasks of both kinds. Tasks weigh the same in
all six, however many persons ask them and however many dialogues there are: a vague task of IN3 has
several persons, a plain one has one.
"""

from collections.abc import Iterable, Sequence
from statistics import fmean

from stargate.evaluation.statistics import Observation
from stargate.types import Dialogue, Pair

# No checkpoint changes them.
CONSTANT_POLICIES = frozenset({"always_ask_accuracy", "never_ask_accuracy"})


def observe_asking(played: Iterable[tuple[Pair, Dialogue]]) -> dict[str, list[Observation]]:
    """Observations by measure, one per dialogue; a measure without any is there with an empty list.

    The values are not 0 and 1 but `weighed`: mean and deviations are those of the measure.
    """
    vague: list[Observation] = []
    plain: list[Observation] = []
    for pair, dialogue in played:
        group = vague if pair.task.needs_question else plain
        asks = float(bool(dialogue.turns) and dialogue.turns[0].is_question)
        group.append(Observation(pair.task.id, pair.persona.id, asks))
    both = bool(vague and plain)
    silent = [_with(entry, 1.0 - entry.value) for entry in plain]
    always = [_with(e, 1.0) for e in vague] + [_with(e, 0.0) for e in plain]
    never = [_with(entry, 1.0 - entry.value) for entry in always]
    return {
        "ask_rate": weighed(vague),
        "needless_ask_rate": weighed(plain),
        "ask_balanced_accuracy": weighed(vague, silent) if both else [],
        "ask_accuracy": weighed([*vague, *silent]) if both else [],
        "always_ask_accuracy": weighed(always) if both else [],
        "never_ask_accuracy": weighed(never) if both else [],
    }


def weighed(*groups: Sequence[Observation]) -> list[Observation]:
    """Observations whose plain mean is the mean over groups of the mean over the group's tasks.

    value_k = that mean + n w_k (x_k - mean of its group), w_k the weight of x_k in it: what one
    observation adds to the whole's deviation (its influence), so the clustered interval of their
    mean is the whole's.
    """
    n = sum(map(len, groups))
    means: list[float] = []
    moved: list[tuple[Observation, float]] = []
    for group in groups:
        of_task: dict[str, list[float]] = {}
        for entry in group:
            of_task.setdefault(entry.task, []).append(entry.value)
        if not of_task:
            continue
        mean = fmean(map(fmean, of_task.values()))
        means.append(mean)
        for entry in group:
            share = 1 / (len(groups) * len(of_task) * len(of_task[entry.task]))
            moved.append((entry, n * share * (entry.value - mean)))
    return [_with(entry, fmean(means) + influence) for entry, influence in moved]


def _with(entry: Observation, value: float) -> Observation:
    return Observation(entry.task, entry.persona, value)
