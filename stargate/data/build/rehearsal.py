"""A build without a call: what it would ask, how much of that is answered already, what the rest
costs.

The same code runs with an Oracle that answers from the cache only. Where a persona is not there
yet, a stand-in as long as its answer may be takes its place, so that golds are counted with prompts
of the right length.
"""

import random
from collections.abc import Iterable
from itertools import chain

from stargate.oracle.base import CachedOracle
from stargate.oracle.cost import Estimate
from stargate.oracle.records import AnswerStatus, ChatRequest, ChatResult

# English text has about 4 characters per token.
_CHARACTERS_PER_TOKEN = 4
_WORDS_PER_SENTENCE = 8
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


class RehearsalOracle:
    """Answers from the cache; else with a stand-in, and asks nobody. `asked` keeps each request."""

    def __init__(self, oracle: CachedOracle, min_words: int, min_facts: int) -> None:
        self._oracle = oracle
        self._min_words = min_words
        self._min_facts = min_facts
        self.asked: list[ChatRequest] = []
        self.num_standins = 0

    async def complete(self, request: ChatRequest) -> ChatResult:
        self.asked.append(request)
        if self._oracle.estimate([request]).cached:
            return await self._oracle.complete(request)
        if request.purpose == "persona":
            self.num_standins += 1
            text = self._persona(request)
        else:
            # The facts of a stand-in are its sentences: they stand in the request.
            whole = request.messages[-1].text
            text = "\n".join(f"{s.strip()}." for s in whole.split(".") if s.strip().startswith("I"))
        return ChatResult(AnswerStatus.OK, text, None, None, False, "")

    def estimate(self, more: Iterable[ChatRequest]) -> Estimate:
        """All that was asked, and `more`."""
        return self._oracle.estimate(chain(self.asked, more))

    def _persona(self, request: ChatRequest) -> str:
        """Sentences of made-up words: no two stand-ins are alike, all facts are stated."""
        rng = random.Random(request.record)
        name = _word(rng).title() + _word(rng)
        sentences: list[str] = []
        length = request.max_tokens * _CHARACTERS_PER_TOKEN
        while (
            sum(map(len, sentences)) < length
            or len(sentences) <= self._min_facts
            or len(sentences) * _WORDS_PER_SENTENCE < self._min_words
        ):
            sentences.append("I " + " ".join(_word(rng) for _ in range(_WORDS_PER_SENTENCE)) + ".")
        return f"Name: {name}\n" + " ".join(sentences)


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(3))
