"""The policy asks: a prompt in its view of the dialogue -> an engine samples the next question."""

from collections.abc import Sequence
from dataclasses import replace

from stargate.config.run import SamplingConfig
from stargate.errors import RecordDropped
from stargate.protocols import Generate
from stargate.seeds import derive_seed
from stargate.text.chat import ChatFormat
from stargate.text.formats import heard_from
from stargate.text.views import Views
from stargate.types import DialoguePlan, GenerateRequest, Generation, Sampling, Turn


class Questioner:
    """An Ask, with the policy's current weights."""

    def __init__(
        self,
        generate: Generate,
        views: Views,
        chat: ChatFormat,
        sampling: SamplingConfig,
        max_model_len: int,
    ) -> None:
        self._generate = heard_from(generate, chat)
        self._views = views
        self._chat = chat
        self._sampling = sampling
        self._max_model_len = max_model_len

    async def __call__(
        self, plan: DialoguePlan, turns: Sequence[Turn], session: str | None = None
    ) -> Generation:
        """The question after `turns`. `session` differs from the dialogue's id where it is asked
        for once more.

        Raises RecordDropped if the prompt is too long or the question empty.
        """
        prompt_ids = self._chat.prompt_ids(self._views.questioner(plan.pair, turns))
        session = session or plan.dialogue_id
        where = f"{plan.dialogue_id} question {len(turns) + 1}"
        require_room(prompt_ids, self._sampling.max_new_tokens, self._max_model_len, where)
        seed = derive_seed(plan.seed, "q", len(turns))
        generation = await self._generate(
            GenerateRequest(
                request_id=f"{session}/q{len(turns)}",
                session=session,
                prompt_ids=prompt_ids,
                sampling=replace(sampling_of(self._sampling, seed), logprobs=True),
            )
        )
        if not generation.text.strip():
            said = f"the Questioner said nothing in {len(generation.token_ids)} tokens"
            raise RecordDropped("empty_question", where, said)
        return generation


def sampling_of(config: SamplingConfig, seed: int) -> Sampling:
    """The sampling of one request."""
    return Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        seed=seed,
    )


def require_room(
    prompt_ids: Sequence[int], max_new_tokens: int, max_model_len: int, where: str
) -> None:
    """Raises RecordDropped unless the prompt and all new tokens fit the model's context."""
    if len(prompt_ids) + max_new_tokens > max_model_len:
        raise RecordDropped(
            "prompt_too_long",
            where,
            f"{len(prompt_ids)} prompt + {max_new_tokens} new tokens, "
            f"the context has {max_model_len}",
        )
