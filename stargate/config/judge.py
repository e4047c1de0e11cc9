"""Who judges, how many pairs, how it must answer, and what it must reach to be believed.

    evaluation:
      judge:
        backend: {type: api, oracle: {type: openai, model: gpt-4o}, verdict: json_schema}
        max_pairs: 100

Imports nothing of stargate.config.run, which has JudgeConfig as a field.
"""

from typing import Annotated, Literal

from pydantic import Field

from stargate.config.component import Component, Fraction, PositiveInt
from stargate.config.oracle import AzureOracleConfig, OpenAIOracleConfig, Temperature


class JudgeThresholds(Component):
    """What a judge must reach.

    A coin would get 0.5 in every rate and in order consistency, with a standard error of 0.05
    after 50 comparisons: 0.6 is two of them above it. Empty praise says nothing at all, so a
    judge that can't tell it from an answer most of the time reads tone, not content.
    """

    max_self_deviation: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    min_gold_rate: Fraction = 0.6
    min_praise_rate: Fraction = 0.8
    min_shuffled_rate: Fraction = 0.6
    min_order_consistency: Fraction = 0.6
    max_unparsable_rate: Fraction = 0.1
    min_comparisons: PositiveInt = 20


class EngineBackend(Component):
    """The run's own Roleplayer engine, greedy. It can't hold a reply to a schema.

    `max_concurrency` requests are in flight; those beyond the engine's max_num_seqs wait there.
    """

    type: Literal["engine"] = "engine"
    max_concurrency: PositiveInt = 64


class ApiBackend(Component):
    """Any OpenAI-compatible endpoint, with the Oracle's cache, limits, retries and budget."""

    type: Literal["api"]
    oracle: Annotated[OpenAIOracleConfig | AzureOracleConfig, Field(discriminator="type")]
    verdict: Literal["text", "json_schema"] = "text"
    temperature: Temperature = 0.0


class JudgeConfig(Component):
    """An LLM judge over pairs of responses.

    Every comparison takes two calls, one per order. A checkpoint has two sets of comparisons with
    m_0, and m_0 four trials of the judge itself, so a run of T iterations takes
    2 x (2 T + 4) x max_pairs calls.
    """

    backend: Annotated[EngineBackend | ApiBackend, Field(discriminator="type")] = EngineBackend()
    prompts: str = "judge"  # a packaged template file, or a YAML file of your own
    max_pairs: PositiveInt | None = 100  # per set, spread over tasks and personas; None: all
    # Limit of the responses that are judged; None: response.sampling.max_new_tokens.
    max_response_tokens: PositiveInt | None = None
    # Limit of the judge's own words; a reply that reaches it has no verdict.
    max_reply_tokens: PositiveInt = 512
    thresholds: JudgeThresholds = JudgeThresholds()
