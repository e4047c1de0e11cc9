"""The steps of one pair, and many pairs side by side: play, score, select, respond, examples.

    N dialogues by m_t -> scores by m_0 -> the algorithm selects -> responses by m_t -> examples

A pair goes through its steps by itself; none waits for another pair, unless engines and scorer
share cores (`overlap` off): then a wave of pairs finishes one step before the next step begins,
because two busy thread teams on one core run ten times slower. Every record is on disk before the
next step counts on it, and what is on disk already is not made again.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import islice

from stargate.algorithm.base import IterationAlgorithm, PairAlgorithm, ScoredGroup
from stargate.algorithm.score_requests import to_dialogue_score, to_turn_scores
from stargate.algorithm.selection import other_golds
from stargate.errors import RecordDropped
from stargate.learning_steps import learn_from_all, with_reference
from stargate.monitoring.progress import Stage
from stargate.records.history import Finished, read_finished
from stargate.records.schemas import record_row
from stargate.rollout.dialogue import plan_dialogues
from stargate.rollout.question_text import is_mostly_asking
from stargate.rollout.recorded import RecordedRollout
from stargate.rollout.tasks import run_bounded
from stargate.run_context import Roles, RunContext
from stargate.seeds import derive_seed
from stargate.types import (
    Dialogue,
    DialogueScore,
    Generation,
    Pair,
    ScoreRequest,
    Selection,
    TrainingExample,
    TurnScore,
)


async def play_pairs(scope: str, pairs: Sequence[Pair], roles: Roles, context: RunContext) -> None:
    """Plays, scores, selects and responds for every pair; the records are in the store when this
    returns. What the store has of this scope already is not made again.
    """
    config = context.config
    pairs_by_task: dict[str, list[Pair]] = {}
    for pair in pairs:
        pairs_by_task.setdefault(pair.task.id, []).append(pair)
    per_pair = config.rollout.num_dialogues
    num_dialogues = len(pairs) * per_pair
    done = read_finished(context.store, scope)
    with (
        context.progress.stage("rollout", num_dialogues, "dialogues") as rollout,
        context.progress.stage("score", num_dialogues, "dialogues") as score,
        context.progress.stage("respond", len(pairs), "pairs") as respond,
    ):
        recorded = context.recorded_rollout(scope, roles, done.dialogues, rollout)
        stages = {"rollout": rollout, "score": score, "respond": respond}
        steps = _PairSteps(scope, pairs_by_task, done, roles, context, recorded, stages)
        if context.overlap:
            # Enough pairs under way to keep every slot busy while others score; no more are in
            # memory.
            under_way = 2 * -(-context.num_concurrent // per_pair)
            await run_bounded(pairs, under_way, steps.run)
        else:
            for wave in _batched(pairs, config.schedule.wave_pairs):
                in_step = replace(steps, barrier=asyncio.Barrier(len(wave)))
                await run_bounded(wave, len(wave), in_step.run)
    recorded.finish()
    if isinstance(context.algorithm, IterationAlgorithm):
        await learn_from_all(scope, steps.groups, context.algorithm, roles, context)
    context.store.compact(scope)


@dataclass(frozen=True)
class _PairSteps:
    """The steps of one pair. `barrier` separates them where they must not overlap."""

    scope: str
    pairs_by_task: Mapping[str, Sequence[Pair]]  # by task id, for the golds of other personas
    done: Finished
    roles: Roles
    context: RunContext
    rollout: RecordedRollout
    stages: Mapping[str, Stage]
    groups: list[ScoredGroup] = field(default_factory=list)  # for an algorithm that learns from all
    barrier: asyncio.Barrier | None = None

    async def run(self, pair: Pair) -> None:
        config = self.context.config
        [plans] = plan_dialogues([pair], self.scope, config.seed, config.rollout)
        async with self._step("rollout"):
            played = await asyncio.gather(*map(self.rollout, plans))
        async with self._step("score") as stage:
            group = await self._score(pair, [d for d in played if d is not None])
            if group is not None:
                group = replace(group, selections=await self._select(group))
                stage.advance(sum(dialogue is not None for dialogue in played))
        async with self._step("respond") as stage:
            algorithm = self.context.algorithm
            if isinstance(algorithm, IterationAlgorithm):
                self.groups.extend([] if group is None else [group])
            elif group is not None and pair.id not in self.done.examples:
                await self._respond_and_learn(group, algorithm)
            stage.advance()

    @asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[Stage]:
        with self.context.counters.stage(name):
            self.stages[name].begin()
            yield self.stages[name]
            if self.barrier is not None:
                await self.barrier.wait()

    async def _score(self, pair: Pair, dialogues: Sequence[Dialogue]) -> ScoredGroup | None:
        """The dialogues that can be scored, with their scores; None where there are none."""
        needs, drop = self.context.algorithm.needs, self.context.counters.drop
        of_task = self.pairs_by_task[pair.task.id]
        others = other_golds(pair, of_task, needs.num_other_golds, self._seed)
        if needs.num_other_golds != 0 and not others:
            problem = "no other persona has a gold for this task"
            drop(RecordDropped("pair_without_contrast", pair.id, problem))
            return None
        scores = {d.id: s for d in dialogues if (s := self._known_score(d, bool(others)))}
        missing = [d for d in dialogues if d.id not in scores] if needs.scores else []
        made, made_turns = await self._make_scores(pair, missing, others)
        scores |= made
        scored = [dialogue for dialogue in dialogues if dialogue.id in scores or not needs.scores]
        if not scored:
            drop(RecordDropped("pair_without_dialogue", pair.id, "none is left"))
            return None
        turn_scores = {
            d.id: made_turns.get(d.id, self.done.turn_scores.get(d.id, ())) for d in scored
        }
        by_dialogue = [scores[d.id] for d in scored] if needs.scores else []
        return ScoredGroup(pair, scored, by_dialogue, turn_scores)

    async def _make_scores(
        self, pair: Pair, dialogues: Sequence[Dialogue], others: Sequence[str]
    ) -> tuple[dict[str, DialogueScore], dict[str, list[TurnScore]]]:
        """Scores, and turn scores if they are needed, by dialogue id, once they are on disk.

        A dialogue that can't be scored is dropped.
        """
        asked: list[tuple[Dialogue, list[ScoreRequest]]] = []
        for dialogue in dialogues:
            try:
                asked.append((dialogue, self._score_requests(pair, dialogue, others)))
            except RecordDropped as problem:
                self.context.counters.drop(problem)
        # One call for all of them, because they share the pair's opening; results come in order.
        results = iter(await self.roles.score([r for _, requests in asked for r in requests]))
        scores, turn_scores = {}, {}
        for dialogue, requests in asked:
            by_turn = [next(results) for _ in requests]
            scores[dialogue.id] = to_dialogue_score(dialogue, by_turn[-1])  # after all turns
            if self.context.algorithm.needs.turn_scores:
                turn_scores[dialogue.id] = to_turn_scores(dialogue, by_turn)
        await self._append("turn_scores", [s for of_one in turn_scores.values() for s in of_one])
        await self._append("scores", list(scores.values()))
        return scores, turn_scores

    def _known_score(self, dialogue: Dialogue, contrasted: bool) -> DialogueScore | None:
        """The score on disk, if it has what the algorithm needs."""
        score = self.done.scores.get(dialogue.id)
        if score is None or (contrasted and score.other_gold_logprob is None):
            return None
        if self.context.algorithm.needs.turn_scores and dialogue.id not in self.done.turn_scores:
            return None
        return score

    def _score_requests(
        self, pair: Pair, dialogue: Dialogue, others: Sequence[str]
    ) -> list[ScoreRequest]:
        """The golds after each turn from 0 on, if that is needed, and after the whole dialogue."""
        every = self.context.algorithm.needs.turn_scores
        numbers = range(len(dialogue.turns) + 1) if every else [len(dialogue.turns)]
        scoring = self.context.scoring

        def after(number: int) -> ScoreRequest:
            key = f"{dialogue.id}@{number}" if every else dialogue.id
            if every and number == 0:
                return scoring.after_fact(key, pair, None, others)
            return scoring.after_dialogue(key, pair, dialogue.turns[:number], others)

        return [after(number) for number in numbers]

    async def _select(self, group: ScoredGroup) -> Sequence[Selection]:
        if known := self.done.selections.get(group.pair.id):
            return known
        selections = self.context.algorithm.select(group, self._seed)
        await self._append("selections", selections)
        return selections

    async def _respond_and_learn(self, group: ScoredGroup, algorithm: PairAlgorithm) -> None:
        drop = self.context.counters.drop
        responses = {}
        if algorithm.needs.own_response:
            for selection in group.selections:
                try:
                    responses[selection.dialogue_id] = await self._respond(group, selection)
                except RecordDropped as problem:
                    drop(problem)
            chosen = [s for s in group.selections if s.dialogue_id in responses]
            group = replace(group, selections=chosen, responses=responses)
        examples = list(algorithm.examples(group, drop))
        if algorithm.needs.reference_logprobs:
            examples = await with_reference(examples, self.roles.score)
        await self._append("examples", examples)

    async def _respond(self, group: ScoredGroup, selection: Selection) -> Generation:
        """The final response of m_t after a dialogue, greedy (PAPER 4), to learn from.

        Raises RecordDropped if it is empty or asks: neither silence nor one more question must be
        learned as an answer.
        """
        dialogue = group.dialogue(selection.dialogue_id)
        sampling = self.context.config.response.sampling
        response = await self.context.respond(group.pair, dialogue, self.roles.generate, sampling)
        if not response.text.strip():
            raise RecordDropped("empty_response", dialogue.id, "the responder said nothing")
        if is_mostly_asking(response.text):
            raise RecordDropped("response_asks", dialogue.id, "the responder asked, too")
        self.context.counters.generated_tokens[f"{self.scope}.respond"] += len(response.token_ids)
        return response

    async def _append(
        self,
        table: str,
        records: Sequence[DialogueScore | TurnScore | Selection | TrainingExample],
    ) -> None:
        await self.context.store.append(self.scope, table, [record_row(r) for r in records])

    @property
    def _seed(self) -> int:
        return derive_seed(self.context.config.seed, self.scope)


def _batched(pairs: Sequence[Pair], size: int) -> Iterator[list[Pair]]:
    iterator = iter(pairs)
    while batch := list(islice(iterator, size)):
        yield batch
