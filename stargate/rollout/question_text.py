"""What a text asks, and whether that was asked before.

Words are compared by stem, without those that carry no topic: "What do you like to eat?" and "What
do you like eating?" ask the same. A paraphrase in other words is not seen.
"""

import re
from collections.abc import Sequence

# What asks for information without a question mark ("Tell me about your budget.").
_REQUEST = re.compile(
    r"^\s*(please\s+)?(tell|describe|share|let me know|explain|give me)\b", re.IGNORECASE
)
_SENTENCE = re.compile(r"[^.!?]*[.!?]+|[^.!?]+$")
# Share of content words (intersection over union) from which two questions ask the same.
SAME_QUESTION = 0.75
# Letters by which two forms of one word are taken as the same ("walks" and "walking").
_STEM_LETTERS = 5
# Words that carry no claim about a person and no topic of a question.
_EMPTY_TEXT = """
a about after all also am an and any are as at be because been but by can could did do does for
from had has have how i if in into is it its just kind like me my myself no not of on or our own
please so some such tell that the their them then there these they this those to too up us very
was we well were what when where which who whom whose why will with would yes you your
"""
_EMPTY_WORDS = frozenset(_EMPTY_TEXT.split())


def questions_in(text: str) -> list[str]:
    """The sentences of a turn that ask for something:

    those with a question mark, or a request to tell.
    """
    sentences = [found[0].strip() for found in _SENTENCE.finditer(text)]
    return [s for s in sentences if s.endswith("?") or _REQUEST.match(s)]


def is_mostly_asking(text: str) -> bool:
    """Whether most of a text's words stand in sentences with a question mark: what was to be an
    answer asks. An offer to go on after an answer is few words beside it.
    """
    sentences = [found[0].strip() for found in _SENTENCE.finditer(text)]
    asked = sum(len(words_of(s)) for s in sentences if s.endswith("?"))
    return len(words_of(text)) < 2 * asked


def is_repeated(question: str, earlier: Sequence[str]) -> bool:
    """Whether a question was asked before: the same content words, or nearly."""
    key = question_key(question)
    return any(is_near(key, question_key(other)) for other in earlier)


def question_key(question: str) -> frozenset[str]:
    """What a question asks: its content words. One without any ("Why?") is all of its words."""
    return frozenset(content_words(question)) or frozenset({f"? {' '.join(words_of(question))}"})


def is_near(key: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two keys ask the same, or nearly."""
    return len(key & other) / len(key | other) >= SAME_QUESTION


def words_of(text: str) -> list[str]:
    straight = text.lower().replace("\u2019", "'")
    return [word.split("'")[0] for word in re.findall(r"[^\W_]+(?:'[^\W_]+)?", straight)]


def content_words(text: str) -> list[str]:
    """Stems of the words that say something."""
    return [_stem(word) for word in words_of(text) if word not in _EMPTY_WORDS]


def _stem(word: str) -> str:
    plural = len(word) > 3 and word.endswith("s") and not word.endswith("ss")
    return (word[:-1] if plural else word)[:_STEM_LETTERS]
