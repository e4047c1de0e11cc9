"""One STaR-GATE iteration: roll out, score, select, respond, train, push.

    for each pair:  N dialogues by m_t -> scores by m_0 -> best of N -> response by m_t -> example
    then:           train from m_0 on all examples -> m_{t+1} -> push into all Questioner engines

A pair goes through its steps by itself; none waits for another pair, unless engines and scorer
share cores (`overlap` off): then a wave of pairs finishes one step before the next step begins,
because two busy thread teams on one core run ten times slower. Every record is on disk before the
next step counts on it.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from stargate.chat import ChatFormat
from stargate.config import RunConfig
from stargate.dialogue import Questioner, plan_dialogues, play, require_room, sampling_of
from stargate.errors import DataError, RecordDropped
from stargate.examples import build_example
from stargate.progress import Progress, Stage
from stargate.protocols import Generate, PushWeights, Roleplay, Score, Train
from stargate.scoring import GoldScoring, to_dialogue_score
from stargate.seeds import derive_seed
from stargate.selection import select
from stargate.store import RunStore, dialogue_row, example_from_row, record_row
from stargate.tally import Tally
from stargate.tasks import task_group
from stargate.types import (
    Dialogue,
    DialoguePlan,
    GenerateRequest,
    Generation,
    Pair,
    PushResult,
    Selection,
    TrainResult,
)
from stargate.views import Views


@dataclass(frozen=True)
class Roles:
    """The parts that an iteration plays with: how to ask, answer, score, train and push."""

    generate: Generate  # the Questioner's engines
    roleplay: Roleplay
    score: Score
    train: Train
    push: PushWeights


@dataclass(frozen=True)
class Workbench:
    """What every stage shares:

    config, prompts, the model's chat format, records, counters, screen.
    """

    config: RunConfig
    views: Views
    chat: ChatFormat
    scoring: GoldScoring
    store: RunStore
    tally: Tally
    progress: Progress
    overlap: bool

    def questioner(self, generate: Generate) -> Questioner:
        settings = self.config.questioner
        return Questioner(
            generate, self.views, self.chat, settings.sampling, settings.engine.max_model_len
        )


@dataclass(frozen=True)
class IterationResult:
    """What one iteration did."""

    trained: TrainResult
    pushed: PushResult


async def run_iteration(
    number: int, pairs: Sequence[Pair], roles: Roles, bench: Workbench
) -> IterationResult:
    """Iteration t = `number`:

    makes m_{t+1} from the pairs' dialogues with m_t. Raises DataError without examples.
    """
    scope = f"t{number}"
    await make_examples(scope, pairs, roles, bench)
    bench.store.compact(scope)
    examples = [example_from_row(row) for row in bench.store.read(scope, "examples")]
    if not examples:
        raise DataError(
            f"iteration {number}: no training example is left of {len(pairs)} pairs; "
            f"dropped: {dict(bench.tally.dropped)}"
        )
    # Finishing order depends on timing; training order must not.
    examples.sort(key=lambda example: example.pair_id)
    version = number + 1
    with bench.tally.stage("train"):
        trained = await roles.train(examples, version)
    with bench.tally.stage("push"):
        pushed = await roles.push(trained.model_dir, version)
    return IterationResult(trained, pushed)


async def make_examples(scope: str, pairs: Sequence[Pair], roles: Roles, bench: Workbench) -> None:
    """Plays, scores, selects and responds for every pair; the records are in the store when this
    returns.
    """
    config = bench.config
    per_pair = config.rollout.num_dialogues
    num_dialogues = len(pairs) * per_pair
    with (
        bench.progress.stage("rollout", num_dialogues, "dialogues") as rollout,
        bench.progress.stage("score", num_dialogues, "dialogues") as score,
        bench.progress.stage("respond", len(pairs), "pairs") as respond,
    ):
        stages = _Stages(rollout, score, respond)
        slots = asyncio.Semaphore(config.rollout.max_concurrent_dialogues)
        if bench.overlap:
            # Enough pairs under way to keep every slot busy while others score; no more are in
            # memory.
            under_way = 2 * -(-config.rollout.max_concurrent_dialogues // per_pair)
            await _stream(pairs, under_way, _PairSteps(scope, roles, bench, stages, slots))
            return
        for wave in _batched(pairs, config.schedule.wave_pairs):
            steps = _PairSteps(scope, roles, bench, stages, slots, asyncio.Barrier(len(wave)))
            await _stream(wave, len(wave), steps)


@dataclass(frozen=True)
class _Stages:
    rollout: Stage
    score: Stage
    respond: Stage


@dataclass(frozen=True)
class _PairSteps:
    """The steps of one pair. `barrier` separates them where stages must not overlap."""

    scope: str
    roles: Roles
    bench: Workbench
    stages: _Stages
    slots: asyncio.Semaphore
    barrier: asyncio.Barrier | None = None

    async def run(self, plans: Sequence[DialoguePlan]) -> None:
        with self.bench.tally.span("rollout"):
            self.stages.rollout.begin()
            dialogues = await self._play_all(plans)
            await self._stage_ends()
        with self.bench.tally.span("score"):
            self.stages.score.begin()
            selection = await self._select(plans[0].pair, dialogues)
            await self._stage_ends()
        with self.bench.tally.span("respond"):
            self.stages.respond.begin()
            if selection is not None:
                chosen = next(d for d in dialogues if d.id == selection.dialogue_id)
                await self._make_example(plans[0].pair, chosen)
            self.stages.respond.advance()
            await self._stage_ends()

    async def _stage_ends(self) -> None:
        if self.barrier is not None:
            await self.barrier.wait()

    async def _play_all(self, plans: Sequence[DialoguePlan]) -> list[Dialogue]:
        questioner = self.bench.questioner(self.roles.generate)
        played = await asyncio.gather(*(self._play(plan, questioner) for plan in plans))
        return [dialogue for dialogue in played if dialogue is not None]

    async def _play(self, plan: DialoguePlan, questioner: Questioner) -> Dialogue | None:
        async with self.slots:
            try:
                dialogue = await play(plan, questioner, self.roles.roleplay)
            except RecordDropped as problem:
                self.bench.tally.drop(problem)
                self.stages.rollout.advance()
                return None
        await self.bench.store.append(self.scope, "dialogues", [dialogue_row(plan.pair, dialogue)])
        tokens = self.bench.tally.finished_dialogue(self.scope, dialogue)
        self.stages.rollout.advance(tokens=tokens)
        return dialogue

    async def _select(self, pair: Pair, dialogues: Sequence[Dialogue]) -> Selection | None:
        requests = []
        scorable = []
        for dialogue in dialogues:
            try:
                request = self.bench.scoring.after_dialogue(dialogue.id, pair, dialogue.turns)
            except RecordDropped as problem:
                self.bench.tally.drop(problem)
            else:
                requests.append(request)
                scorable.append(dialogue)
        if not requests:
            self.bench.tally.drop(RecordDropped("pair_without_dialogue", pair.id, "none is left"))
            return None
        results = await self.roles.score(requests)
        scores = [to_dialogue_score(d, r) for d, r in zip(scorable, results, strict=True)]
        await self.bench.store.append(self.scope, "scores", [record_row(s) for s in scores])
        config = self.bench.config
        selection = select(pair.id, scores, config.selection, derive_seed(config.seed, self.scope))
        await self.bench.store.append(self.scope, "selections", [record_row(selection)])
        self.stages.score.advance(len(dialogues))
        return selection

    async def _make_example(self, pair: Pair, dialogue: Dialogue) -> None:
        try:
            response = None
            if self.bench.config.trainer.target == "own_response":
                response = await respond(pair, dialogue, self.roles.generate, self.bench)
                self.bench.tally.generated_tokens[f"{self.scope}.respond"] += len(
                    response.token_ids
                )
            example = build_example(
                pair,
                dialogue,
                response,
                self.bench.views,
                self.bench.chat,
                self.bench.config.trainer,
            )
        except RecordDropped as problem:
            self.bench.tally.drop(problem)
            return
        await self.bench.store.append(self.scope, "examples", [record_row(example)])


async def respond(
    pair: Pair, dialogue: Dialogue, generate: Generate, bench: Workbench
) -> Generation:
    """The final response of m_t after a dialogue, greedy (PAPER 4).

    Raises RecordDropped if it is empty.
    """
    sampling = bench.config.response.sampling
    prompt_ids = bench.chat.prompt_ids(bench.views.responder(pair, dialogue.turns))
    require_room(
        prompt_ids,
        sampling.max_new_tokens,
        bench.config.questioner.engine.max_model_len,
        f"{dialogue.id} response",
    )
    generation = await generate(
        GenerateRequest(
            request_id=f"{dialogue.id}/response",
            session=dialogue.id,
            prompt_ids=prompt_ids,
            sampling=sampling_of(sampling, derive_seed(dialogue.seed, "response")),
        )
    )
    if not generation.text.strip():
        raise RecordDropped("empty_response", dialogue.id, "the responder said nothing")
    return generation


async def _stream(pairs: Sequence[Pair], under_way: int, steps: _PairSteps) -> None:
    """Runs the steps of every pair, at most `under_way` pairs at a time.

    The first error cancels the rest.
    """
    config = steps.bench.config
    places = asyncio.Semaphore(under_way)

    async def one(pair: Pair) -> None:
        try:
            [plans] = plan_dialogues([pair], steps.scope, config.seed, config.rollout)
            await steps.run(plans)
        finally:
            places.release()

    async with task_group() as group:
        for pair in pairs:
            await places.acquire()
            group.create_task(one(pair))


def _batched(pairs: Sequence[Pair], size: int) -> Iterator[list[Pair]]:
    iterator = iter(pairs)
    while batch := list(islice(iterator, size)):
        yield batch
