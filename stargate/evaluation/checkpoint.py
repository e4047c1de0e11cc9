"""The evaluation of one checkpoint: play the test pairs, score every control, respond.

    m_t in the Questioner's engines -> dialogues -> controls -> final responses (for a judge)

All of it lands in the scope `eval-m<t>`; measures with intervals are made from these tables
(measures.py). What is returned here are the plain means that a run logs as it goes.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stargate.evaluation.controls import FIXED, ControlScore, score_all
from stargate.evaluation.playing import EvaluationPairs, play_all, scope_of
from stargate.evaluation.responding import respond_to_all
from stargate.run_context import Roles, RunContext
from stargate.types import Dialogue


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its plain standard error over `n` values.

    `None` where there is nothing to average.
    """

    mean: float | None
    standard_error: float | None
    n: int


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint's plain means by name (see `summarise`), and the scores behind them."""

    measures: dict[str, Any]
    scores: tuple[ControlScore, ...]

    @property
    def fixed(self) -> tuple[ControlScore, ...]:
        """The controls without a dialogue: no checkpoint changes them, so they are made once."""
        return tuple(score for score in self.scores if score.control in FIXED)


async def evaluate(
    version: int,
    pairs: EvaluationPairs,
    roles: Roles,
    context: RunContext,
    fixed: Sequence[ControlScore] = (),
) -> Evaluation:
    """Plays and scores the test pairs with m_`version`, and responds where a judge will ask.

    `fixed`: the controls without a dialogue of another checkpoint's evaluation of these pairs.
    """
    scope = scope_of(version)
    with context.counters.stage(f"eval_m{version}.rollout"):
        played = await play_all(version, pairs, roles, context)
    with context.counters.stage(f"eval_m{version}.score"):
        scores = await score_all(version, pairs.scored, played, roles.score, context, fixed)
    if context.config.evaluation.judge is not None:
        with context.counters.stage(f"eval_m{version}.respond"):
            await respond_to_all(version, version, pairs.scored, played, roles.generate, context)
    context.store.compact(scope)
    dialogues = [dialogue for pair in pairs.scored for dialogue in played[pair.id]]
    return Evaluation(summarise(dialogues, scores), tuple(scores))


def summarise(dialogues: Sequence[Dialogue], scores: Sequence[ControlScore]) -> dict[str, Any]:
    """Means over dialogues (nats), with plain standard errors."""
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
