"""The records that flow through one iteration.

    Task + Persona + Gold = Pair -> Dialogue (of Turns) -> DialogueScore -> Selection
        -> TrainingExample -> TrainResult -> PushResult

Letters used in shapes: N dialogues of a pair, K turns of a dialogue, T tokens of a sequence, G
tokens of a gold. All records are frozen and hold plain values only, so they pickle across Ray and
write to Parquet.
"""

from dataclasses import dataclass
from enum import StrEnum


class StopReason(StrEnum):
    """Why one generated text ended."""

    STOP = "stop"  # the model ended its turn
    LENGTH = "length"  # max_new_tokens was reached
    FIXED = "fixed"  # not generated: a fixed text such as "I have no preference about that."


@dataclass(frozen=True, slots=True)
class Task:
    """A user's opening request, t_i. `needs_question` is False where any answer fits everybody."""

    id: str
    text: str
    split: str
    needs_question: bool = True


@dataclass(frozen=True, slots=True)
class Persona:
    """A hidden profile, u_j. `facts` are short first-person statements, each stated in `text`."""

    id: str
    name: str
    text: str
    split: str
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """One (task, persona) with its gold response g_ij.

    `gold` is None only for tasks that need no question: such pairs are played, never scored.
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
    """How to sample one text. `temperature` 0 is greedy."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


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

    `token_ids` are exactly the sampled ids, with the end token if it was sampled.
    """

    text: str
    token_ids: tuple[int, ...]
    stop: StopReason
    policy_version: int
    num_prompt_tokens: int
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the Roleplayer said to one question. `elicited` are indices into the persona's facts."""

    text: str
    token_ids: tuple[int, ...]
    stop: StopReason
    elicited: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of the Questioner and the Roleplayer's answer.

    `question_ids` are what the policy sampled: the trainer learns exactly these.
    """

    question: str
    question_ids: tuple[int, ...]
    question_stop: StopReason
    answer: str
    answer_ids: tuple[int, ...]
    answer_stop: StopReason
    elicited: tuple[int, ...] = ()

    @property
    def is_question(self) -> bool:
        return "?" in self.question


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
    """One finished rollout. `policy_version` is the version of the Questioner's weights."""

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
        """Indices of all facts told in this dialogue, in order, each once."""
        return tuple(dict.fromkeys(i for turn in self.turns for i in turn.elicited))


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
    """Token ids of one selected dialogue with its response.

    `loss_mask[i]` is 1 where `input_ids[i]` is a token to learn: it was sampled by the policy (or
    is the gold). Position i is predicted from positions < i; the first token never has loss. Both
    are (T,).
    """

    pair_id: str
    dialogue_id: str
    input_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    response: str

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.loss_mask):
            raise ValueError(f"{len(self.input_ids)} ids but {len(self.loss_mask)} mask entries")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one training stage did.

    `losses` are means per loss token, one per optimizer step, in nats. `num_repeated_steps` were
    done before, by attempts that died after their last checkpoint; None if nobody counted.
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


@dataclass(frozen=True, slots=True)
class PushResult:
    """A finished weight push:

    the version that every engine reports, and the seconds of each phase.
    """

    version: int
    num_engines: int
    seconds: float
    phases: dict[str, float]
