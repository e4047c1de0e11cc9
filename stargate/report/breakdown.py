"""Where a change happened, and what selection did: tables made from the dialogues themselves.

breakdown           by task or by persona: matched minus shuffled and facts, before and after
compare_selections  what `gold` and `contrastive` selection would choose from the same rollouts
selection_gains     by how much the chosen dialogue's score beats the mean of its N
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stargate.report.records import TRAIN, DialogueView, Evaluation, ReportData, SelectionView

Value = Callable[[DialogueView], float | None]


@dataclass(frozen=True, slots=True)
class Shift:
    """A mean at the first and the last checkpoint, over the pairs that both have."""

    before: float | None
    after: float | None

    @property
    def change(self) -> float | None:
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class BreakdownRow:
    """One task or persona. `num_pairs` counts the pairs behind matched minus shuffled."""

    id: str
    label: str
    num_pairs: int
    matched_minus_shuffled: Shift
    facts: Shift


def breakdown(
    data: ReportData, evaluation: Evaluation, by: Literal["task", "persona"]
) -> tuple[BreakdownRow, ...]:
    """A row per task (that needs a question) or persona, the largest gain first.

    With one checkpoint `after` is None, and the rows are in order of `before`.
    """
    texts = data.texts[evaluation.source]
    groups: dict[str, list[DialogueView]] = defaultdict(list)
    for dialogue in data.dialogues:
        task = texts.tasks.get(dialogue.task_id)
        if dialogue.source == evaluation.source and (task is None or task.needs_question):
            groups[dialogue.task_id if by == "task" else dialogue.persona_id].append(dialogue)
    rows = []
    for key, dialogues in groups.items():
        label = texts.tasks[key].text if by == "task" else texts.personas[key].name
        gain, num_pairs = _shift(dialogues, evaluation, lambda d: d.matched_minus_shuffled)
        facts, _ = _shift(dialogues, evaluation, lambda d: float(d.num_facts))
        rows.append(BreakdownRow(key, label, num_pairs, gain, facts))
    return tuple(sorted(rows, key=_order))


def _order(row: BreakdownRow) -> tuple[bool, float, str]:
    shift = row.matched_minus_shuffled
    value = shift.before if shift.change is None else shift.change
    return (value is None, -(value or 0.0), row.id)


def _shift(
    dialogues: Iterable[DialogueView], evaluation: Evaluation, value: Value
) -> tuple[Shift, int]:
    """The mean over pairs of the pairs' means, so that a pair weighs the same everywhere."""
    before = _pair_means(dialogues, evaluation.first, value)
    if evaluation.first == evaluation.last:
        return Shift(_mean(before.values()), None), len(before)
    after = _pair_means(dialogues, evaluation.last, value)
    both = [pair for pair in before if pair in after]
    shift = Shift(_mean(before[pair] for pair in both), _mean(after[pair] for pair in both))
    return shift, len(both)


def _pair_means(
    dialogues: Iterable[DialogueView], checkpoint: str | None, value: Value
) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for dialogue in dialogues:
        found = value(dialogue) if dialogue.checkpoint == checkpoint else None
        if found is not None:
            values[dialogue.pair_id].append(found)
    return {pair: sum(found) / len(found) for pair, found in values.items()}


@dataclass(frozen=True, slots=True)
class Choice:
    """What one rule's chosen dialogues are like, as means; None where nothing tells."""

    rule: str  # "gold", "contrastive" or "mean of all"
    gold_logprob: float | None
    contrast: float | None
    facts: float | None
    coverage: float | None
    question_rate: float | None


@dataclass(frozen=True, slots=True)
class SelectionComparison:
    """Over the pairs in which every candidate was scored on other personas' golds too."""

    num_pairs: int
    agreement: float  # share of pairs in which both rules choose the same dialogue
    choices: tuple[Choice, ...]


def compare_selections(data: ReportData) -> SelectionComparison | None:
    """What each rule would choose; None where no other personas' golds were scored."""
    dialogues = {d.id: d for d in data.dialogues if d.source == TRAIN}
    chosen: dict[str, list[tuple[SelectionView, int]]] = defaultdict(list)
    agreed = num_pairs = 0
    for selection in data.selections:
        contrasts = _contrasts(selection)
        if contrasts is None:
            continue
        golds = [value or 0.0 for value in selection.gold_logprobs]
        # Ties go to the first, as in selection.py.
        by_gold, by_contrast = golds.index(max(golds)), contrasts.index(max(contrasts))
        num_pairs += 1
        agreed += by_gold == by_contrast
        chosen["gold"].append((selection, by_gold))
        chosen["contrastive"].append((selection, by_contrast))
        chosen["mean of all"] += [(selection, place) for place in range(len(golds))]
    if not num_pairs:
        return None
    choices = tuple(_choice(rule, places, dialogues, data) for rule, places in chosen.items())
    return SelectionComparison(num_pairs, agreed / num_pairs, choices)


def _contrasts(selection: SelectionView) -> list[float] | None:
    """Gold minus other golds by candidate; None unless every candidate has both."""
    contrasts = []
    for gold, other in zip(selection.gold_logprobs, selection.other_gold_logprobs, strict=True):
        if gold is None or other is None:
            return None
        contrasts.append(gold - other)
    return contrasts or None


def _choice(
    rule: str,
    places: Sequence[tuple[SelectionView, int]],
    dialogues: dict[str, DialogueView],
    data: ReportData,
) -> Choice:
    golds = data.texts[TRAIN].golds
    found = [
        dialogue
        for selection, place in places
        if (dialogue := dialogues.get(selection.candidates[place])) is not None
    ]
    coverages = []
    for dialogue in found:
        gold = golds.get(dialogue.pair_id)
        if gold is not None and gold.facts:
            told = {index for turn in dialogue.turns for index in turn.elicited}
            coverages.append(len(told & set(gold.facts)) / len(set(gold.facts)))
    return Choice(
        rule=rule,
        gold_logprob=_mean(selection.gold_logprobs[place] for selection, place in places),
        contrast=_mean(
            contrasts[place] for selection, place in places if (contrasts := _contrasts(selection))
        ),
        facts=_mean(float(dialogue.num_facts) for dialogue in found),
        coverage=_mean(coverages),
        question_rate=_mean(float(t.is_question) for dialogue in found for t in dialogue.turns),
    )


@dataclass(frozen=True, slots=True)
class SelectionGain:
    """Scores of an iteration's pairs, in the unit of the selection that was made (nats)."""

    iteration: int
    num_pairs: int
    mean_score: float  # over all candidates, pair by pair
    chosen_score: float

    @property
    def gain(self) -> float:
        """What choosing brought over taking any dialogue."""
        return self.chosen_score - self.mean_score


def selection_gains(data: ReportData) -> tuple[SelectionGain, ...]:
    """By iteration; an iteration without a selection is not there."""
    by_iteration: dict[int, list[SelectionView]] = defaultdict(list)
    for selection in data.selections:
        by_iteration[selection.iteration].append(selection)
    gains = []
    for iteration, selections in sorted(by_iteration.items()):
        means = [sum(s.scores) / len(s.scores) for s in selections]
        chosen = [s.scores[s.candidates.index(s.chosen)] for s in selections]
        count = len(selections)
        gains.append(SelectionGain(iteration, count, sum(means) / count, sum(chosen) / count))
    return tuple(gains)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
