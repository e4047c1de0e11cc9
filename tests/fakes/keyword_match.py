"""Facts that answer questions by their words, and a person who has some."""

from collections.abc import Sequence

from tests.fakes.scripted import make_pair


class KeywordMatch:
    """The fact that shares most words with a question answers it, of equals the first."""

    async def __call__(self, question: str, facts: Sequence[str]) -> int | None:
        words = {
            w.strip("?.,").lower() for w in question.split() if len(w) > 3 or w.startswith("tea")
        }
        shared = [len(words & set(fact.lower()[:-1].split())) for fact in facts]
        return shared.index(max(shared)) if any(shared) else None

    async def states(self, text: str, fact: str) -> bool:
        return fact.split()[-1] in text


PAIR = make_pair(facts=("I love green tea.", "I own a brown dog.", "I hate tea with milk."))
