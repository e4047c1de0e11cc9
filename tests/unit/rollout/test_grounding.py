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

    def __init__(self, min_similarity: float = 0.0) -> None:
        super().__init__(Path("/nowhere"), FactsGrounding(min_similarity=min_similarity))
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


async def begun(matcher: Letters, question: str) -> "asyncio.Task[int | None]":
    """A call whose texts are being embedded."""
    first = asyncio.create_task(matcher(question, FACTS))
    await asyncio.to_thread(matcher.started.wait, 30)
    return first


def test_questions_that_came_meanwhile_are_one_batch() -> None:
    async def ask() -> None:
        matcher = Letters()
        first = await begun(matcher, "cat")
        others = [asyncio.create_task(matcher(q, FACTS)) for q in ("dog", "cat", "d")]
        others[2].cancel()
        await asyncio.sleep(0)
        matcher.go_on.set()
        assert await first == 0
        assert [await one for one in others[:2]] == [1, 0]
        # Facts are embedded once, a question that nobody waits for is not.
        assert matcher.batches == [["cat", "cats", "dogs", "fish"], ["cat", "dog"]]
        matcher.close()

    asyncio.run(ask())


def test_what_fails_is_heard_by_those_who_waited_for_it() -> None:
    async def ask() -> None:
        matcher = Letters()
        first = await begun(matcher, "cat")
        both = [asyncio.create_task(matcher(q, FACTS)) for q in ("broken", "dog")]
        await asyncio.sleep(0)
        matcher.go_on.set()
        assert await first == 0
        for one in both:
            with pytest.raises(OSError, match="no model"):
                await one
        assert await matcher("dog", FACTS) == 1
        matcher.close()

    asyncio.run(ask())


def test_the_nearest_fact_answers_if_it_is_near_enough() -> None:
    """Cosines of letter counts: "god" is 3 / sqrt(3 x 4) = 0.866 from "dogs", 0 from the others."""

    async def ask(question: str, *facts: str) -> int | None:
        matcher = Letters(min_similarity=0.86)
        matcher.go_on.set()
        try:
            return await matcher(question, facts)
        finally:
            matcher.close()

    assert asyncio.run(ask("god", *FACTS)) == 1
    assert asyncio.run(ask("go", *FACTS)) is None  # 2 / sqrt(2 x 4) = 0.707
    assert asyncio.run(ask("god", "good", "dog")) == 1  # 0.943 and 1: the nearer one
    assert asyncio.run(ask("god", "dog", "dog")) == 0
    assert asyncio.run(ask("god")) is None
