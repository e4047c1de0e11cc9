"""What the report shows: a checked, typed view of one run directory. Made by `data.load_report`.

    ReportData
      evaluations   Evaluation: measures with intervals per checkpoint (eval.json), judge, about,
                    ReferenceRow: the same of dialogues that nobody learned
      iterations    Iteration: losses, examples, weight push (metrics.jsonl)
      selections    SelectionView: the scores of a pair's N dialogues, and which was chosen
      dialogues     DialogueView of TurnViews: everything to browse
      pairs         by source: tasks, personas with facts and golds, where the data can be read
      stages, throughput, drops, status, notes

A dialogue's `source` says where it comes from: "train" (iteration t, by m_t), "test" (the run's
own evaluation of m_t) or "evaluations/NAME" (one made by `stargate eval --name NAME`). All text in
these records is as it was written, not escaped. Log-probs are sums over gold tokens in nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AliasPath, Field

from stargate.config.run import RunConfig
from stargate.evaluation.measures import About
from stargate.evaluation.qualification import Criterion
from stargate.evaluation.statistics import Measure, PairedMeasure
from stargate.types import Pair

TRAIN = "train"
TEST = "test"


def _at(*path: str) -> Any:
    """Where a field stands in the JSON that it is read from."""
    return Field(validation_alias=AliasPath(*path))


@dataclass(frozen=True, slots=True)
class Judge:
    """The judge and whether it can be believed. Win rates of an unfit judge mean nothing."""

    fit: bool
    model: str | None
    verdict: str
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """Dialogues that no policy learned (evaluation/references.py), measured as a checkpoint's.

    `questions` are those that everybody is asked; none where they differ or where facts are told.
    """

    name: str
    measures: Mapping[str, Measure]
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation. Without eval.json `about` is None and `measures` is empty."""

    source: str  # "test" or "evaluations/NAME"
    name: str  # for people: "test" or NAME
    checkpoints: tuple[str, ...]  # ("m0", "m1", ...), in order
    about: About | None = None
    confidence: float = 0.95
    # By checkpoint and measure; changes are m_t minus m_0, win rates by "win_rate[_...]_details".
    measures: Mapping[str, Mapping[str, Measure]] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, PairedMeasure]] = field(default_factory=dict)
    win_rates: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    judge: Judge | None = None
    references: Mapping[str, ReferenceRow] = field(default_factory=dict)  # by name
    no_skill: Mapping[str, str] = field(default_factory=dict)  # by checkpoint: why it has none

    @property
    def first(self) -> str:
        """The checkpoint that others are compared with: "m0" where it was measured, "" if none."""
        return self.checkpoints[0] if self.checkpoints else ""

    @property
    def last(self) -> str:
        return self.checkpoints[-1] if self.checkpoints else ""

    @property
    def unfit(self) -> bool:
        """Whether there is a judge that can't be believed."""
        return self.judge is not None and not self.judge.fit

    def measure(self, checkpoint: str, name: str) -> Measure | None:
        """A measure with a mean, or None."""
        value = self.measures.get(checkpoint, {}).get(name)
        return value if value is not None and value.mean is not None else None

    def change(self, checkpoint: str, name: str) -> PairedMeasure | None:
        """A measure's change since m_0, with a mean, or None."""
        value = self.changes.get(checkpoint, {}).get(name)
        return value if value is not None and value.mean is not None else None

    @property
    def names(self) -> set[str]:
        """Of all measures that some checkpoint has."""
        return {name for measures in self.measures.values() for name in measures}


@dataclass(frozen=True, slots=True)
class Iteration:
    """What iteration t did: it made m_{t+1}. Losses in nats per loss token, one per step."""

    number: Annotated[int, _at("iteration")]
    losses: Annotated[tuple[float, ...], _at("train_losses")]
    grad_norms: tuple[float, ...]
    num_examples: int
    validation_loss: float | None = None
    train_seconds: float | None = None
    push_seconds: float | None = None
    engine_gap_mean: tuple[float, ...] = ()
    engine_gap_max: tuple[float, ...] = ()


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

    @property
    def mean_score(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def chosen_score(self) -> float:
        return self.scores[self.candidates.index(self.chosen)]


@dataclass(frozen=True, slots=True)
class TurnView:
    """`elicited` are indices of facts that this turn brought out first.

    `gain` is what this turn added to the gold log-prob, in nats; None where it was not scored.
    """

    question: str
    answer: str
    elicited: tuple[int, ...]
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
    was compared by with its pair's others. Without the dataset the pair has no gold and its persona
    neither text nor facts.
    """

    id: str
    source: str
    version: int
    pair: Pair
    index: int
    turns: tuple[TurnView, ...]
    gold_logprob: float | None = None
    shuffled: float | None = None  # the same gold after another persona's dialogue
    no_dialogue: float | None = None  # the same gold after the opening alone
    score: float | None = None
    chosen: bool | None = None
    responses: tuple[ResponseView, ...] = ()

    @property
    def checkpoint(self) -> str:
        return f"m{self.version}"

    @property
    def facts(self) -> set[int]:
        """Indices of the facts that it brought out."""
        return {index for turn in self.turns for index in turn.elicited}

    @property
    def matched_minus_shuffled(self) -> float | None:
        if self.gold_logprob is None or self.shuffled is None:
            return None
        return self.gold_logprob - self.shuffled


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of the whole run (time, rollout, memory) and of the last iteration (training, push)."""

    seconds: float | None = None
    num_dialogues: Annotated[int | None, _at("rollout", "num_dialogues")] = None
    generated_tokens: Annotated[int | None, _at("rollout", "generated_tokens")] = None
    generated_tokens_per_s: Annotated[float | None, _at("rollout", "generated_tokens_per_s")] = None
    train_examples: Annotated[int | None, _at("train", "num_examples")] = None
    train_steps: Annotated[int | None, _at("train", "num_steps")] = None
    train_tokens_per_s: Annotated[float | None, _at("train", "tokens_per_s")] = None
    push_seconds: Annotated[float | None, _at("push", "seconds")] = None
    num_engines: Annotated[int | None, _at("push", "num_engines")] = None
    peak_rss_gb: float | None = None
    api_calls: Annotated[int | None, _at("roleplayer_cost", "calls")] = None
    api_cost: Annotated[float | None, _at("roleplayer_cost", "money")] = None


@dataclass(frozen=True, slots=True)
class Drops:
    """Records that were not used, by reason. `examples` names the first few of the run's."""

    run: Mapping[str, int]
    data: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]

    @property
    def counts(self) -> dict[str, int]:
        return {**self.data, **self.run}

    @property
    def total(self) -> int:
        return sum(self.run.values()) + sum(self.data.values())


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything about one run. `notes` says in words what is missing or was left out."""

    name: str
    config: RunConfig
    environment: Mapping[str, Any]
    status: str  # "finished", "stopped: ...", or "not finished"
    evaluations: tuple[Evaluation, ...]  # the run's own first
    iterations: tuple[Iteration, ...]
    selections: tuple[SelectionView, ...]
    dialogues: tuple[DialogueView, ...]
    num_dialogues_left_out: int  # training dialogues beyond what the report holds
    pairs: Mapping[str, Mapping[str, Pair]]  # by source and id
    stages: Mapping[str, float]  # seconds of wall time; stages that run side by side overlap
    throughput: Throughput
    drops: Drops
    notes: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def main(self) -> Evaluation | None:
        """The evaluation that the report opens with: the run's own if it has measures."""
        return next((entry for entry in self.evaluations if entry.measures), None)
