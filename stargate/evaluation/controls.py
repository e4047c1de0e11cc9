"""Gold log-prob under m_0 on the test pairs, always together with its controls.

    matched        the gold after the pair's own dialogue
    shuffled       the same gold (and name) after a dialogue with another persona about the same
    task
    no_dialogue    the gold after the opening alone
    persona_given  the gold with the persona given outright

matched minus shuffled is the part of the gain that is about the person: a dialogue's mere form
cancels out.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from stargate.config import RolloutConfig
from stargate.dialogue import plan_dialogues, play
from stargate.errors import RecordDropped
from stargate.iteration import Roles, Workbench
from stargate.progress import Stage
from stargate.protocols import Score
from stargate.store import dialogue_row
from stargate.tasks import task_group
from stargate.types import Dialogue, DialoguePlan, Pair, ScoreRequest, ScoreResult


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its plain standard error over `n` values.

    `None` where there is nothing to average.
    """

    mean: float | None
    standard_error: float | None
    n: int


@dataclass(frozen=True, slots=True)
class ControlScore:
    """One scored control:

    the gold of `pair_id` after some dialogue (its own, another's or none).
    """

    control: str
    pair_id: str
    dialogue_id: str | None
    other_dialogue_id: str | None
    gold_logprob: float
    num_gold_tokens: int


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint's measures by name (see `summarise`), and the scores behind them."""

    measures: dict[str, Any]
    scores: tuple[ControlScore, ...]

    @property
    def fixed(self) -> tuple[ControlScore, ...]:
        """The controls without a dialogue: no checkpoint changes them, so they are made once."""
        return tuple(score for score in self.scores if score.dialogue_id is None)


async def evaluate(
    version: int,
    pairs: Sequence[Pair],
    roles: Roles,
    bench: Workbench,
    fixed: Sequence[ControlScore] = (),
) -> Evaluation:
    """Plays and scores the test pairs with m_`version`.

    `fixed`: the controls without a dialogue of an earlier evaluation of these pairs, if any.
    """
    scope = f"eval-m{version}"
    with bench.tally.stage(f"eval_m{version}.rollout"):
        played = await _play_all(scope, pairs, roles, bench)
    with bench.tally.stage(f"eval_m{version}.score"):
        scores = await _score_all(scope, pairs, played, roles.score, bench, fixed)
    bench.store.compact(scope)
    dialogues = [dialogue for of_pair in played.values() for dialogue in of_pair]
    return Evaluation(summarise(dialogues, scores), tuple(scores))


def shuffled_partner(
    pair: Pair, index: int, pairs: Sequence[Pair], played: dict[str, list[Dialogue]]
) -> Dialogue | None:
    """Another persona's dialogue about the same task: the next persona's `index`-th, cyclically.

    None if no other persona has a dialogue of that index about the task.
    """
    same_task = [p for p in pairs if p.task.id == pair.task.id]
    place = next(i for i, p in enumerate(same_task) if p.id == pair.id)
    for step in range(1, len(same_task)):
        other = same_task[(place + step) % len(same_task)]
        for dialogue in played.get(other.id, []):
            if dialogue.index == index:
                return dialogue
    return None


def summarise(dialogues: Sequence[Dialogue], scores: Sequence[ControlScore]) -> dict[str, Any]:
    """Means over dialogues (nats), with plain standard errors; clustered intervals are `stargate
    eval`'s matter.
    """
    by_control: dict[str, list[float]] = defaultdict(list)
    matched: dict[str, float] = {}
    shuffled: dict[str, float] = {}
    for entry in scores:
        by_control[entry.control].append(entry.gold_logprob)
        if entry.control == "matched" and entry.dialogue_id:
            matched[entry.dialogue_id] = entry.gold_logprob
        if entry.control == "shuffled" and entry.dialogue_id:
            shuffled[entry.dialogue_id] = entry.gold_logprob
    differences = [matched[key] - shuffled[key] for key in matched if key in shuffled]
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    estimates = {
        "gold_logprob": estimate(by_control["matched"]),
        "shuffled": estimate(by_control["shuffled"]),
        "matched_minus_shuffled": estimate(differences),
        "no_dialogue": estimate(by_control["no_dialogue"]),
        "persona_given": estimate(by_control["persona_given"]),
        "question_rate": estimate([float(turn.is_question) for turn in turns]),
        "facts_per_dialogue": estimate([float(len(d.elicited)) for d in dialogues]),
    }
    result: dict[str, Any] = {"num_dialogues": len(dialogues), "num_turns": len(turns)}
    for name, value in estimates.items():
        result[name] = value.mean
        result[f"{name}_se"] = value.standard_error
        result[f"{name}_n"] = value.n
    return result


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of the mean (sample standard deviation over sqrt n)."""
    n = len(values)
    if n == 0:
        return Estimate(None, None, 0)
    mean = sum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(mean, math.sqrt(variance / n), n)


async def _play_all(
    scope: str, pairs: Sequence[Pair], roles: Roles, bench: Workbench
) -> dict[str, list[Dialogue]]:
    settings = bench.config.evaluation
    rollout = RolloutConfig(num_dialogues=settings.num_dialogues, turns=(settings.num_turns,))
    # One scope of seeds for all checkpoints: m_0 and m_1 meet the same draws, so their difference
    # is less noisy.
    planned = plan_dialogues(pairs, "eval", bench.config.seed, rollout)
    plans = [_in_scope(plan, scope) for of_pair in planned for plan in of_pair]
    played: dict[str, list[Dialogue]] = {pair.id: [] for pair in pairs}
    questioner = bench.questioner(roles.generate)
    slots = asyncio.Semaphore(bench.config.rollout.max_concurrent_dialogues)

    async def one(plan: DialoguePlan, stage: Stage) -> None:
        async with slots:
            try:
                dialogue = await play(plan, questioner, roles.roleplay)
            except RecordDropped as problem:
                bench.tally.drop(problem)
                stage.advance()
                return
        await bench.store.append(scope, "dialogues", [dialogue_row(plan.pair, dialogue)])
        played[plan.pair.id].append(dialogue)
        stage.advance(tokens=bench.tally.finished_dialogue(scope, dialogue))

    with bench.progress.stage(f"{scope} rollout", len(plans), "dialogues") as stage:
        stage.begin()
        async with task_group() as group:
            for plan in plans:
                group.create_task(one(plan, stage))
    for dialogues in played.values():
        dialogues.sort(key=lambda dialogue: dialogue.index)
    return played


def _in_scope(plan: DialoguePlan, scope: str) -> DialoguePlan:
    return DialoguePlan(
        dialogue_id=f"{scope}/{plan.pair.id}/{plan.index}",
        pair=plan.pair,
        index=plan.index,
        num_turns=plan.num_turns,
        seed=plan.seed,
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A control to score."""

    control: str
    pair_id: str
    dialogue_id: str | None
    other_dialogue_id: str | None
    request: ScoreRequest

    def scored(self, result: ScoreResult) -> ControlScore:
        return ControlScore(
            self.control,
            self.pair_id,
            self.dialogue_id,
            self.other_dialogue_id,
            result.sums[0],
            len(result.token_logprobs[0]),
        )


async def _score_all(
    scope: str,
    pairs: Sequence[Pair],
    played: dict[str, list[Dialogue]],
    score: Score,
    bench: Workbench,
    fixed: Sequence[ControlScore],
) -> list[ControlScore]:
    wanted = [item for pair in pairs for item in _with_dialogues(pair, pairs, played, bench)]
    if not fixed:
        wanted += [item for pair in pairs for item in _without_dialogue(pair, bench)]
    scores = list(fixed)
    with bench.progress.stage(f"{scope} score", len(wanted), "sequences") as stage:
        stage.begin()

        async def one(item: _Wanted) -> None:
            [result] = await score([item.request])
            scores.append(item.scored(result))
            stage.advance(tokens=len(item.request.context_ids) + len(item.request.golds[0]))

        async with task_group() as group:
            for item in wanted:
                group.create_task(one(item))
    scores.sort(key=lambda entry: (entry.pair_id, entry.dialogue_id or "", entry.control))
    await bench.store.append(scope, "controls", [asdict(entry) for entry in scores])
    return scores


def _without_dialogue(pair: Pair, bench: Workbench) -> list[_Wanted]:
    """The pair's controls that need no dialogue."""
    builds = {
        "no_dialogue": partial(bench.scoring.after_dialogue, pair.id, pair, ()),
        "persona_given": partial(bench.scoring.with_persona, pair.id, pair),
    }
    requests = ((control, _built(build, bench)) for control, build in builds.items())
    return [_Wanted(c, pair.id, None, None, request) for c, request in requests if request]


def _with_dialogues(
    pair: Pair, pairs: Sequence[Pair], played: dict[str, list[Dialogue]], bench: Workbench
) -> list[_Wanted]:
    """The gold after each of the pair's dialogues, and after another persona's instead."""
    wanted: list[_Wanted] = []
    for own in played[pair.id]:
        build = partial(bench.scoring.after_dialogue, own.id, pair)
        if matched := _built(partial(build, own.turns), bench):
            wanted.append(_Wanted("matched", pair.id, own.id, None, matched))
        other = shuffled_partner(pair, own.index, pairs, played)
        if other is None:
            bench.tally.drop(
                RecordDropped("no_shuffle_partner", own.id, "no other persona for this task")
            )
        elif shuffled := _built(partial(build, other.turns), bench):
            wanted.append(_Wanted("shuffled", pair.id, own.id, other.id, shuffled))
    return wanted


def _built(build: Callable[[], ScoreRequest], bench: Workbench) -> ScoreRequest | None:
    """A request, or None where it can't be made: that is counted, and the others stand."""
    try:
        return build()
    except RecordDropped as problem:
        bench.tally.drop(problem)
        return None
