"""The evaluation of one checkpoint: play the test pairs, score every control, respond.

    m_t in the Questioner's engines -> dialogues -> controls -> final responses (for a judge)

All of it lands in the scope `eval-m<t>`; measures are made from these tables (measures.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stargate.evaluation.controls import ControlScore, score_all
from stargate.evaluation.playing import EvaluationPairs, play_all, scope_of
from stargate.evaluation.responding import respond_to_all
from stargate.run_context import Roles, RunContext

# What a run logs of a checkpoint.
_LOGGED = (
    *("gold_logprob", "shuffled", "matched_minus_shuffled", "no_dialogue", "persona_given"),
    *("question_rate", "facts_per_dialogue"),
)


async def evaluate(
    version: int,
    pairs: EvaluationPairs,
    roles: Roles,
    context: RunContext,
    fixed: Sequence[ControlScore] = (),
) -> list[ControlScore]:
    """Plays and scores the test pairs with m_`version`, and responds where a judge will ask.

    `fixed`: the controls without a dialogue of another checkpoint's evaluation of these pairs.
    Returns all controls' scores.
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
    return scores


def plain_means(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What a run logs of a checkpoint, from its part of eval.json: means (nats) with their plain
    standard errors `..._se` and numbers `..._n`.
    """
    nothing = {"mean": None, "standard_error": None, "n": 0}
    found = {name: measured.get(name, nothing) for name in _LOGGED}
    means: dict[str, Any] = {
        "num_dialogues": found["facts_per_dialogue"]["n"],
        "num_turns": found["question_rate"]["n"],
    }
    for name, one in found.items():
        means |= {name: one["mean"], f"{name}_se": one["standard_error"], f"{name}_n": one["n"]}
    return means
