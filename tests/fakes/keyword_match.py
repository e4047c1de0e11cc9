"""Facts that answer questions by their words, and a person who has some."""

from collections.abc import Sequence

from tests.fakes.scripted import make_pair


class KeywordMatch:
    """A fact answers a question when they share a word."""

    async def __call__(
        self, question: str, facts: Sequence[str], told: Sequence[int]
    ) -> tuple[int, ...]:
        words = {
            w.strip("?.,").lower() for w in question.split() if len(w) > 4 or w.startswith("tea")
        }
        return tuple(
            i for i, f in enumerate(facts) if i not in told and words & set(f.lower()[:-1].split())
        )

    async def states(self, text: str, fact: str) -> bool:
        return fact.split()[-1] in text


PAIR = make_pair(facts=("I love green tea.", "I own a brown dog.", "I hate tea with milk."))
