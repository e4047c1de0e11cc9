"""What a text asks, and whether that was asked before.

Words are compared by stem, without those that carry no topic: "What do you like to eat?" and "What
do you like eating?" ask the same. A paraphrase in other words is not seen.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

# What a question asks: its content words.
Key = frozenset[str]

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


def question_key(question: str) -> Key:
    """What a question asks: its content words. One without any ("Why?") is all of its words."""
    return frozenset(content_words(question)) or frozenset({f"? {' '.join(words_of(question))}"})


def is_near(key: Key, other: Key) -> bool:
    """Whether two keys ask the same, or nearly."""
    return len(key & other) / len(key | other) >= SAME_QUESTION


def tasks_with_copies(tasks: Mapping[Key, set[str]], enough: int) -> dict[Key, set[str]]:
    """The tasks in which each question or a near copy was asked; some of them where those are
    `enough`.

    `tasks` are those of each wording. Two keys that share SAME_QUESTION of their words share one of
    the rarest words of each: of n words those that are left when all but one of the needed are
    taken away. Only keys that share such a word are compared ("prefix filtering": Chaudhuri et al.,
    ICDE 2006), and where all are near to all none is compared with more than it takes.
    """
    counts = Counter(chain.from_iterable(tasks))
    rare: dict[Key, list[str]] = {}
    with_word: dict[str, list[Key]] = defaultdict(list)
    for key in tasks:
        rarest_first = sorted(key, key=lambda word: (counts[word], word))
        needed = math.ceil(SAME_QUESTION * len(key))
        rare[key] = rarest_first[: len(key) - needed + 1]
        for word in rare[key]:
            with_word[word].append(key)
    found: dict[Key, set[str]] = {}
    for key in tasks:
        found[key] = set(tasks[key])
        for other in chain.from_iterable(with_word[word] for word in rare[key]):
            if len(found[key]) >= enough:
                break
            if is_near(key, other):
                found[key] |= tasks[other]
    return found


def words_of(text: str) -> list[str]:
    straight = text.lower().replace("\u2019", "'")
    return [word.split("'")[0] for word in re.findall(r"[^\W_]+(?:'[^\W_]+)?", straight)]


def content_words(text: str) -> list[str]:
    """Stems of the words that say something."""
    return [_stem(word) for word in words_of(text) if word not in _EMPTY_WORDS]


def _stem(word: str) -> str:
    plural = len(word) > 3 and word.endswith("s") and not word.endswith("ss")
    return (word[:-1] if plural else word)[:_STEM_LETTERS]
