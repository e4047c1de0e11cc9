"""One dialogue's turn loop: question, answer, question, answer, ... K times.

    plan -> [Questioner generates -> Roleplayer answers] x K -> Dialogue

A dialogue awaits only its own next turn and keeps its state in local variables: any number run at
once, none waits for another, and nothing of one conversation can reach another.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from stargate.config.run import RolloutConfig
from stargate.protocols import Ask, Roleplay
from stargate.rollout.deadline import TurnWatch, session_of
from stargate.rollout.slow_start import SlowStart
from stargate.seeds import derive_seed
from stargate.types import (
    Dialogue,
    DialoguePlan,
    Pair,
    Turn,
)


def plan_dialogues(
    pairs: Sequence[Pair], scope: str, seed: int, config: RolloutConfig
) -> list[list[DialoguePlan]]:
    """Draws K once per pair (uniform over `config.turns`, shared by its N dialogues) and a seed per
    dialogue.

    `scope` names the stage ("t0", "eval-m1"). The draws depend on seed, scope and ids alone.
    Returns N plans per pair.
    """
    return [_plan_pair(pair, scope, seed, config) for pair in pairs]


def _plan_pair(pair: Pair, scope: str, seed: int, config: RolloutConfig) -> list[DialoguePlan]:
    num_turns = Random(derive_seed(seed, scope, pair.id, "K")).choice(config.turns)
    return [
        DialoguePlan(
            dialogue_id=f"{scope}/{pair.id}/{index}",
            pair=pair,
            index=index,
            num_turns=num_turns,
            seed=derive_seed(seed, scope, pair.id, index),
        )
        for index in range(config.num_dialogues)
    ]


async def play(
    plan: DialoguePlan,
    questioner: Ask,
    roleplay: Roleplay,
    watch: TurnWatch,
    start: SlowStart | None = None,
) -> Dialogue:
    """Plays one dialogue of K turns, or fewer if the user ends it, when `start` lets it begin.
    Raises RecordDropped when it can't be finished.

    A turn that `watch` finds late is begun anew; the turns before it stand.
    """
    async with (start or SlowStart(0)).dialogue() as wrote_question:
        return await _play(plan, questioner, roleplay, watch, wrote_question)


async def _play(
    plan: DialoguePlan,
    questioner: Ask,
    roleplay: Roleplay,
    watch: TurnWatch,
    wrote_question: Callable[[], None],
) -> Dialogue:
    started = time.perf_counter()
    turns: list[Turn] = []
    versions: set[int] = set()
    for number in range(plan.num_turns):
        one_turn = partial(_play_turn, plan, tuple(turns), questioner, roleplay, wrote_question)
        what = f"{plan.dialogue_id} turn {number + 1}"
        turn, version, final = await watch.run(one_turn, what)
        versions.add(version)
        turns.append(turn)
        if final:
            break
    return Dialogue(
        id=plan.dialogue_id,
        pair_id=plan.pair.id,
        index=plan.index,
        num_turns=plan.num_turns,
        seed=plan.seed,
        # A push in the middle of a dialogue would mix policies: the oldest version is what the row
        # claims.
        policy_version=min(versions),
        turns=tuple(turns),
        seconds=time.perf_counter() - started,
    )


async def _play_turn(
    plan: DialoguePlan,
    turns: Sequence[Turn],
    questioner: Ask,
    roleplay: Roleplay,
    wrote_question: Callable[[], None],
    attempt: int,
) -> tuple[Turn, int, bool]:
    """The turn after `turns`, the policy version that asked, and whether the user ended it so."""
    session = session_of(plan.dialogue_id, attempt)
    question = await questioner(plan, turns, session)
    wrote_question()
    answer = await roleplay(
        plan.pair,
        turns,
        question.text.strip(),
        session=session,
        seed=derive_seed(plan.seed, "a", len(turns)),
    )
    turn = Turn(
        question=question.text.strip(),
        question_ids=question.token_ids,
        question_stop=question.stop,
        answer=answer.text,
        answer_ids=answer.token_ids,
        answer_stop=answer.stop,
        elicited=answer.elicited,
        question_logprobs=question.logprobs,
        retracted=answer.retracted,
    )
    return turn, question.policy_version, answer.final
