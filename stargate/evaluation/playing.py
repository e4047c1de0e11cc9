"""The dialogues that an evaluation plays with one checkpoint.

    pairs -> plans (seeds are the same for every checkpoint) -> dialogues on disk, by pair

What an earlier call has left in the store is not played again: a killed evaluation goes on, and
one with more dialogues per pair plays only the new ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stargate.config.run import RolloutConfig, RunConfig
from stargate.records.schemas import dialogue_from_row
from stargate.rollout.dialogue import plan_dialogues
from stargate.rollout.tasks import run_bounded
from stargate.run_context import Roles, RunContext
from stargate.types import Dialogue, DialoguePlan, Pair


@dataclass(frozen=True)
class EvaluationPairs:
    """What is played: pairs with a gold, and pairs of tasks that need no question.

    The latter show whether the model asks where it should just answer; they are never scored.
    """

    scored: Sequence[Pair]
    needless: Sequence[Pair] = ()

    @property
    def all(self) -> list[Pair]:
        return [*self.scored, *self.needless]


def scope_of(version: int) -> str:
    """The scope of an evaluation's tables of checkpoint m_`version`."""
    return f"eval-m{version}"


def next_personas(pair: Pair, pairs: Sequence[Pair]) -> list[Pair]:
    """The other pairs of the task with a gold, beginning after this one, cyclically."""
    same_task = [p for p in pairs if p.task.id == pair.task.id and p.gold is not None]
    place = next((i for i, p in enumerate(same_task) if p.id == pair.id), len(same_task))
    return same_task[place + 1 :] + same_task[:place]


async def play_all(
    version: int, pairs: EvaluationPairs, roles: Roles, context: RunContext
) -> dict[str, list[Dialogue]]:
    """Plays `evaluation.num_dialogues` dialogues per scored pair and one per other pair.

    Returns them by pair id, by index. A dialogue that can't be finished is dropped and counted.
    """
    scope = scope_of(version)
    plans = plan_evaluation(version, pairs, context.config)
    finished = {
        dialogue.id: dialogue
        for dialogue in map(dialogue_from_row, context.store.read(scope, "dialogues"))
    }
    played: dict[str, list[Dialogue]] = {pair.id: [] for pair in pairs.all}
    with context.progress.stage(f"{scope} rollout", len(plans), "dialogues") as stage:
        stage.begin()
        recorded = context.recorded_rollout(scope, roles, finished, stage)

        async def one(plan: DialoguePlan) -> None:
            if (dialogue := await recorded(plan)) is not None:
                played[plan.pair.id].append(dialogue)

        await run_bounded(plans, context.num_concurrent, one)
    recorded.finish()
    for dialogues in played.values():
        dialogues.sort(key=lambda dialogue: dialogue.index)
    return played


def plan_evaluation(version: int, pairs: EvaluationPairs, config: RunConfig) -> list[DialoguePlan]:
    """What is drawn for the dialogues of m_`version`: those of scored pairs, then of the others."""
    plans = []
    counted = (pairs.scored, config.evaluation.num_dialogues), (pairs.needless, 1)
    for of_kind, num_dialogues in counted:
        rollout = RolloutConfig(num_dialogues=num_dialogues, turns=config.evaluation.turns)
        # One scope of seeds for all checkpoints: m_0 and m_1 meet the same draws, so their
        # difference is less noisy.
        for of_pair in plan_dialogues(of_kind, "eval", config.seed, rollout):
            plans += [
                replace(plan, dialogue_id=f"{scope_of(version)}/{plan.pair.id}/{plan.index}")
                for plan in of_pair
            ]
    return plans
