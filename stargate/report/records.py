"""What the report shows: a checked, typed view of one run directory. Made by `data.load_report`.

    ReportData
      evaluations   Evaluation: measures with intervals per checkpoint (eval.json), judge, about
      iterations    Iteration: losses, examples, weight push (metrics.jsonl)
      selections    SelectionView: the scores of a pair's N dialogues, and which was chosen
      dialogues     DialogueView of TurnViews: everything to browse
      texts         Texts by source: tasks, personas with facts, golds, where the data can be read
      stages, throughput, drops, status, notes

A dialogue's `source` says where it comes from: "train" (iteration t, by m_t), "test" (the run's
own evaluation of m_t) or "evaluations/NAME" (one made by `stargate eval --name NAME`). All text in
these records is as it was written, not escaped. Log-probs are sums over gold tokens in nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stargate.config.run import RunConfig
from stargate.evaluation.qualification import Criterion
from stargate.evaluation.statistics import Measure

TRAIN = "train"
TEST = "test"


@dataclass(frozen=True, slots=True)
class Change:
    """A measure of m_t minus that of m_0, paired over (task, persona)."""

    difference: Measure
    num_only_before: int
    num_only_after: int


@dataclass(frozen=True, slots=True)
class RoleplayerInfo:
    """Which simulated user answered: model, prompt set and grounding ("facts" or "persona")."""

    model: str
    prompts: str
    grounding: str


@dataclass(frozen=True, slots=True)
class About:
    """What was measured, and how. None where eval.json does not say."""

    split: str | None
    data: str | None
    roleplayer: RoleplayerInfo | None
    trained_with_roleplayer: RoleplayerInfo | None
    num_dialogues: int | None
    num_turns: int | None
    seed: int | None
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Judge:
    """The judge and whether it can be believed. Win rates of an unfit judge mean nothing."""

    fit: bool
    model: str | None
    verdict: str
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation. `measures` is empty where eval.json has not been written."""

    source: str  # "test" or "evaluations/NAME"
    name: str  # for people: "test" or NAME
    about: About
    checkpoints: tuple[str, ...]  # ("m0", "m1", ...), in order
    measures: Mapping[str, Mapping[str, Measure]]  # checkpoint -> measure -> value
    changes: Mapping[str, Mapping[str, Change]]  # checkpoint -> measure -> m_t minus m_0
    win_rates: Mapping[str, Mapping[str, Mapping[str, Any]]]  # checkpoint -> win_rate[_...]: detail
    judge: Judge | None

    @property
    def first(self) -> str | None:
        """The checkpoint that others are compared with: "m0" where it was measured."""
        return self.checkpoints[0] if self.checkpoints else None

    @property
    def last(self) -> str | None:
        return self.checkpoints[-1] if self.checkpoints else None

    def measure(self, checkpoint: str | None, name: str) -> Measure | None:
        """A measure with a mean, or None."""
        value = self.measures.get(checkpoint or "", {}).get(name)
        return value if value is not None and value.mean is not None else None

    def change(self, checkpoint: str | None, name: str) -> Change | None:
        """A change with a mean, or None."""
        value = self.changes.get(checkpoint or "", {}).get(name)
        return value if value is not None and value.difference.mean is not None else None


@dataclass(frozen=True, slots=True)
class Iteration:
    """What iteration t did: it made m_{t+1}. Losses in nats per loss token, one per step."""

    number: int
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    learning_rates: tuple[float, ...]
    validation_loss: float | None
    num_examples: int
    train_seconds: float | None
    push_seconds: float | None
    push_phases: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SelectionView:
    """One pair's N candidates in one iteration. The three lists go by candidate.

    `scores` are what it was chosen by: gold log-probs, or contrasts with contrastive selection.
    `other_gold_logprobs` are None where no gold of another persona was scored.
    """

    iteration: int
    pair_id: str
    chosen: str
    candidates: tuple[str, ...]
    scores: tuple[float, ...]
    gold_logprobs: tuple[float | None, ...]
    other_gold_logprobs: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class TaskView:
    id: str
    text: str
    needs_question: bool


@dataclass(frozen=True, slots=True)
class PersonaView:
    """`text` is None and `facts` is empty where the dataset can't be read."""

    id: str
    name: str
    text: str | None
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GoldView:
    text: str
    facts: tuple[int, ...]  # indices into the persona's facts on which the gold relies


@dataclass(frozen=True, slots=True)
class Texts:
    """Tasks, personas and golds (by pair id) behind a source's dialogues.

    `problem` says why personas and golds are not there, None if they are.
    """

    tasks: Mapping[str, TaskView]
    personas: Mapping[str, PersonaView]
    golds: Mapping[str, GoldView]
    problem: str | None

    def fact(self, persona_id: str, index: int) -> str:
        """A fact's text, or "fact 3" where the dataset can't be read."""
        persona = self.personas.get(persona_id)
        facts = persona.facts if persona else ()
        return facts[index] if 0 <= index < len(facts) else f"fact {index}"


@dataclass(frozen=True, slots=True)
class TurnView:
    """`elicited` are indices of facts that this turn brought out first, `facts` their texts.

    `gain` is what this turn added to the gold log-prob, in nats; None where it was not scored.
    """

    question: str
    answer: str
    is_question: bool
    elicited: tuple[int, ...]
    facts: tuple[str, ...]
    gain: float | None


@dataclass(frozen=True, slots=True)
class ResponseView:
    """The final response after a dialogue, by m_`version`."""

    version: int
    text: str


@dataclass(frozen=True, slots=True)
class DialogueView:
    """One dialogue. `version` is t of the m_t that asked; in training it is the iteration too.

    `chosen` is None outside training, where nothing is chosen. `score` is what a training dialogue
    was compared by with its pair's others.
    """

    id: str
    source: str
    version: int
    pair_id: str
    task_id: str
    persona_id: str
    index: int
    turns: tuple[TurnView, ...]
    gold_logprob: float | None = None
    num_gold_tokens: int | None = None
    shuffled: float | None = None  # the same gold after another persona's dialogue
    no_dialogue: float | None = None  # the same gold after the opening alone
    other_gold_logprob: float | None = None  # other personas' golds after this dialogue (training)
    score: float | None = None
    chosen: bool | None = None
    responses: tuple[ResponseView, ...] = ()

    @property
    def checkpoint(self) -> str:
        return f"m{self.version}"

    @property
    def num_facts(self) -> int:
        return len({index for turn in self.turns for index in turn.elicited})

    @property
    def num_questions(self) -> int:
        return sum(turn.is_question for turn in self.turns)

    @property
    def matched_minus_shuffled(self) -> float | None:
        if self.gold_logprob is None or self.shuffled is None:
            return None
        return self.gold_logprob - self.shuffled

    @property
    def gain(self) -> float | None:
        """What the whole dialogue added to the gold log-prob."""
        if self.gold_logprob is None or self.no_dialogue is None:
            return None
        return self.gold_logprob - self.no_dialogue


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of the whole run (rollout) and of the last iteration (training, weight push)."""

    num_dialogues: int | None = None
    generated_tokens: int | None = None
    generated_tokens_per_s: float | None = None
    train_examples: int | None = None
    train_steps: int | None = None
    train_tokens_per_s: float | None = None
    push_seconds: float | None = None
    num_engines: int | None = None
    peak_rss_gb: float | None = None


@dataclass(frozen=True, slots=True)
class Drops:
    """Records that were not used, by reason. `examples` names the first few of the run's."""

    run: Mapping[str, int]
    data: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]

    @property
    def total(self) -> int:
        return sum(self.run.values()) + sum(self.data.values())


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything about one run. `notes` says in words what is missing or was left out."""

    run_dir: Path
    name: str
    config: RunConfig
    environment: Mapping[str, Any]
    status: str  # "finished", "stopped: ...", or "not finished"
    seconds: float | None
    evaluations: tuple[Evaluation, ...]  # the run's own first
    iterations: tuple[Iteration, ...]
    selections: tuple[SelectionView, ...]
    dialogues: tuple[DialogueView, ...]
    num_dialogues_left_out: int  # training dialogues beyond what the report holds
    texts: Mapping[str, Texts]  # by source
    stages: Mapping[str, float]  # seconds of wall time; stages that run side by side overlap
    throughput: Throughput
    drops: Drops
    notes: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def own(self) -> Evaluation | None:
        """The run's own evaluation, with or without measures."""
        return next((e for e in self.evaluations if e.source == TEST), None)
