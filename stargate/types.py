"""The records that flow through one iteration.

    Task + Persona + Gold = Pair -> Dialogue (of Turns) -> DialogueScore -> Selection
        -> TrainingExample -> TrainResult -> PushResult

Letters used in shapes: N dialogues of a pair, K turns of a dialogue, T tokens of a sequence, G
tokens of a gold. All records are frozen and hold plain values only, so they pickle across Ray and
write to Parquet.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class StopReason(StrEnum):
    """Why one generated text ended."""

    STOP = "stop"  # the model ended its turn
    LENGTH = "length"  # max_new_tokens was reached
    FIXED = "fixed"  # not generated: a fixed text such as "I have no preference about that."


@dataclass(frozen=True, slots=True)
class Task:
    """A user's opening request, t_i.

    `needs_question` is False where one answer fits everybody; `gold` is that answer, if known.
    """

    id: str
    text: str
    split: str
    needs_question: bool = True
    gold: str | None = None


@dataclass(frozen=True, slots=True)
class Persona:
    """A hidden profile, u_j. `facts` are short first-person statements, each stated in `text`.

    `importance` is how much each fact matters, 1 (little) to 3, empty if nobody said. A persona
    with a `task_id` asks that task only.
    """

    id: str
    name: str
    text: str
    split: str
    facts: tuple[str, ...] = ()
    importance: tuple[int, ...] = ()
    task_id: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """One (task, persona) with its gold response g_ij.

    `gold` may be None only for tasks that need no question: such pairs are played, never scored.
    `gold_facts` are the indices into `persona.facts` on which the gold relies (empty if unknown).
    """

    task: Task
    persona: Persona
    gold: str | None
    gold_facts: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.task.id}:{self.persona.id}"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one text. `temperature` 0 is greedy.

    `logprobs` asks for the log-prob of each sampled token under the distribution that it was drawn
    from: after temperature and top-p. Of a greedy text, under the model's own (temperature 1).
    `num_prompt_logprobs` asks for those of so many of the prompt's last tokens, always under the
    model's own. `stop_ids` end the text beside the end tokens that the model's own config names.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    logprobs: bool = False
    stop_ids: tuple[int, ...] = ()
    num_prompt_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One text to generate. `session` keeps a dialogue's requests on one engine replica."""

    request_id: str
    session: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated text.

    `token_ids` are exactly the sampled ids, with the end token if it was sampled. `logprobs` has
    one value per token, in nats, if they were asked for; `prompt_logprobs` likewise.
    """

    text: str
    token_ids: tuple[int, ...]
    stop: StopReason
    policy_version: int
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    logprobs: tuple[float, ...] | None = None
    prompt_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the Roleplayer said to one question. `elicited` are indices into the persona's facts,
    and so are `retracted`: told earlier, and taken back now.

    `token_ids` is None where an API said it: nobody knows them. After a `final` answer the user
    hears no more questions.
    """

    text: str
    token_ids: tuple[int, ...] | None
    stop: StopReason
    elicited: tuple[int, ...] = ()
    retracted: tuple[int, ...] = ()
    final: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of the Questioner and the Roleplayer's answer.

    `question_ids` are what the policy sampled: the trainer learns exactly these.
    `question_logprobs` are their log-probs under the sampling distribution, in nats, one per id;
    None where nobody asked for them. `answer_ids` is None for what an API said.
    """

    question: str
    question_ids: tuple[int, ...]
    question_stop: StopReason
    answer: str
    answer_ids: tuple[int, ...] | None
    answer_stop: StopReason
    elicited: tuple[int, ...] = ()
    question_logprobs: tuple[float, ...] | None = None
    retracted: tuple[int, ...] = ()

    @property
    def is_question(self) -> bool:
        return "?" in self.question


def told_facts(turns: Iterable[Turn]) -> tuple[int, ...]:
    """Indices of the facts that were told and not taken back since, in order, each once."""
    told: dict[int, None] = {}
    for turn in turns:
        for index in turn.retracted:
            told.pop(index, None)
        told.update(dict.fromkeys(turn.elicited))
    return tuple(told)


@dataclass(frozen=True, slots=True)
class DialoguePlan:
    """What is drawn before a dialogue starts, so that a run is repeatable:

    pair, index, K and seed.
    """

    dialogue_id: str
    pair: Pair
    index: int
    num_turns: int
    seed: int


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One finished rollout. `policy_version` is the version of the Questioner's weights.

    `num_turns` is K as it was drawn; there are fewer turns where the user ended the dialogue.
    """

    id: str
    pair_id: str
    index: int
    num_turns: int
    seed: int
    policy_version: int
    turns: tuple[Turn, ...]
    seconds: float = 0.0

    @property
    def elicited(self) -> tuple[int, ...]:
        return told_facts(self.turns)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Golds to score after one context. They share the context's computation.

    `context_ids` (T,) ends where the assistant's turn begins; `golds` are token ids (G,) each.
    """

    key: str
    context_ids: tuple[int, ...]
    golds: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Per gold of a request: log p of each of its tokens (G,), in nats, under the frozen m_0."""

    key: str
    token_logprobs: tuple[tuple[float, ...], ...]

    @property
    def sums(self) -> tuple[float, ...]:
        return tuple(sum(logprobs) for logprobs in self.token_logprobs)


@dataclass(frozen=True, slots=True)
class DialogueScore:
    """The gold log-prob of one dialogue:

    the SUM over gold tokens, in nats (PAPER: no length normalisation). `other_gold_logprob` is the
    mean over `num_other_golds` golds of other personas for the same task, None if none was scored.
    """

    dialogue_id: str
    pair_id: str
    gold_logprob: float
    num_gold_tokens: int
    other_gold_logprob: float | None = None
    num_other_golds: int | None = None


@dataclass(frozen=True, slots=True)
class TurnScore:
    """Log-probs after the first `turn` turns of a dialogue, sums in nats (0: before any, after one
    fixed turn that brought nothing, so that the form is the same):

    of the pair's own gold, and of other personas' golds for the same task, in the order asked.
    """

    dialogue_id: str
    turn: int
    own: float
    others: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of a pair's N dialogues is trained on, and the scores that it was chosen by:

    gold log-probs, or with contrastive selection their contrasts with other personas' golds.
    """

    pair_id: str
    dialogue_id: str
    gold_logprob: float
    candidates: tuple[str, ...]
    candidate_scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """Token ids of one text to learn from, and how much each token counts.

    `weights[i]` is the weight of token `input_ids[i]` in the loss: 1 where it was sampled by the
    policy (or is the gold), 0 where it is not learned, negative where it shall become less likely.
    Position i is predicted from positions < i; the first token never has loss. `behaviour_logprobs`
    and `reference_logprobs` are log p of each token under the sampling policy and under a reference
    model, in nats, where the objective needs them. All are (T,).

    Examples of one `group` meet in one optimizer step; "" is a group of its own. `side` is this
    example's place in a preference pair.

        input_ids  7 8 9 4 5 2      opening, question, end of turn
        weights    0 0 0 1 1 1
    """

    pair_id: str
    dialogue_id: str
    input_ids: tuple[int, ...]
    weights: tuple[float, ...]
    response: str
    behaviour_logprobs: tuple[float, ...] | None = None
    reference_logprobs: tuple[float, ...] | None = None
    group: str = ""
    side: Literal["chosen", "rejected"] | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "behaviour_logprobs", "reference_logprobs"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.input_ids):
                raise ValueError(f"{len(self.input_ids)} ids but {len(values)} {name}")

    @property
    def num_loss_tokens(self) -> int:
        return sum(weight != 0 for weight in self.weights)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one training stage did.

    `losses` are means per loss token, one per optimizer step, in nats. `num_repeated_steps` were
    done before, by attempts that died after their last checkpoint; None if nobody counted.
    `engine_gap_mean` and `engine_gap_max` say per step how far the sampled tokens' log-probs of the
    engine are from the trainer's, in nats; empty where the trainer does not compare them.
    """

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    learning_rates: tuple[float, ...]
    validation_loss: float | None
    num_examples: int
    num_tokens: int
    num_loss_tokens: int
    seconds: float
    model_dir: str
    num_validation_examples: int = 0
    num_repeated_steps: int | None = None
    engine_gap_mean: tuple[float, ...] = ()
    engine_gap_max: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PushResult:
    """A finished weight push:

    the version that every engine reports, and the seconds of each phase.
    """

    version: int
    num_engines: int
    seconds: float
    phases: dict[str, float]


@dataclass(frozen=True, slots=True)
class IterationResult:
    """What one iteration did: its training, and the push of what was trained."""

    trained: TrainResult
    pushed: PushResult


@dataclass(frozen=True, slots=True)
class MemoryPeak:
    """The highest memory of a process tree, in GiB.

    `measure` is "pss" where every process told its proportional share (shared pages are counted
    once), else "rss" (shared pages counted once per process: too high).
    """

    gb: float
    measure: str
    num_samples: int
