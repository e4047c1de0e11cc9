"""How scored rollouts become training examples and a loss: one variant per algorithm.

    algorithm: {type: star_gate, selection: contrastive, target: questions_only}

A new algorithm is a variant here, a class in stargate/algorithm (base.py: build_algorithm), and a
row of docs/architecture.md.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from stargate.config.component import TAG, Component, PositiveInt

Positive = Annotated[float, Field(gt=0.0)]


class AlgorithmConfig(Component):
    """What every algorithm has. `objective` is the loss, by its name in actors/training."""

    objective: ClassVar[str] = "weighted_nll"

    type: str
    start_from: Literal["base", "previous"] = "base"  # m_0 every time (the paper), or on from m_t

    @property
    def objective_settings(self) -> dict[str, float]:
        """The coefficients of the loss, by name."""
        return {}

    @property
    def label(self) -> str:
        """What reports call the way in which dialogues are chosen."""
        return self.type

    @property
    def facts_for(self) -> str | None:
        """The setting that needs facts grounding in a training run, if there is one."""
        return None

    def check_samples(self, temperature: float, top_p: float, examples: str) -> None:
        """Raises ValueError if the algorithm can't learn from questions that are sampled so."""


class StarGateConfig(AlgorithmConfig):
    """The paper: the best dialogue of a pair is learned, with the policy's own response after it.

    `selection` is which of a pair's N dialogues is trained on (PAPER 3):

    gold         the highest gold log-prob
    contrastive  the highest gold log-prob minus the mean log-prob of the golds of other personas
                 for the same task: chosen for what it learned about the person, not for its form
    random       a control
    """

    type: Literal["star_gate"] = "star_gate"
    selection: Literal["gold", "contrastive", "random"] = "gold"
    max_other_golds: PositiveInt | None = None  # contrastive: how many others; None: all there are
    target: Literal["own_response", "questions_only", "gold_response"] = "own_response"
    # Which questions have loss: all (the paper), or those that were answered with a fact. The
    # latter needs facts grounding in a training run, where it is known which.
    questions: Literal["all", "answered"] = "all"

    @property
    def label(self) -> str:
        return self.selection

    @property
    def facts_for(self) -> str | None:
        return "algorithm.questions=answered" if self.questions == "answered" else None


class QuestionWorthConfig(AlgorithmConfig):
    """An algorithm that learns from what single questions are worth. `credit` is where that comes
    from:

    facts  the mean, over all personas of the task, of the values of the facts that it would bring
           out: the Questioner doesn't know who asks. Needs facts grounding
    turns  how far the gold's log-prob rose in this turn of this dialogue
    """

    credit: Literal["facts", "turns"] = "facts"
    clip: Positive = 5.0  # nats, of one fact or one turn, to both sides

    @property
    def facts_for(self) -> str | None:
        return "algorithm.credit=facts" if self.credit == "facts" else None


class TurnWeightedConfig(QuestionWorthConfig):
    """Every question counts by what it was worth, compared with others that could have been asked
    in its place (docs/algorithms.md).
    """

    type: Literal["turn_weighted"] = "turn_weighted"
    # turns: minus the mean rise of other personas' golds, and of how many; None: all there are.
    contrast: bool = False
    max_other_golds: PositiveInt | None = None
    scale: Positive = 4.0  # nats above the siblings' mean that give weight 1
    max_weight: Positive = 2.0
    # The prompt that the engine saw, or the instruction-free one (which loses the task at 135M).
    view: Literal["rollout", "plain"] = "rollout"
    # facts: the best questions for a task, out of those asked about it or about any task of the
    # split, are put together into dialogues, so that good ones meet at later turns; answers are the
    # facts of each pair's persona.
    recombine: Literal["task", "split"] | None = None
    num_lists: PositiveInt = 8  # such dialogues per task
    # What a nat of log m_0(question | task) counts beside one of worth when they are put together:
    # of questions that bring out the same, the one that the model itself would rather ask.
    fit: Annotated[float, Field(ge=0.0)] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.recombine and self.credit != "facts":
            raise ValueError("recombine needs credit: facts, by which questions are valued anew")
        if self.fit and self.recombine is None:
            raise ValueError("fit needs recombine: it says which questions are put together")
        if self.contrast and self.credit != "turns":
            raise ValueError("contrast needs credit: turns; facts are valued by the own gold alone")
        return self


class DpoConfig(QuestionWorthConfig):
    """The best first question of a pair is preferred to the worst (docs/algorithms.md).

    The reference is m_0, so each training starts from it.
    """

    objective: ClassVar[str] = "preference"

    type: Literal["dpo"] = "dpo"
    start_from: Literal["base"] = "base"
    margin: Positive = 2.0  # nats by which the chosen question must be worth more
    beta: Positive = 0.1
    nll: Annotated[float, Field(ge=0.0)] = 1.0  # what the chosen question's NLL per token counts

    @property
    def objective_settings(self) -> dict[str, float]:
        return {"beta": self.beta, "nll": self.nll}


class GrpoConfig(QuestionWorthConfig):
    """Policy gradients by turn, with a clipped ratio and a KL to m_0 (docs/algorithms.md).

    Questions were asked by m_t, so training goes on from it.
    """

    objective: ClassVar[str] = "clipped_policy_gradient"

    type: Literal["grpo"] = "grpo"
    start_from: Literal["previous"] = "previous"
    # How far the ratio of new to old probability may go, to both sides of 1, and still gain.
    clip_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    kl: Annotated[float, Field(ge=0.0)] = 0.04  # nats of reward per nat of a token's KL to m_0

    @property
    def objective_settings(self) -> dict[str, float]:
        return {"clip_ratio": self.clip_ratio, "kl": self.kl}

    def check_samples(self, temperature: float, top_p: float, examples: str) -> None:
        if (temperature, top_p, examples) != (1.0, 1.0, "iteration"):
            raise ValueError(
                "algorithm.type=grpo learns from m_t's own samples: it needs "
                "questioner.sampling.temperature=1, questioner.sampling.top_p=1 and "
                f"trainer.examples=iteration, got {temperature:g}, {top_p:g} and {examples}"
            )


def _algorithm_tag(value: object) -> str:
    """The tag of an algorithm's variant: a file that names none means the paper's."""
    kind = value.get("type", "star_gate") if isinstance(value, dict) else getattr(value, "type", "")
    return f"{TAG}{kind}"


AnyAlgorithm = Annotated[
    Annotated[StarGateConfig, Tag(f"{TAG}star_gate")]
    | Annotated[TurnWeightedConfig, Tag(f"{TAG}turn_weighted")]
    | Annotated[DpoConfig, Tag(f"{TAG}dpo")]
    | Annotated[GrpoConfig, Tag(f"{TAG}grpo")],
    Discriminator(
        _algorithm_tag,
        "algorithm_type",
        "type must be star_gate, turn_weighted, dpo or grpo",
    ),
]
