"""(torch) Which of a persona's facts answers a question: nearest in a sentence-embedding space.

    dialogues -> texts that wait -> worker thread: all of them, some at a time -> vectors

Embeds with the packaged all-MiniLM-L6-v2 (mean pooling over tokens, unit length), so a dot product
is the cosine. Facts repeat in every dialogue of a persona and are embedded once.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stargate.config.roleplayer import FactsGrounding, PersonaGrounding

# Texts that go through the model at once, shortest first, so that little of it is padding.
_BATCH = 64
# Word pieces; the model was trained with 256, and a question or fact has a tenth of that.
_MAX_TOKENS = 128


class EmbeddingMatcher:
    """Implements MatchFacts.

    One worker thread does the embedding, so the event loop never waits for it. What came while it
    worked, of however many dialogues, is embedded together.
    """

    def __init__(self, model_dir: Path, grounding: FactsGrounding, num_threads: int = 1) -> None:
        self._model_dir = model_dir
        self._grounding = grounding
        self._num_threads = num_threads
        self._vectors: dict[str, npt.NDArray[np.float32]] = {}
        self._waiting: deque[_Wanted] = deque()
        self._pool = ThreadPoolExecutor(1, "embed")
        self._model: Any = None

    async def __call__(self, question: str, facts: Sequence[str]) -> int | None:
        """The fact nearest to the question, if their cosine is min_similarity or more."""
        if not facts:
            return None
        vectors = await self._embed([question, *facts], keep=facts)
        cosines = vectors[1:] @ vectors[0]
        nearest = int(np.argmax(cosines))
        return nearest if cosines[nearest] >= self._grounding.min_similarity else None

    async def states(self, text: str, fact: str) -> bool:
        """Whether a text is near enough to a fact to still state it, with all of its numbers."""
        if not _numbers(fact) <= _numbers(text):
            return False
        vectors = await self._embed([text, fact], keep=[fact])
        return float(vectors[0] @ vectors[1]) >= self._grounding.keep_similarity

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    async def _embed(self, texts: Sequence[str], keep: Sequence[str]) -> npt.NDArray[np.float32]:
        wanted = _Wanted(list(texts), set(keep))
        self._waiting.append(wanted)
        self._pool.submit(self._embed_waiting)  # finds nothing to do where one before took it along
        return await asyncio.wrap_future(wanted.vectors)

    def _load(self) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # the screen shows the run's stages
        torch.set_num_threads(self._num_threads)
        self._tokenizer = AutoTokenizer.from_pretrained(self._model_dir)
        self._model = AutoModel.from_pretrained(self._model_dir, dtype=torch.float32).eval()

    def _embed_waiting(self) -> None:
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        taken = [wanted for wanted in waiting if wanted.vectors.set_running_or_notify_cancel()]
        if not taken:
            return
        try:
            if self._model is None:
                self._load()
            new = {text for wanted in taken for text in wanted.texts} - self._vectors.keys()
            fresh = self._embed_now(sorted(new, key=lambda text: (len(text), text)))
        except Exception as error:  # whatever it is, those who wait must hear it, not this thread
            for wanted in taken:
                wanted.vectors.set_exception(error)
            return
        for wanted in taken:
            found = [fresh[t] if t in fresh else self._vectors[t] for t in wanted.texts]
            wanted.vectors.set_result(np.stack(found))
            # Only what comes again is kept: questions are all different and would grow without
            # bound.
            self._vectors.update({text: fresh[text] for text in wanted.keep & fresh.keys()})

    def _embed_now(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        import torch

        found: dict[str, npt.NDArray[np.float32]] = {}
        for start in range(0, len(texts), _BATCH):
            part = list(texts[start : start + _BATCH])
            batch = self._tokenizer(
                part, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden = self._model(**batch).last_hidden_state  # (texts, tokens, features)
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            unit = torch.nn.functional.normalize(pooled, dim=-1).numpy()
            found |= zip(part, unit, strict=True)
        return found


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Texts of one call, and their vectors (texts, features) once they are there."""

    texts: list[str]
    keep: set[str]
    vectors: Future[npt.NDArray[np.float32]] = field(default_factory=Future)


def open_matcher(
    grounding: PersonaGrounding | FactsGrounding, model_dir: Path | None
) -> EmbeddingMatcher | None:
    """The matcher of a Roleplayer that is grounded in facts; another one needs none."""
    if model_dir is None or not isinstance(grounding, FactsGrounding):
        return None
    return EmbeddingMatcher(model_dir, grounding)


def _numbers(text: str) -> set[str]:
    return {"".join(c for c in word if c.isdigit()) for word in text.split()} - {""}
