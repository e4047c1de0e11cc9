"""The simulated user: what it goes by, and how it is asked where it is an API.

    roleplayer:
      type: api
      oracle: {type: openai, base_url: http://127.0.0.1:8000/v1, model: NAME}
      grounding: {type: facts}

Imports nothing of stargate.config.run, which has EngineRoleplayerConfig and the union of both.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from stargate.config.component import Component, PositiveInt
from stargate.config.oracle import AzureOracleConfig, OpenAIOracleConfig, Temperature, TopP

# How a user answers; what each does: docs/roleplayer.md.
Style = Literal["plain", "terse", "evasive", "chatty", "contradicting"]


def _listed(style: object) -> object:
    return (style,) if isinstance(style, str) else style


class PersonaGrounding(Component):
    """The Roleplayer sees the whole persona and answers freely (the paper)."""

    type: Literal["persona"] = "persona"


class FactsGrounding(Component):
    """The Roleplayer is given only the fact nearest to the question, each told once.

    `min_similarity` is the cosine between question and fact below which a fact does not answer
    (docs/roleplayer.md says how it was chosen). Of several questions in one turn the
    first `questions_per_turn` count. `voice: fact` says the fact as it is, `voice: model` lets the
    model word it and falls back to the fact when its words no longer state it.
    """

    type: Literal["facts"] = "facts"
    min_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.32
    questions_per_turn: PositiveInt = 1
    voice: Literal["model", "fact"] = "model"
    keep_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.6


class AnyRoleplayerConfig(Component):
    """The simulated user. Its model may differ from the run's, and so may `prompts`:

    of that set only what the Roleplayer sees and says is used. An evaluation can thus meet a user
    that the training never met. Of several styles one is drawn for each pair.
    """

    prompts: str | None = None  # None: the run's own prompt set
    style: Annotated[tuple[Style, ...], Field(min_length=1), BeforeValidator(_listed)] = ("plain",)
    # After so many turns the user says that it wants an answer, and the dialogue ends; None: never.
    patience: PositiveInt | None = None
    grounding: Annotated[PersonaGrounding | FactsGrounding, Field(discriminator="type")] = (
        PersonaGrounding()
    )


class ApiSamplingConfig(Component):
    """How a Roleplayer behind an API samples; null leaves a value to the server."""

    temperature: Temperature = 0.0
    top_p: TopP = None
    max_new_tokens: PositiveInt = 700


class ApiRoleplayerConfig(AnyRoleplayerConfig):
    """A Roleplayer behind any OpenAI-compatible endpoint, asked through the Oracle's client, with
    its limits, retries and budget. No engine of the run is started for it.

    Each question is asked anew; with `cache` an answer is kept in RUN/roleplayer.sqlite, and given
    again to the same request. `seeded` sends a seed with each request; not all servers take one.
    """

    type: Literal["api"]
    oracle: Annotated[OpenAIOracleConfig | AzureOracleConfig, Field(discriminator="type")]
    sampling: ApiSamplingConfig = ApiSamplingConfig()
    seeded: bool = True
    cache: bool = False

    @field_validator("oracle", mode="before")
    @classmethod
    def _user_may_be_sorry(cls, oracle: object) -> object:
        """A user who says "sorry, I can't eat nuts" has not declined: no patterns by default."""
        return {"refusal_patterns": (), **oracle} if isinstance(oracle, dict) else oracle

    @property
    def model(self) -> str:
        """Who answers."""
        return self.oracle.model
