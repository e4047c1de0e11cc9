"""Gold log-prob under m_0 on the test pairs, always together with its controls.

    matched               the gold after the pair's own dialogue
    other_gold            another persona's gold for the task after this dialogue: contrast.py
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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from stargate.errors import RecordDropped
from stargate.evaluation.contrast import sampled_others
from stargate.evaluation.playing import next_personas, scope_of
from stargate.protocols import Score
from stargate.records.store import RunStore
from stargate.rollout.question_text import words_of
from stargate.rollout.tasks import task_group
from stargate.run_context import RunContext
from stargate.types import Dialogue, Pair, ScoreRequest

# Controls without a dialogue: no checkpoint changes them, so they are made once.
FIXED = frozenset({"no_dialogue", "persona_given"})


@dataclass(frozen=True, slots=True)
class ControlScore:
    """One scored control: the gold of `pair_id` after some dialogue (its own, another's or none).

    `dialogue_id` is the dialogue that the score is about, for other_gold one with another persona.
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


@dataclass(frozen=True)
class _Wanted:
    """Scores to be made by one request: entries with NaN for their value, a gold each.

    `apart`: the same by a request each, for when they can't be one.
    """

    entries: tuple[ControlScore, ...]
    build: Callable[[], ScoreRequest]
    apart: tuple["_Wanted", ...] = ()


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
    others = sampled_others(pairs, context.config.evaluation.num_other_golds)
    wanted = [item for pair in pairs for item in _wanted(pair, pairs, others, played, context)]
    await _score(scope, f"{scope} score", wanted, found, score, context)


async def score_contrasts(
    scope: str,
    title: str,
    pairs: Sequence[Pair],
    played: Mapping[str, Sequence[Dialogue]],
    score: Score,
    context: RunContext,
) -> None:
    """Of other dialogues than a checkpoint's: what the contrast needs."""
    others = sampled_others(pairs, context.config.evaluation.num_other_golds)
    wanted = [
        item
        for pair in pairs
        for own in played[pair.id]
        for item in _with_others(pair, own, others[pair.id], context)
    ]
    await _score(scope, title, wanted, set(), score, context)


async def _score(
    scope: str,
    title: str,
    wanted: Sequence[_Wanted],
    found: Collection[tuple[str, str, str | None, int | None]],
    score: Score,
    context: RunContext,
) -> None:
    """Scores what is not `found`; it is on disk when this returns."""
    missing = [item for item in wanted if not all(e.key in found for e in item.entries)]
    with context.progress.stage(title, len(missing), "sequences") as stage:
        stage.begin()

        async def one(item: _Wanted) -> None:
            stage.advance(tokens=await make(item))

        async def make(item: _Wanted) -> int:
            """Makes what is missing of an item; returns how many tokens were scored."""
            try:
                request = item.build()
            except RecordDropped as problem:
                if not item.apart:
                    context.counters.drop(problem)
                return sum([await make(part) for part in item.apart])
            [result] = await score([request])
            scored = [
                replace(entry, gold_logprob=value, num_gold_tokens=len(tokens))
                for entry, value, tokens in zip(
                    item.entries, result.sums, result.token_logprobs, strict=True
                )
                if entry.key not in found
            ]
            await context.store.append(scope, "controls", [asdict(entry) for entry in scored])
            return len(request.context_ids) + sum(map(len, request.golds))

        async with task_group() as group:
            for item in missing:
                group.create_task(one(item))


def read_controls(store: RunStore, scope: str) -> list[ControlScore]:
    """The table of one scope; empty if there is none."""
    return [ControlScore(**row) for row in store.read(scope, "controls")]


def gains(ladder: Mapping[int, float | None], num_turns: int) -> list[float | None]:
    """What each turn added, from gold log-probs after 0, 1, ... turns; None where one lacks."""
    steps = ((ladder.get(turn - 1), ladder.get(turn)) for turn in range(1, num_turns + 1))
    return [None if b is None or a is None else a - b for b, a in steps]


def shuffled_partner(
    pair: Pair, index: int, pairs: Sequence[Pair], played: Mapping[str, Sequence[Dialogue]]
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
    pair: Pair,
    pairs: Sequence[Pair],
    others: Mapping[str, Sequence[Pair]],
    played: dict[str, list[Dialogue]],
    context: RunContext,
) -> Iterator[_Wanted]:
    """Every control of one pair."""
    after, with_persona = context.scoring.after_dialogue, context.scoring.with_persona
    yield _one("no_dialogue", partial(after, pair.id, pair, ()), pair)
    yield _one("persona_given", partial(with_persona, pair.id, pair), pair)
    for own in played[pair.id]:
        build = partial(after, own.id, pair)
        yield from _with_others(pair, own, others[pair.id], context)
        other = shuffled_partner(pair, own.index, pairs, played)
        if other is None:
            problem = "no other persona for this task"
            context.counters.drop(RecordDropped("no_shuffle_partner", own.id, problem))
        else:
            yield _one("shuffled", partial(build, other.turns), pair, own, other)
        if own.index >= context.config.evaluation.num_detailed_dialogues:
            continue
        given = partial(with_persona, own.id, pair, own.turns)
        yield _one("persona_and_dialogue", given, pair, own)
        for number in range(1, len(own.turns)):  # after the last turn: that is `matched`
            yield _one("after_turn", partial(build, own.turns[:number]), pair, own, None, number)


def _with_others(
    pair: Pair, own: Dialogue, others: Sequence[Pair], context: RunContext
) -> Iterator[_Wanted]:
    """The own gold and other personas' golds after a dialogue, in one request.

    A gold that calls its person by name would be unlikely under another name: it is scored under
    its own pair's, by itself.
    """
    after = context.scoring.after_dialogue
    golds: list[Pair] = [pair]
    named: list[Pair] = []
    for other in others:
        (named if _names_its_person(other) else golds).append(other)
    apart = [
        _one(
            "matched" if of is pair else "other_gold",
            partial(after, own.id, replace(pair, gold=of.gold), own.turns),
            of,
            own,
        )
        for of in golds
    ]
    entries = tuple(entry for part in apart for entry in part.entries)
    texts = [str(of.gold) for of in golds[1:]]
    yield _Wanted(entries, partial(after, own.id, pair, own.turns, texts), tuple(apart))
    for of in named:
        yield _one("other_gold", partial(after, own.id, of, own.turns), of, own)


def _names_its_person(pair: Pair) -> bool:
    """Whether the gold holds a word of the persona's name."""
    return not set(words_of(str(pair.gold))).isdisjoint(words_of(pair.persona.name))


def _one(
    control: str,
    build: Callable[[], ScoreRequest],
    pair: Pair,
    own: Dialogue | None = None,
    other: Dialogue | None = None,
    num_turns: int | None = None,
) -> _Wanted:
    return _Wanted((_unscored(control, pair, own, other, num_turns),), build)


def _unscored(
    control: str,
    pair: Pair,
    own: Dialogue | None = None,
    other: Dialogue | None = None,
    num_turns: int | None = None,
) -> ControlScore:
    own_id, other_id = own.id if own else None, other.id if other else None
    return ControlScore(control, pair.id, own_id, other_id, math.nan, 0, num_turns)
