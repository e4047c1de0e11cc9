"""Gold log-prob under m_0 on the test pairs, always together with its controls.

    matched               the gold after the pair's own dialogue
    shuffled              the same gold (and name) after a dialogue with another persona about the
                          same task
    no_dialogue           the gold after the opening alone
    persona_given         the gold with the persona given outright
    persona_and_dialogue  the gold with the persona given outright and the own dialogue
    after_turn            the gold after the first turns of the own dialogue

matched minus shuffled is the part of the gain that is about the person: a dialogue's mere form
cancels out. The last two are costlier and made for the first `num_detailed_dialogues` of a pair.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from stargate.errors import RecordDropped
from stargate.evaluation.playing import next_personas, scope_of
from stargate.protocols import Score
from stargate.records.store import RunStore
from stargate.rollout.tasks import task_group
from stargate.run_context import RunContext
from stargate.types import Dialogue, Pair, ScoreRequest

# Controls without a dialogue: no checkpoint changes them, so they are made once.
FIXED = frozenset({"no_dialogue", "persona_given"})


@dataclass(frozen=True, slots=True)
class ControlScore:
    """One scored control: the gold of `pair_id` after some dialogue (its own, another's or none).

    `gold_logprob` is a sum over `num_gold_tokens`, in nats. `num_turns` is how many turns of the
    dialogue were in view, for after_turn only.
    """

    control: str
    pair_id: str
    dialogue_id: str | None
    other_dialogue_id: str | None
    gold_logprob: float
    num_gold_tokens: int
    num_turns: int | None = None

    @property
    def key(self) -> tuple[str, str, str | None, int | None]:
        """What this score is of; a table has each once."""
        return self.control, self.pair_id, self.dialogue_id, self.num_turns


# A score to be made, with NaN for its value, and what makes its request.
_Wanted = tuple[ControlScore, Callable[[], ScoreRequest]]


async def score_all(
    version: int,
    pairs: Sequence[Pair],
    played: dict[str, list[Dialogue]],
    score: Score,
    context: RunContext,
) -> None:
    """All controls of a checkpoint's dialogues, on disk when this returns.

    What the store has already is not scored again, and neither are the controls without a dialogue
    that m_0's evaluation made.
    """
    scope = scope_of(version)
    found = {entry.key for entry in read_controls(context.store, scope)}
    known = [
        entry
        for entry in read_controls(context.store, scope_of(0))
        if entry.control in FIXED and entry.key not in found
    ]
    known.sort(key=lambda entry: (entry.pair_id, entry.control))
    await context.store.append(scope, "controls", [asdict(entry) for entry in known])
    found |= {entry.key for entry in known}
    wanted = [item for pair in pairs for item in _wanted(pair, pairs, played, context)]
    missing = [(unscored, build) for unscored, build in wanted if unscored.key not in found]
    with context.progress.stage(f"{scope} score", len(missing), "sequences") as stage:
        stage.begin()

        async def one(unscored: ControlScore, build: Callable[[], ScoreRequest]) -> None:
            try:
                request = build()
            except RecordDropped as problem:
                context.counters.drop(problem)
                stage.advance()
                return
            [result] = await score([request])
            [value], [tokens] = result.sums, result.token_logprobs
            entry = replace(unscored, gold_logprob=value, num_gold_tokens=len(tokens))
            await context.store.append(scope, "controls", [asdict(entry)])
            stage.advance(tokens=len(request.context_ids) + len(request.golds[0]))

        async with task_group() as group:
            for unscored, build in missing:
                group.create_task(one(unscored, build))


def read_controls(store: RunStore, scope: str) -> list[ControlScore]:
    """The table of one scope; empty if there is none."""
    return [ControlScore(**row) for row in store.read(scope, "controls")]


def gains(ladder: Mapping[int, float | None], num_turns: int) -> list[float | None]:
    """What each turn added, from gold log-probs after 0, 1, ... turns; None where one lacks."""
    steps: list[float | None] = []
    for turn in range(1, num_turns + 1):
        before, after = ladder.get(turn - 1), ladder.get(turn)
        steps.append(None if before is None or after is None else after - before)
    return steps


def shuffled_partner(
    pair: Pair, index: int, pairs: Sequence[Pair], played: dict[str, list[Dialogue]]
) -> Dialogue | None:
    """Another persona's dialogue about the same task: the next persona's `index`-th, cyclically.

    None if no other persona has a dialogue of that index about the task.
    """
    for other in next_personas(pair, pairs):
        for dialogue in played.get(other.id, []):
            if dialogue.index == index:
                return dialogue
    return None


def _wanted(
    pair: Pair, pairs: Sequence[Pair], played: dict[str, list[Dialogue]], context: RunContext
) -> list[_Wanted]:
    """Every control of one pair."""
    after, with_persona = context.scoring.after_dialogue, context.scoring.with_persona
    wanted: list[_Wanted] = [
        (_unscored("no_dialogue", pair), partial(after, pair.id, pair, ())),
        (_unscored("persona_given", pair), partial(with_persona, pair.id, pair)),
    ]
    for own in played[pair.id]:
        build = partial(after, own.id, pair)
        wanted.append((_unscored("matched", pair, own), partial(build, own.turns)))
        other = shuffled_partner(pair, own.index, pairs, played)
        if other is None:
            problem = "no other persona for this task"
            context.counters.drop(RecordDropped("no_shuffle_partner", own.id, problem))
        else:
            wanted.append((_unscored("shuffled", pair, own, other), partial(build, other.turns)))
        if own.index >= context.config.evaluation.num_detailed_dialogues:
            continue
        given = partial(with_persona, own.id, pair, own.turns)
        wanted.append((_unscored("persona_and_dialogue", pair, own), given))
        for number in range(1, len(own.turns)):  # after the last turn: that is `matched`
            unscored = _unscored("after_turn", pair, own, num_turns=number)
            wanted.append((unscored, partial(build, own.turns[:number])))
    return wanted


def _unscored(
    control: str,
    pair: Pair,
    own: Dialogue | None = None,
    other: Dialogue | None = None,
    num_turns: int | None = None,
) -> ControlScore:
    own_id, other_id = own.id if own else None, other.id if other else None
    return ControlScore(control, pair.id, own_id, other_id, math.nan, 0, num_turns)
