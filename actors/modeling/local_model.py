"""(torch) One model in this process, for one user: it is there in seconds and streams.

Engines are for many texts at once; these take none of Ray's and vLLM's start.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stargate.actors.modeling.model import load_model, max_positions
from stargate.errors import DataError
from stargate.types import GenerateRequest, Generation, Sampling, StopReason

# What takes a text as it is written, piece by piece.
Hear = Callable[[str], None]


class LocalModel:
    """Implements Generate. `tokenizer` is the model's own, of transformers. Raises ModelError."""

    def __init__(
        self, model_dir: str, tokenizer: Any, device: str, trust_remote_code: bool
    ) -> None:
        self._model = load_model(model_dir, None, device, trust_remote_code)
        self._tokenizer = tokenizer
        self._device = device
        self._max_positions = max_positions(self._model)

    async def __call__(self, request: GenerateRequest) -> Generation:
        return self.generate(request.prompt_ids, request.sampling)

    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, hear: Hear | None = None
    ) -> Generation:
        """Writes one text; `hear` gets it meanwhile, without special tokens.

        Raises DataError for a prompt that leaves no room in the model's context.
        """
        room = self._max_positions - len(prompt_ids)
        if room < 1:
            raise DataError(
                f"the dialogue has {len(prompt_ids)} tokens, the model's context "
                f"{self._max_positions}: begin a new one"
            )
        torch.manual_seed(sampling.seed)
        ends = self._end_ids(sampling)
        prompt = torch.tensor([list(prompt_ids)], device=self._device)
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0.0:
            drawn = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
        with torch.inference_mode():
            written = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=min(room, sampling.max_new_tokens),
                eos_token_id=ends,
                pad_token_id=ends[0],
                streamer=None if hear is None else _streamer(self._tokenizer, hear),
                **drawn,
            )
        ids = tuple(written[0, len(prompt_ids) :].tolist())
        return Generation(
            text=str(self._tokenizer.decode(list(ids), skip_special_tokens=True)),
            token_ids=ids,
            stop=StopReason.STOP if ids and ids[-1] in ends else StopReason.LENGTH,
            policy_version=0,
            num_prompt_tokens=len(prompt_ids),
        )

    def _end_ids(self, sampling: Sampling) -> list[int]:
        known = self._model.generation_config.eos_token_id
        own = [known] if isinstance(known, int) else list(known or ())
        return list(dict.fromkeys((*own, *sampling.stop_ids)))


def _streamer(tokenizer: Any, hear: Hear) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc]  # transformers has no types
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            hear(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
