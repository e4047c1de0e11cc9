"""How scored rollouts become training examples and a loss: one variant per algorithm.

    algorithm: {type: star_gate, selection: contrastive, target: questions_only}

A new algorithm is a variant here, a class in stargate/algorithm (base.py: build_algorithm), and a
row of docs/architecture.md.
"""

from typing import ClassVar, Literal

from stargate.config.component import Component, PositiveInt


class AlgorithmConfig(Component):
    """What every algorithm has. `objective` is the loss, by its name in actors/training."""

    objective: ClassVar[str] = "weighted_nll"

    start_from: Literal["base", "previous"] = "base"  # m_0 every time (the paper), or on from m_t


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


# With a second variant: Annotated[StarGateConfig | Other, Field(discriminator="type")].
AnyAlgorithm = StarGateConfig
