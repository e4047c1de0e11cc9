"""Where a change happened, and what selection did: tables made from the dialogues themselves.

breakdown           by task or by persona: matched minus shuffled and facts, before and after
compare_selections  what `gold` and `contrastive` selection would choose from the same rollouts
selection_gains     by how much the chosen dialogue's score beats the mean of its N
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import fmean
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
    groups: dict[str, list[DialogueView]] = defaultdict(list)
    for dialogue in data.dialogues:
        task, persona = dialogue.pair.task, dialogue.pair.persona
        if dialogue.source == evaluation.source and task.needs_question:
            groups[task.id if by == "task" else persona.id].append(dialogue)
    rows = []
    for key, dialogues in groups.items():
        pair = dialogues[0].pair
        label = pair.task.text if by == "task" else pair.persona.name
        gain, num_pairs = _shift(dialogues, evaluation, lambda d: d.matched_minus_shuffled)
        facts, _ = _shift(dialogues, evaluation, lambda d: float(len(d.facts)))
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
    dialogues: Iterable[DialogueView], checkpoint: str, value: Value
) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for dialogue in dialogues:
        found = value(dialogue) if dialogue.checkpoint == checkpoint else None
        if found is not None:
            values[dialogue.pair.id].append(found)
    return {pair: fmean(found) for pair, found in values.items()}


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
    # By rule: gold log-prob, contrast and id of the dialogues that it chooses.
    chosen: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    num_agreed = 0
    for one in data.selections:
        candidates = [
            (gold, gold - other, key)
            for gold, other, key in zip(
                one.gold_logprobs, one.other_gold_logprobs, one.candidates, strict=True
            )
            if gold is not None and other is not None
        ]
        if not candidates or len(candidates) < len(one.candidates):
            continue
        # Ties go to the first, as in selection.py.
        by_gold, by_contrast = (max(candidates, key=itemgetter(place)) for place in (0, 1))
        num_agreed += by_gold is by_contrast
        chosen["gold"].append(by_gold)
        chosen["contrastive"].append(by_contrast)
        chosen["mean of all"] += candidates
    if not chosen:
        return None
    choices = tuple(_choice(rule, found, dialogues) for rule, found in chosen.items())
    num_pairs = len(chosen["gold"])
    return SelectionComparison(num_pairs, num_agreed / num_pairs, choices)


def _choice(
    rule: str,
    chosen: Sequence[tuple[float, float, str]],
    dialogues: dict[str, DialogueView],
) -> Choice:
    found = [dialogues[key] for _, _, key in chosen if key in dialogues]
    coverages = [
        len(dialogue.facts & set(dialogue.pair.gold_facts)) / len(set(dialogue.pair.gold_facts))
        for dialogue in found
        if dialogue.pair.gold_facts
    ]
    return Choice(
        rule=rule,
        gold_logprob=_mean(gold for gold, _, _ in chosen),
        contrast=_mean(contrast for _, contrast, _ in chosen),
        facts=_mean(float(len(dialogue.facts)) for dialogue in found),
        coverage=_mean(coverages),
        question_rate=_mean(float("?" in t.question) for dialogue in found for t in dialogue.turns),
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
    return tuple(
        SelectionGain(
            iteration,
            len(found),
            mean_score=fmean(selection.mean_score for selection in found),
            chosen_score=fmean(selection.chosen_score for selection in found),
        )
        for iteration, found in sorted(by_iteration.items())
    )


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None
