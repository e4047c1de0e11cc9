"""Which two responses a judge compares, for which pair. Pure.

    set        candidate                                 baseline
    own        m_t, after m_t's dialogue                 m_0, after m_0's dialogue
    fixed      m_0, after m_t's dialogue                 m_0, after m_0's dialogue
    gold       the gold                                  m_0
    self       m_0, after its dialogue 0                 m_0, after its dialogue 1 of the same pair
    praise     m_0                                       a constant praise that answers nothing
    shuffled   m_0, for this persona                     m_0, for the next persona of the same task

`own` and `fixed` are the win rates; the others are trials of the judge itself, in which the better
response is the candidate (`self`: neither is). In a trial no side says a name: m_0 and golds call
the person by it, so a judge that looks for the name alone would pass. One comparison per pair and
set. A pair without one of the two responses has no comparison: that is counted by `drop`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from stargate.errors import RecordDropped
from stargate.evaluation.playing import next_personas
from stargate.seeds import derive_seed
from stargate.types import Pair

Drop = Callable[[RecordDropped], None]

# What stands in a trial in place of a person's name.
_ANYBODY = "Friend"


class Order(StrEnum):
    """Which response is shown as A."""

    CANDIDATE_FIRST = "candidate_first"
    CANDIDATE_SECOND = "candidate_second"


@dataclass(frozen=True, slots=True)
class Response:
    """What m_`responder_version` finally said after a dialogue: a row of `responses`."""

    dialogue_id: str
    pair_id: str
    responder_version: int
    text: str
    num_tokens: int
    stop: str


@dataclass(frozen=True, slots=True)
class ComparedResponse:
    """One side of a comparison. `label` says what it is ("m1 eval-m1/t:p/0"), `length` is in
    tokens.
    """

    label: str
    text: str
    length: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two responses for one pair; the judge sees the pair's task AND persona. `name` is its set."""

    name: str
    pair: Pair
    candidate: ComparedResponse
    baseline: ComparedResponse

    @property
    def where(self) -> str:
        """How messages name it: "own t:p m1 eval-m1/t:p/0 against m0 eval-m0/t:p/0"."""
        return f"{self.name} {self.pair.id} {self.candidate.label} against {self.baseline.label}"


def choose_pairs(pairs: Sequence[Pair], max_pairs: int | None, seed: int) -> list[Pair]:
    """The pairs that are judged: at most `max_pairs` of those with a gold, spread evenly.

    Each next pair is one of those whose task and persona were chosen least so far; the seed decides
    between equals. So the choice does not depend on the pairs' order, and a larger one begins with
    the smaller one: what was judged stays of use.
    """
    left = sorted(
        (pair for pair in pairs if pair.gold is not None),
        key=lambda pair: (derive_seed(seed, "judge", pair.id), pair.id),
    )
    if max_pairs is None or max_pairs >= len(left):
        return left
    tasks: Counter[str] = Counter()
    personas: Counter[str] = Counter()
    chosen: list[Pair] = []
    while len(chosen) < max_pairs:
        place = min(
            range(len(left)),
            key=lambda i: tasks[left[i].task.id] + personas[left[i].persona.id],
        )
        pair = left.pop(place)
        tasks[pair.task.id] += 1
        personas[pair.persona.id] += 1
        chosen.append(pair)
    return chosen


def with_next_personas(chosen: Sequence[Pair], pairs: Sequence[Pair]) -> list[Pair]:
    """The chosen pairs and their neighbours in `shuffled`: those that m_0 must respond to."""
    wanted = {pair.id: pair for pair in chosen}
    for pair in chosen:
        for other in next_personas(pair, pairs)[:1]:
            wanted.setdefault(other.id, other)
    return list(wanted.values())


def win_rate_comparisons(
    version: int,
    chosen: Sequence[Pair],
    candidates: Iterable[Response],
    baselines: Iterable[Response],
    drop: Drop,
) -> list[Comparison]:
    """`own` and `fixed` of m_`version`.

    `candidates` are the responses of its scope, `baselines` those of eval-m0.
    """
    after_its_own = list(candidates)
    m0 = _by_pair(baselines, 0)
    sets = {"own": _by_pair(after_its_own, version), "fixed": _by_pair(after_its_own, 0)}
    return [
        Comparison(name, pair, of_candidate[0], of_baseline[0])
        for name, responses in sets.items()
        for pair in chosen
        if (of_candidate := _found(responses, pair, 1, name, drop))
        and (of_baseline := _found(m0, pair, 1, name, drop))
    ]


def trial_comparisons(
    chosen: Sequence[Pair],
    pairs: Sequence[Pair],
    responses: Iterable[Response],
    praise: str,
    count: Callable[[str], int],
    drop: Drop,
) -> list[Comparison]:
    """The judge's trials, all about m_0: `gold`, `self`, `praise` and `shuffled`.

    `responses` are those of eval-m0, `pairs` all that may have one (the next persona is among
    them), `count` tells the tokens of a text.
    """
    m0 = _by_pair(responses, 0)
    constant = ComparedResponse("praise", praise, count(praise))
    comparisons: list[Comparison] = []

    def add(
        name: str, pair: Pair, candidate: ComparedResponse, baseline: ComparedResponse, other: Pair
    ) -> None:
        """`baseline` was said to the person of `other`."""
        names = (pair.persona.name, other.persona.name)
        candidate, baseline = (
            replace(side, text=without_names(side.text, names)) for side in (candidate, baseline)
        )
        comparisons.append(Comparison(name, pair, candidate, baseline))

    for pair in chosen:
        if pair.gold is not None and (own := _found(m0, pair, 1, "gold", drop)):
            gold = ComparedResponse("gold", pair.gold, count(pair.gold))
            add("gold", pair, gold, own[0], pair)
        if own := _found(m0, pair, 2, "self", drop):
            add("self", pair, own[0], own[1], pair)
        if own := _found(m0, pair, 1, "praise", drop):
            add("praise", pair, own[0], constant, pair)
        if own := _found(m0, pair, 1, "shuffled", drop):
            others = (other for other in next_personas(pair, pairs) if other.id in m0)
            if other := next(others, None):
                add("shuffled", pair, own[0], m0[other.id][0], other)
            else:
                problem = "no other persona's response to the task"
                drop(RecordDropped("no_comparison", f"shuffled {pair.id}", problem))
    return comparisons


def without_names(text: str, names: Iterable[str]) -> str:
    """A text with "Friend" for every one of these names, whole or in part ("Rosa" of "Rosa Diaz").

    Parts are words with a capital letter: "Ana de la Cruz" has no part "la". A name that is a word,
    too ("Will"), can't be told from it where a sentence begins.
    """
    for name in filter(None, names):
        parts = [part for part in re.findall(r"[^\W\d_]{2,}", name) if part[0].isupper()]
        forms = {form for part in (name, *parts) for form in (part, part.upper())}
        word = "|".join(map(re.escape, sorted(forms, key=lambda form: (-len(form), form))))
        # Scripts without capitals put no spaces around a name.
        edge = r"\b" if name.lower() != name.upper() else ""
        text = re.sub(rf"{edge}(?:{word})(?:[\s-]+(?:{word}))*{edge}", _ANYBODY, text)
    return text


def _by_pair(
    responses: Iterable[Response], responder_version: int
) -> dict[str, list[ComparedResponse]]:
    """One responder's responses by pair, in the order of the dialogues' indices."""
    found: dict[str, list[ComparedResponse]] = {}
    for said in sorted(responses, key=lambda said: int(said.dialogue_id.rpartition("/")[2])):
        if said.responder_version == responder_version:
            label = f"m{said.responder_version} {said.dialogue_id}"
            response = ComparedResponse(label, said.text, said.num_tokens)
            found.setdefault(said.pair_id, []).append(response)
    return found


def _found(
    responses: Mapping[str, Sequence[ComparedResponse]], pair: Pair, num: int, name: str, drop: Drop
) -> Sequence[ComparedResponse] | None:
    """At least `num` responses for a pair; None, counted, where there are fewer."""
    found = responses.get(pair.id, ())
    if len(found) >= num:
        return found
    drop(RecordDropped("no_comparison", f"{name} {pair.id}", f"{len(found)} of {num} responses"))
    return None
