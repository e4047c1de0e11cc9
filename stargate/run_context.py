"""What every step of a run shares: the parts that it plays with, and the things around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from stargate.algorithm.base import Algorithm
from stargate.algorithm.score_requests import GoldScoring
from stargate.config.run import RunConfig, SamplingConfig
from stargate.monitoring.progress import Progress, Stage
from stargate.protocols import Generate, MatchFacts, Play, PushWeights, Roleplay, Score, Train
from stargate.records.counters import Counters
from stargate.records.store import RunStore
from stargate.rollout.deadline import TurnWatch, session_of
from stargate.rollout.degeneration import DegenerationWatch
from stargate.rollout.dialogue import play
from stargate.rollout.questioner import Questioner, require_room, sampling_of
from stargate.rollout.recorded import RecordedRollout
from stargate.rollout.slow_start import SlowStart
from stargate.seeds import derive_seed
from stargate.text.chat import ChatFormat
from stargate.text.formats import heard_from
from stargate.text.views import Views
from stargate.types import Dialogue, GenerateRequest, Generation, Pair


@dataclass(frozen=True)
class Roles:
    """The parts that a run plays with: how to ask, answer, score, train and push."""

    generate: Generate  # the Questioner's engines
    roleplay: Roleplay
    score: Score
    train: Train
    push: PushWeights
    match: MatchFacts | None = None  # with facts grounding: which fact answers a question
    voice: Generate | None = None  # the Roleplayer's engines as they are: a judge may ask them
    play: Play | None = None  # dialogue workers; None: this process plays, with the parts above


@dataclass(frozen=True)
class RunContext:
    """What every step shares: config, prompts, the model's chat format, the algorithm, records,
    counters, screen. `overlap`: whether steps of different pairs may run side by side;
    `num_concurrent`: how many dialogues are under way at once.
    """

    config: RunConfig
    views: Views
    chat: ChatFormat
    scoring: GoldScoring
    algorithm: Algorithm
    store: RunStore
    counters: Counters
    progress: Progress
    overlap: bool
    num_concurrent: int

    def recorded_rollout(
        self, scope: str, roles: Roles, finished: Mapping[str, Dialogue], stage: Stage
    ) -> RecordedRollout:
        """Plays the dialogues of `scope`; those in `finished` are not played again."""
        rollout = self.config.rollout
        return RecordedRollout(
            scope,
            self.player(roles),
            self.store,
            self.counters,
            DegenerationWatch(scope, self.store, rollout.degeneration),
            finished,
            stage,
            self.num_concurrent,
        )

    def player(self, roles: Roles) -> Play:
        """Plays dialogues: the dialogue workers if there are any, else this process."""
        if roles.play is not None:
            return roles.play
        settings = self.config.questioner
        questioner = Questioner(
            roles.generate, self.views, self.chat, settings.sampling, settings.engine.max_model_len
        )
        return partial(
            play,
            questioner=questioner,
            roleplay=roles.roleplay,
            watch=self.turn_watch,
            start=self._slow_start,
        )

    @cached_property
    def turn_watch(self) -> TurnWatch:
        """The deadline of every turn, shared by all dialogues: it sees when all of them hang."""
        return TurnWatch(self.config.rollout.turn_timeout_s)

    @cached_property
    def _slow_start(self) -> SlowStart:
        return SlowStart(self.config.num_first_dialogues)

    async def respond(
        self,
        pair: Pair,
        dialogue: Dialogue,
        generate: Generate,
        sampling: SamplingConfig,
        *,
        instructed: bool = True,
    ) -> Generation:
        """The responder's text after a dialogue, whatever it is, with or without its instruction.

        Raises RecordDropped if the prompt is too long, or the text never ends.
        """
        see = self.views.responder if instructed else self.views.without_instruction
        prompt_ids = self.chat.prompt_ids(see(pair, dialogue.turns))
        where = f"{dialogue.id} response"
        max_model_len = self.config.questioner.engine.max_model_len
        require_room(prompt_ids, sampling.max_new_tokens, max_model_len, where)

        async def attempt_at(attempt: int) -> Generation:
            session = session_of(dialogue.id, attempt)
            return await heard_from(generate, self.chat)(
                GenerateRequest(
                    request_id=f"{session}/response",
                    session=session,
                    prompt_ids=prompt_ids,
                    sampling=sampling_of(sampling, derive_seed(dialogue.seed, "response")),
                )
            )

        return await self.turn_watch.run(attempt_at, where)
