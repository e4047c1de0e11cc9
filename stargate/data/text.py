"""Plain text of data: tidy spacing, sentences, words. Nothing here depends on a library.

Word lists and abbreviations are English; spacing, sentence ends and word boundaries work for other
languages too.
"""

import re
import unicodedata
from functools import lru_cache


def word_set(text: str) -> frozenset[str]:
    """The words of a text as a set: word lists stay readable in the source."""
    return frozenset(text.split())


# Written with a capital, they belong to the name that follows.
_TITLES = word_set(
    "dr mr mrs ms mx prof st mt ft gen col capt cpt lt sgt maj rev hon fr sen rep gov pres fig vol"
)
# What follows belongs to the same sentence.
_NEVER_END = word_set("vs cf e.g i.e approx ca")
# They abbreviate only before a number: "No. 5", "Jan. 18".
_BEFORE_NUMBER = word_set("no nos p pp ch jan feb mar apr jun jul aug sep sept oct nov dec")
# They may end a sentence or stand inside one: what comes next decides.
_MAY_END = word_set("etc a.m p.m ph.d m.d b.a m.a inc ltd co corp jr sr al")
# Words that begin a sentence far more often than they follow an abbreviation within one.
_STARTERS = word_set(
    "i he she it they we you my his her its their our your the this that these those there a an "
    "in on at after before when while although though but and so yet despite with without as "
    "currently born now once every for from by if since until never not now then today outside "
    "raised known having being growing when whenever because one some most many all both"
)
# The plain forms of quotation marks and apostrophes.
QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
FIRST_PERSON = word_set("i i'm i've i'd i'll me my mine myself we we're we've our ours us")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_BREAK = re.compile(
    r"(?P<blank>\n[^\S\n]*\n\s*)"  # an empty line
    r"|(?P<bullet>\n(?=[^\S\n]*(?:[-*\u2022]|\d{1,3}[.)])\s))"  # the next list item
    r"|(?P<wide>[\u3002\uff01\uff1f]+[\u300d\u300f\uff09]*)"  # full-width ends need no space after
    r"|(?P<end>[.!?\u2026]+)[\"'\u201d\u2019)\]\u00bb]*(?=\s|$)"
)
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_SPACES = re.compile(r"[^\S\n]+")
_NEWLINES = re.compile(r"\n{3,}")

STOPWORDS = word_set(
    "a about above after again all almost also always am an and another any anyone anything are "
    "as at away back be because been before being below best better between both but by can "
    "cannot come could did do does doing done down during each either else enough even ever "
    "every few for from get gets getting give go goes going good got had has have having he "
    "help her here hers him himself his how i if in into is it its itself just keep know let "
    "like ll look lot made make makes many may me might mine more most much must my myself need "
    "needs neither never new next no nor not nothing now of off often on once one only onto or "
    "other our ours out over own perhaps please put quite rather re really s same say see shall "
    "she should since so some something still such t take tell than that the their theirs them "
    "themselves then there these they thing things think this those though through time to "
    "together too two under until up upon us use used using ve very want wants was way we well "
    "were what when where whether which while who whole whom whose why will with within without "
    "would year years yes yet you your yours yourself i'm i'd i'll i've you're you'll you've "
    "it's that's there's don't doesn't isn't can't won't he's she's they're we're let's what's"
)


def tidy(text: str) -> str:
    """Single spaces, no spaces at line ends, at most one empty line, no control characters.

    Every kind of blank counts as a space; an indentation of two and more stays (lists, code). A
    tidy text stays as it is.
    """
    text = without_controls(text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = [_tidy_line(line) for line in text.split("\n")]
    return _NEWLINES.sub("\n\n", "\n".join(lines)).strip()


def _tidy_line(line: str) -> str:
    rest = line.lstrip()
    indent = len(line[: len(line) - len(rest)].expandtabs(4))
    return (" " * indent if indent > 1 and rest else "") + _SPACES.sub(" ", rest).rstrip()


def without_controls(text: str) -> str:
    """The text without control characters (line breaks and tabs stay), byte order marks, lone
    surrogates (which can't be written as UTF-8) and private-use characters (no honest text has
    them, and `stargate/text/plain_text.py` marks places with them).
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if not _is_control(c))


def _is_control(character: str) -> bool:
    if character in "\n\t\u2028\u2029\x85\x0b\x0c":
        return False  # blanks: tidy turns them into spaces
    return character == "\ufeff" or unicodedata.category(character) in ("Cc", "Cs", "Co")


def same_text_key(text: str) -> str:
    """Equal for texts that differ in case, spacing, quotation marks or final punctuation only."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(QUOTES)
    return " ".join(folded.split()).rstrip(".!?\u2026 ")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, in order; together they hold every non-blank character."""
    spans: list[tuple[int, int]] = []
    start = 0
    for found in _BREAK.finditer(text):
        if found["end"] is None or _ends_sentence(text, start, found):
            _add_span(spans, text, start, found.end())
            start = found.end()
    _add_span(spans, text, start, len(text))
    return spans


def _add_span(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    part = text[start:end]
    if part.strip():
        start += len(part) - len(part.lstrip())
        spans.append((start, start + len(part.strip())))


def _ends_sentence(text: str, start: int, found: re.Match[str]) -> bool:
    # A few characters around the mark decide, however long the text is.
    after = text[found.end() : found.end() + 80].lstrip().lstrip("\"'\u201c\u2018([\u00ab")
    if not after:
        return True
    if after[0].islower():
        return False
    if found["end"] != ".":
        return True
    near = text[max(start, found.start() - 40) : found.start()]
    before = re.search(r"[^\s\"'\u201c\u2018(\[]*$", near)
    word = before.group() if before else ""
    if word.isdigit():
        # "1. Choose a room": the number of a list item, not a sentence.
        line_start = max(start, text.rfind("\n", 0, found.start()) + 1)
        return text[line_start : found.start()].strip() != word
    folded = word.lower()
    if folded in _NEVER_END or (folded in _TITLES and word[0].isupper()):
        return False
    if folded in _BEFORE_NUMBER and after[0].isdigit():
        return False
    if folded in _MAY_END or (_INITIALS.fullmatch(word) and word != "I"):
        next_word = _WORD.match(after)
        return next_word is not None and next_word.group().lower().split("'")[0] in _STARTERS
    return True


def words(text: str) -> list[str]:
    """Words in lower case, with the plain apostrophe."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def num_words(text: str) -> int:
    """Words as a person counts them: parts between blanks."""
    return len(text.split())


def content_words(text: str) -> list[str]:
    """Stems of the words that carry content, in order, with repetitions."""
    return [stem for word in words(text) if (stem := content_stem(word))]


@lru_cache(maxsize=200_000)
def content_stem(word: str) -> str:
    """The stem, or "" for a function word. A crude stemmer: both sides of every comparison use it,
    so a wrong stem costs little.
    """
    if word in STOPWORDS:
        return ""
    word = word.removesuffix("'s").replace("'", "")
    if word in STOPWORDS:
        return ""
    for suffix, replacement in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if suffix == "s" and word.endswith("ss"):
            break
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)] + replacement
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeious":
        word = word[:-1]  # planning -> plan
    return word.removesuffix("e") if len(word) > 3 else word
