"""What waits for embedding is embedded together, and each caller gets its own."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from stargate.config.roleplayer import FactsGrounding
from stargate.rollout.grounding import EmbeddingMatcher

FACTS = ("cats", "dogs", "fish")


class Letters(EmbeddingMatcher):
    """Vectors of letter counts. The first batch waits until it is let go."""

    def __init__(self) -> None:
        grounding = FactsGrounding(min_similarity=0.0)
        super().__init__(Path("/nowhere"), grounding)
        self.batches: list[list[str]] = []
        self.started, self.go_on = threading.Event(), threading.Event()

    def _load(self) -> None:
        self._model = "letters"

    def _embed_now(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        self.batches.append(list(texts))
        self.started.set()
        assert self.go_on.wait(30)
        if "broken" in texts:
            raise OSError("no model")
        found = {}
        for text in texts:
            counts = np.array([text.count(c) for c in "abcdefghijklmnopqrstuvwxyz"], np.float32)
            found[text] = counts / max(1.0, float(np.linalg.norm(counts)))
        return found


async def begun(matcher: Letters, question: str) -> "asyncio.Task[tuple[int, ...]]":
    """A call whose texts are being embedded."""
    first = asyncio.create_task(matcher(question, FACTS, ()))
    await asyncio.to_thread(matcher.started.wait, 30)
    return first


def test_questions_that_came_meanwhile_are_one_batch() -> None:
    async def ask() -> None:
        matcher = Letters()
        first = await begun(matcher, "cat")
        others = [asyncio.create_task(matcher(q, FACTS, (2,))) for q in ("dog", "cat", "d")]
        others[2].cancel()
        await asyncio.sleep(0)
        matcher.go_on.set()
        assert (await first)[0] == 0
        assert [(await one)[0] for one in others[:2]] == [1, 0]
        # Facts are embedded once, a question that nobody waits for is not.
        assert matcher.batches == [["cat", "cats", "dogs", "fish"], ["cat", "dog"]]
        matcher.close()

    asyncio.run(ask())


def test_what_fails_is_heard_by_those_who_waited_for_it() -> None:
    async def ask() -> None:
        matcher = Letters()
        first = await begun(matcher, "cat")
        both = [asyncio.create_task(matcher(q, FACTS, ())) for q in ("broken", "dog")]
        await asyncio.sleep(0)
        matcher.go_on.set()
        assert (await first)[0] == 0
        for one in both:
            with pytest.raises(OSError, match="no model"):
                await one
        assert (await matcher("dog", FACTS, ()))[0] == 1
        matcher.close()

    asyncio.run(ask())
