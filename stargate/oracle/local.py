"""The Oracle that is an engine of the run itself: the same cache and statuses, no server, no money.

ChatRequest -> render (the model's own chat template) -> Generate -> Reply
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from stargate.config.oracle import CostConfig, LocalOracleConfig, PriceConfig
from stargate.errors import RecordDropped
from stargate.oracle.base import CachedOracle, Question
from stargate.oracle.cost import Reservation
from stargate.oracle.records import AnswerStatus, NoReply, Reply, Usage
from stargate.protocols import Generate
from stargate.text.chat import Message
from stargate.types import GenerateRequest, Sampling, StopReason

# ChatFormat.prompt_ids of the engine's model is one.
Render = Callable[[Sequence[Message]], Sequence[int]]
# What an engine says of one request that it can't take.
_DROPPED = {"prompt_too_long": AnswerStatus.TOO_LONG}
# Seconds that an answer may take, waiting for a place in a busy engine included; a request that an
# engine has lost would be waited for without end.
_ANSWER_SECONDS = 1800.0


class LocalOracle(CachedOracle):
    """Chat completions of an engine behind the Generate protocol.

    `model` must change whenever the weights do: it stands in each cache key, and requests must name
    it. `render` turns messages into the prompt's token ids, ending where the assistant's turn
    begins. A request without a seed gets one from its key, so repeating it gives the same answer. A
    JSON schema is not enforced, only checked: what is not JSON has the status INVALID. Stop strings
    cut the text after it was generated.
    """

    def __init__(
        self,
        config: LocalOracleConfig,
        cache_path: str | Path,
        *,
        generate: Generate,
        render: Render,
        model: str,
    ) -> None:
        super().__init__(
            "local engine",
            cache_path,
            max_concurrency=config.max_concurrency,
            refusal_patterns=config.refusal_patterns,
            cost=CostConfig(
                prices={model: PriceConfig(input_per_million=0.0, output_per_million=0.0)}
            ),
        )
        self.model = model
        self._generate = generate
        self._render = render

    async def _ask(self, question: Question) -> tuple[Reply, Reservation | None] | NoReply:
        request = question.request
        if request.model != self.model:
            raise ValueError(
                f"{request.where}: this engine is {self.model!r}, "
                f"got a request for {request.model!r}"
            )
        seed = request.seed if request.seed is not None else int.from_bytes(question.key[:4], "big")
        name = f"oracle-{question.key.hex()[:16]}"
        sampling = Sampling(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            max_new_tokens=request.max_tokens,
            seed=seed,
        )
        deadline = asyncio.timeout(_ANSWER_SECONDS)
        try:
            prompt_ids = tuple(self._render(request.messages))
            async with deadline:
                generation = await self._generate(GenerateRequest(name, name, prompt_ids, sampling))
        except RecordDropped as dropped:
            return NoReply(_DROPPED.get(dropped.reason, AnswerStatus.FAILED), str(dropped))
        except TimeoutError:
            if not deadline.expired():
                raise
            return NoReply(AnswerStatus.FAILED, f"no answer within {_ANSWER_SECONDS:g} s")
        text, was_cut = _cut_at(generation.text, request.stop)
        finish = "length" if generation.stop is StopReason.LENGTH and not was_cut else "stop"
        usage = Usage(generation.num_prompt_tokens, len(generation.token_ids))
        return Reply(text, None, finish, usage, self.model), None


def _cut_at(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
