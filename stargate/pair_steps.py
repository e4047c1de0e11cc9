"""One STaR-GATE iteration: roll out, score, select, respond, train, push.

    for each pair:  N dialogues by m_t -> scores by m_0 -> best of N -> response by m_t -> example
    then:           train from m_0 on all examples -> m_{t+1} -> push into all Questioner engines

A pair goes through its steps by itself; none waits for another pair, unless engines and scorer
share cores (`overlap` off): then a wave of pairs finishes one step before the next step begins,
because two busy thread teams on one core run ten times slower. Every record is on disk before the
next step counts on it.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

from stargate.algorithm.examples import build_example
from stargate.algorithm.scoring import GoldScoring, to_dialogue_score
from stargate.algorithm.selection import other_golds, select
from stargate.config.run import RunConfig, SamplingConfig
from stargate.errors import DataError, RecordDropped
from stargate.monitoring.progress import Progress, Stage
from stargate.protocols import Generate, Play, PushWeights, Roleplay, Score, Train
from stargate.records.counters import Counters
from stargate.records.resume import Finished, read_finished
from stargate.records.schemas import dialogue_row, record_row
from stargate.records.store import RunStore
from stargate.rollout.deadline import TurnWatch, session_of
from stargate.rollout.degeneration import DegenerationWatch
from stargate.rollout.dialogue import Questioner, plan_dialogues, play, require_room, sampling_of
from stargate.rollout.slow_start import SlowStart
from stargate.seeds import derive_seed
from stargate.task_group import task_group
from stargate.text.chat import ChatFormat
from stargate.text.views import Views
from stargate.types import (
    Dialogue,
    DialoguePlan,
    DialogueScore,
    GenerateRequest,
    Generation,
    IterationResult,
    Pair,
    Selection,
    TrainingExample,
)


@dataclass(frozen=True)
class Roles:
    """The parts that an iteration plays with: how to ask, answer, score, train and push."""

    generate: Generate  # the Questioner's engines
    roleplay: Roleplay
    score: Score
    train: Train
    push: PushWeights
    voice: Generate | None = None  # the Roleplayer's engines as they are: a judge may ask them
    play: Play | None = None  # dialogue workers; None: this process plays, with the parts above


@dataclass(frozen=True)
class RunContext:
    """What every stage shares:

    config, prompts, the model's chat format, records, counters, screen.
    """

    config: RunConfig
    views: Views
    chat: ChatFormat
    scoring: GoldScoring
    store: RunStore
    counters: Counters
    progress: Progress
    overlap: bool

    def questioner(self, generate: Generate) -> Questioner:
        settings = self.config.questioner
        return Questioner(
            generate, self.views, self.chat, settings.sampling, settings.engine.max_model_len
        )

    def player(self, roles: Roles) -> Play:
        """Who plays dialogues: the dialogue workers if there are any, else this process."""
        if roles.play is not None:
            return roles.play
        return partial(
            play,
            questioner=self.questioner(roles.generate),
            roleplay=roles.roleplay,
            watch=self.turn_watch,
            start=self.slow_start,
        )

    @cached_property
    def turn_watch(self) -> TurnWatch:
        """The deadline of every turn, shared by all dialogues: it sees when all of them hang."""
        return TurnWatch(self.config.rollout.turn_timeout_s)

    @cached_property
    def slow_start(self) -> SlowStart:
        """When dialogues begin that this process plays."""
        return SlowStart(self.config.num_first_dialogues)

    def degeneration_watch(self, scope: str) -> DegenerationWatch:
        """Notices when what a scope plays is empty or endless."""
        return DegenerationWatch(scope, self.store, self.config.rollout.degeneration)


async def run_iteration(
    number: int, pairs: Sequence[Pair], roles: Roles, context: RunContext
) -> IterationResult:
    """Iteration t = `number`:

    makes m_{t+1} from the pairs' dialogues with m_t. Raises DataError without examples.
    """
    scope = f"t{number}"
    await make_examples(scope, pairs, roles, context)
    context.store.compact(scope)
    examples = list(context.store.records(scope, "examples", TrainingExample))
    if context.config.trainer.examples == "all":
        examples += _earlier_examples(number, context.store)
    if not examples:
        raise DataError(
            f"iteration {number}: no training example is left of {len(pairs)} pairs; "
            f"dropped: {dict(context.counters.dropped)}"
        )
    # Finishing order depends on timing; training order must not.
    examples.sort(key=lambda example: example.pair_id)
    version = number + 1
    with context.counters.stage("train"):
        trained = await roles.train(examples, version)
    with context.counters.stage("push"):
        pushed = await roles.push(trained.model_dir, version)
    return IterationResult(trained, pushed)


def _earlier_examples(number: int, store: RunStore) -> list[TrainingExample]:
    """The examples of the iterations before `number`."""
    scopes = [f"t{earlier}" for earlier in range(number)]
    return [e for scope in scopes for e in store.records(scope, "examples", TrainingExample)]


async def make_examples(
    scope: str, pairs: Sequence[Pair], roles: Roles, context: RunContext
) -> None:
    """Plays, scores, selects and responds for every pair; the records are in the store when this
    returns. What the store has of this scope already is not made again.
    """
    config = context.config
    done = read_finished(context.store, scope)
    of_task: dict[str, list[Pair]] = {}
    for pair in pairs:
        of_task.setdefault(pair.task.id, []).append(pair)
    per_pair = config.rollout.num_dialogues
    num_dialogues = len(pairs) * per_pair
    degeneration = context.degeneration_watch(scope)
    with (
        context.progress.stage("rollout", num_dialogues, "dialogues") as rollout,
        context.progress.stage("score", num_dialogues, "dialogues") as score,
        context.progress.stage("respond", len(pairs), "pairs") as respond,
    ):
        stages = _Stages(rollout, score, respond)
        slots = asyncio.Semaphore(config.rollout.max_concurrent_dialogues)
        if context.overlap:
            # Enough pairs under way to keep every slot busy while others score; no more are in
            # memory.
            under_way = 2 * -(-config.rollout.max_concurrent_dialogues // per_pair)
            steps = _PairSteps(scope, of_task, done, roles, context, stages, slots, degeneration)
            await _stream(pairs, under_way, steps)
            degeneration.finish()
            return
        for wave in _batched(pairs, config.schedule.wave_pairs):
            barrier = asyncio.Barrier(len(wave))
            steps = _PairSteps(
                scope, of_task, done, roles, context, stages, slots, degeneration, barrier
            )
            await _stream(wave, len(wave), steps)
    degeneration.finish()


@dataclass(frozen=True)
class _Stages:
    rollout: Stage
    score: Stage
    respond: Stage


@dataclass(frozen=True)
class _PairSteps:
    """The steps of one pair. `barrier` separates them where stages must not overlap."""

    scope: str
    of_task: Mapping[str, Sequence[Pair]]  # by task id, for the golds of other personas
    done: Finished
    roles: Roles
    context: RunContext
    stages: _Stages
    slots: asyncio.Semaphore
    degeneration: DegenerationWatch
    barrier: asyncio.Barrier | None = None

    async def run(self, plans: Sequence[DialoguePlan]) -> None:
        with self.context.counters.span("rollout"):
            self.stages.rollout.begin()
            dialogues = await self._play_all(plans)
            await self._stage_ends()
        with self.context.counters.span("score"):
            self.stages.score.begin()
            selection = await self._select(plans[0].pair, dialogues)
            await self._stage_ends()
        with self.context.counters.span("respond"):
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
        play = self.context.player(self.roles)
        played = await asyncio.gather(*(self._play(plan, play) for plan in plans))
        return [dialogue for dialogue in played if dialogue is not None]

    async def _play(self, plan: DialoguePlan, play: Play) -> Dialogue | None:
        if (finished := self.done.dialogues.get(plan.dialogue_id)) is not None:
            self.stages.rollout.advance()
            self.degeneration.heard(finished)
            return finished
        async with self.slots:
            try:
                dialogue = await play(plan)
            except RecordDropped as problem:
                self.context.counters.drop(problem)
                self.degeneration.dropped(problem)
                self.degeneration.check()
                self.stages.rollout.advance()
                return None
        await self.context.store.append(
            self.scope, "dialogues", [dialogue_row(plan.pair, dialogue)]
        )
        tokens = self.context.counters.finished_dialogue(self.scope, dialogue)
        self.stages.rollout.advance(tokens=tokens)
        self.degeneration.heard(dialogue)
        self.degeneration.check()
        return dialogue

    async def _select(self, pair: Pair, dialogues: Sequence[Dialogue]) -> Selection | None:
        """The pair's selection; None where no dialogue could be scored."""
        if (finished := self.done.selections.get(pair.id)) is not None:
            self.stages.score.advance(len(dialogues))
            return finished
        config = self.context.config
        seed = derive_seed(config.seed, self.scope)
        others = other_golds(pair, self.of_task[pair.task.id], config.selection, seed)
        if config.selection.type == "contrastive" and not others:
            problem = "no other persona has a gold for this task"
            self.context.counters.drop(RecordDropped("pair_without_contrast", pair.id, problem))
            return None
        scores = await self._score(pair, dialogues, others)
        if not scores:
            self.context.counters.drop(
                RecordDropped("pair_without_dialogue", pair.id, "none is left")
            )
            return None
        selection = select(pair.id, scores, config.selection, seed)
        await self.context.store.append(self.scope, "selections", [record_row(selection)])
        self.stages.score.advance(len(dialogues))
        return selection

    async def _score(
        self, pair: Pair, dialogues: Sequence[Dialogue], others: Sequence[str]
    ) -> list[DialogueScore]:
        """The scores of those dialogues that can be scored, in their order."""
        known = {d.id: s for d in dialogues if (s := self._known_score(d, bool(others)))}
        requests = []
        missing = []
        for dialogue in dialogues:
            if dialogue.id in known:
                continue
            try:
                request = self.context.scoring.after_dialogue(
                    dialogue.id, pair, dialogue.turns, others
                )
            except RecordDropped as problem:
                self.context.counters.drop(problem)
            else:
                requests.append(request)
                missing.append(dialogue)
        results = await self.roles.score(requests)
        scores = [to_dialogue_score(d, r) for d, r in zip(missing, results, strict=True)]
        await self.context.store.append(self.scope, "scores", [record_row(s) for s in scores])
        known |= {score.dialogue_id: score for score in scores}
        return [known[dialogue.id] for dialogue in dialogues if dialogue.id in known]

    def _known_score(self, dialogue: Dialogue, contrasted: bool) -> DialogueScore | None:
        """The score on disk, if it has what this selection needs."""
        score = self.done.scores.get(dialogue.id)
        if score is None or (contrasted and score.other_gold_logprob is None):
            return None
        return score

    async def _make_example(self, pair: Pair, dialogue: Dialogue) -> None:
        if pair.id in self.done.examples:
            return
        try:
            response = None
            if self.context.config.trainer.target == "own_response":
                response = await respond(pair, dialogue, self.roles.generate, self.context)
                self.context.counters.generated_tokens[f"{self.scope}.respond"] += len(
                    response.token_ids
                )
            example = build_example(
                pair,
                dialogue,
                response,
                self.context.views,
                self.context.chat,
                self.context.config.trainer,
            )
        except RecordDropped as problem:
            self.context.counters.drop(problem)
            return
        await self.context.store.append(self.scope, "examples", [record_row(example)])


async def respond(
    pair: Pair, dialogue: Dialogue, generate: Generate, context: RunContext
) -> Generation:
    """The final response of m_t after a dialogue, greedy (PAPER 4), to learn from.

    Raises RecordDropped if it is empty: silence must not be learned.
    """
    generation = await write_response(
        pair, dialogue, generate, context, context.config.response.sampling
    )
    if not generation.text.strip():
        raise RecordDropped("empty_response", dialogue.id, "the responder said nothing")
    return generation


async def write_response(
    pair: Pair,
    dialogue: Dialogue,
    generate: Generate,
    context: RunContext,
    sampling: SamplingConfig,
) -> Generation:
    """The responder's text after a dialogue, whatever it is.

    Raises RecordDropped if the prompt is too long, or the text never ends.
    """
    prompt_ids = context.chat.prompt_ids(context.views.responder(pair, dialogue.turns))
    require_room(
        prompt_ids,
        sampling.max_new_tokens,
        context.config.questioner.engine.max_model_len,
        f"{dialogue.id} response",
    )

    async def attempt_at(attempt: int) -> Generation:
        session = session_of(dialogue.id, attempt)
        return await generate(
            GenerateRequest(
                request_id=f"{session}/response",
                session=session,
                prompt_ids=prompt_ids,
                sampling=sampling_of(sampling, derive_seed(dialogue.seed, "response")),
            )
        )

    return await context.turn_watch.run(attempt_at, f"{dialogue.id} response")


async def _stream(pairs: Sequence[Pair], under_way: int, steps: _PairSteps) -> None:
    """Runs the steps of every pair, at most `under_way` pairs at a time.

    The first error cancels the rest.
    """
    config = steps.context.config
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
