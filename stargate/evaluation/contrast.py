"""What a dialogue says about its own persona: the doubly centred contrast of gold log-probs.

    dialogue of (task, persona) -> its own gold and other personas' golds, scored in one pass
        -> own minus what dialogue and gold would have had anyway -> one value per dialogue

Some dialogues make every gold of their task likelier (they are in form, or talk about the task),
and some golds are likely after anything. Both are taken out: an additive model, log-prob = effect
of the dialogue + effect of the gold, is fitted to the golds of OTHER personas only, and the
contrast is the own gold's log-prob minus what the model predicts for it. Where every gold was
scored after every dialogue, the mean over a task is J/(J-1) x the mean of L_jj - row mean - column
mean + grand mean, and the values are the jackknife's pseudo-values of it: their spread over
personas is the mean's own, which doubly centred cells understate (by a quarter with 5 personas).

A balanced sample of the golds is enough: each dialogue gets `num_others`, each gold serves as
often, and the fit ties them together. Two are the least that can. The cyclic shift
(`matched_minus_shuffled`) has one, cancels nothing, and an interval several times as wide.
Coverage by simulation: tests/integration/test_interval_coverage.py.

Letters: J personas of a task, R dialogues of a task.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stargate.types import Pair


@dataclass(frozen=True, slots=True)
class GoldAfter:
    """log p of one gold of a task, in nats, after a dialogue with `persona` about the task."""

    task: str
    dialogue_id: str
    persona: str
    gold_persona: str
    logprob: float

    @property
    def is_own(self) -> bool:
        return self.persona == self.gold_persona


def sampled_others(pairs: Sequence[Pair], num_others: int) -> dict[str, list[Pair]]:
    """For each pair, by id, the pairs of its task whose golds are scored after its dialogues, too.

    Every gold is taken equally often: personas of a task stand in a circle, and each takes those at
    the same distances. All others where there are at most `num_others`.
    """
    of_task: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        of_task[pair.task.id].append(pair)
    found: dict[str, list[Pair]] = {}
    for members in of_task.values():
        size = len(members)
        steps = _steps(size, min(num_others, size - 1))
        for place, pair in enumerate(members):
            found[pair.id] = [members[(place + step) % size] for step in steps]
    return found


def contrasts(scores: Iterable[GoldAfter]) -> dict[str, float]:
    """The contrast of each dialogue, by id, in nats.

    A dialogue is left out if its own gold was not scored, or if no chain of scores ties its effect
    to its gold's (fewer than three personas, scores that failed): then nothing says what its gold
    would have had after another dialogue.
    """
    of_task: dict[str, list[GoldAfter]] = defaultdict(list)
    for score in scores:
        of_task[score.task].append(score)
    found: dict[str, float] = {}
    for entries in of_task.values():
        found |= _of_task(entries)
    return found


def _steps(size: int, num_others: int) -> list[int]:
    """Distances in the circle, spread evenly.

    The last one is moved until the scores tie all personas together: what they tie is classes
    modulo the greatest common divisor of the circle's size and the distances' differences.
    """
    steps: list[int] = []
    for number in range(1, num_others + 1):
        wanted = round(number * size / (num_others + 1))
        free = [step for step in range(1, size) if step not in steps]
        if 1 < number == num_others:
            free = [step for step in free if _tied(size, [*steps, step])]
        steps.append(min(free, key=lambda step: (abs(step - wanted), step)))
    return sorted(steps)


def _tied(size: int, steps: Sequence[int]) -> bool:
    return math.gcd(size, *(step - steps[0] for step in steps)) == 1


def _of_task(entries: Sequence[GoldAfter]) -> dict[str, float]:
    others = [entry for entry in entries if not entry.is_own]
    rows = {name: i for i, name in enumerate(sorted({entry.dialogue_id for entry in others}))}
    golds = sorted({entry.gold_persona for entry in others})
    columns = {name: len(rows) + i for i, name in enumerate(golds)}
    if not others:
        return {}
    design = np.zeros((len(others), len(rows) + len(columns)))
    for line, entry in enumerate(others):
        design[line, rows[entry.dialogue_id]] = design[line, columns[entry.gold_persona]] = 1.0
    values = np.array([entry.logprob for entry in others])
    # Centred: log-probs are -350 +- 50, and only differences matter.
    centre = float(values.mean())
    effects = np.linalg.lstsq(design, values - centre, rcond=None)[0]
    parts = _connected(others, rows, columns)
    found: dict[str, float] = {}
    for entry in entries:
        row, column = rows.get(entry.dialogue_id), columns.get(entry.gold_persona)
        if entry.is_own and row is not None and column is not None and parts[row] == parts[column]:
            found[entry.dialogue_id] = (
                entry.logprob - centre - float(effects[row] + effects[column])
            )
    return found


def _connected(
    others: Sequence[GoldAfter], rows: Mapping[str, int], columns: Mapping[str, int]
) -> list[int]:
    """The part of the graph of scores that each dialogue and each gold belongs to.

    Within a part the sum of a dialogue's and a gold's effect is determined; across parts it isn't.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = [(rows[entry.dialogue_id], columns[entry.gold_persona]) for entry in others]
    size = len(rows) + len(columns)
    graph = coo_array((np.ones(len(ends)), tuple(zip(*ends, strict=True))), shape=(size, size))
    labels: list[int] = connected_components(graph, directed=False)[1].tolist()
    return labels
