"""Personas that an Oracle invents, and facts for them.

    open places -> text -> name? long enough? like no other? -> facts -> enough that are stated?
          ^                                                                         |
          +--------------- not usable: once more, with other examples <-------------+

Round by round: all open places ask at once, and what came is judged in the order of the places, so
the result does not depend on which answer came first. All personas are in memory (the paper has
110).
"""

import asyncio
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from stargate.data.build.config import FactsConfig, FilePersonas, GeneratedPersonas
from stargate.data.build.facts import check_facts
from stargate.data.build.prompts import BuildPrompts
from stargate.data.build.report import SourceReport
from stargate.data.similarity import Features, features_of, jaccard
from stargate.data.text import num_words, tidy
from stargate.errors import DataError
from stargate.oracle.records import ChatRequest, ChatResult, Complete
from stargate.seeds import derive_seed
from stargate.types import Persona

# Initials that many first names of the world have.
_INITIALS = "ABCDEFGHIJKLMNOPRSTVWYZ"
_NAME_LINE = re.compile(r"\s*[*_#]*\s*name\s*[*_]*\s*:\s*[*_]*\s*(.+)", re.I)
_NAME_IN_TEXT = re.compile(
    r"\b(?:I['\u2019]m|I am|[Mm]y name is|call me)\s+"
    r"([^\W\d_][\w'\u2019-]*(?:\s+[A-Z][\w'\u2019-]*){0,2})"
)
_NAME = re.compile(r"[^\W\d_][\w.'\u2019-]*(?: [^\W\d_][\w.'\u2019-]*){0,4}")
_MAX_NAME = 60


@dataclass(frozen=True, slots=True)
class Place:
    """One persona to be made."""

    split: str
    index: int

    @property
    def id(self) -> str:
        return f"{self.split}-persona-{self.index}"


@dataclass
class Cast:
    """The personas so far: no name and no text like another's."""

    max_similarity: float
    names: dict[str, str] = field(default_factory=dict)  # folded -> as written
    _features: list[tuple[str, Features]] = field(default_factory=list)

    def objection(self, name: str, text: str) -> tuple[str, str] | None:
        """(reason, detail) why this one is too much like another, or None."""
        if name.casefold() in self.names:
            return "persona_name_taken", name
        other = self.twin(text)
        return None if other is None else ("persona_like_another", f"like {other}")

    def twin(self, text: str) -> str | None:
        """Which persona a text is too similar to."""
        found = features_of(text, "personas")
        near = (other for other, f in self._features if jaccard(found, f) >= self.max_similarity)
        return next(near, None)

    def add(self, id: str, name: str, text: str) -> None:
        self.names[name.casefold()] = name
        self._features.append((id, features_of(text, "personas")))


@dataclass(frozen=True, slots=True)
class PersonaWriter:
    """Writes personas through an Oracle. `advance` is called with how many were finished."""

    oracle: Complete
    prompts: BuildPrompts
    model: str
    seed: int
    report: SourceReport
    advance: Callable[[int], None]

    async def write(self, config: GeneratedPersonas) -> list[Persona]:
        """All personas, in the order of the splits. Raises DataError if a split got none."""
        cast = Cast(config.max_similarity)
        for number, example in enumerate(self.prompts.examples):
            cast.add(f"example {number + 1}", example.name, example.text)
        places = [Place(split, i) for split, count in config.count.items() for i in range(count)]
        made: dict[Place, Persona] = {}
        for attempt in range(config.max_attempts):
            open_places = [place for place in places if place not in made]
            if not open_places:
                break
            self.report.persona_rounds += 1
            made |= await self._round(config, open_places, attempt, cast)
        for place in places:
            if place not in made:
                tried = f"{config.max_attempts} attempts, none usable"
                self.report.personas.add("persona_not_made", place.id, tried)
        for split in config.count:
            if not any(place.split == split for place in made):
                counts = self.report.personas.counts.most_common()
                reasons = _listed(count for count in counts if count[0] != "persona_not_made")
                raise DataError(f"split {split!r}: no persona could be made: {reasons}")
        return [made[place] for place in places if place in made]

    async def extract(
        self, personas: Sequence[Persona], config: FilePersonas
    ) -> dict[str, tuple[str, ...]]:
        """Facts for personas that have none, by id; none for those whose text gave too few."""
        found = await self._facts(list(personas), config.facts, 0)
        self.advance(len(personas))
        return {p.id: facts for p, facts in zip(personas, found, strict=True) if facts is not None}

    async def _round(
        self, config: GeneratedPersonas, places: Sequence[Place], attempt: int, cast: Cast
    ) -> dict[Place, Persona]:
        names = sorted(cast.names.values()) if attempt else []
        requests = [self._text_request(config, place, attempt, names) for place in places]
        results = await self._ask(requests)
        tried = Cast(config.max_similarity)
        drafts: dict[Place, Persona] = {}
        for place, result in zip(places, results, strict=True):
            name, text = read_persona(result.text)
            if objection := _objection(config, name, text, result, (cast, tried)):
                reason, detail = objection
                self.report.personas.add(reason, f"{place.id} attempt {attempt + 1}", detail)
                continue
            tried.add(place.id, name, text)
            drafts[place] = Persona(place.id, name, text, place.split)
        found = await self._facts(list(drafts.values()), config.facts, attempt)
        made = {}
        for (place, draft), facts in zip(drafts.items(), found, strict=True):
            if facts is not None:
                cast.add(draft.id, draft.name, draft.text)
                made[place] = replace(draft, facts=facts)
        self.advance(len(made))
        return made

    def _text_request(
        self, config: GeneratedPersonas, place: Place, attempt: int, names: list[str]
    ) -> ChatRequest:
        seed = derive_seed(self.seed, "persona", place.split, place.index, attempt)
        rng = random.Random(seed)
        number = min(config.num_examples, len(self.prompts.examples))
        messages = self.prompts.messages(
            self.prompts.persona,
            examples=[vars(e) for e in rng.sample(self.prompts.examples, number)],
            initial=rng.choice(_INITIALS),
            names=names,
        )
        return ChatRequest(
            messages,
            self.model,
            config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            # Two places may draw the same examples: their seeds keep them two requests.
            seed=seed,
            purpose="persona",
            record=f"{place.id}.{attempt}",
        )

    async def _facts(
        self, personas: Sequence[Persona], config: FactsConfig, attempt: int
    ) -> list[tuple[str, ...] | None]:
        """The stated facts of each; None where they are too few."""
        requests = [
            ChatRequest(
                self.prompts.messages(self.prompts.facts, name=p.name, persona=p.text),
                self.model,
                config.max_tokens,
                temperature=config.temperature,
                purpose="facts",
                record=f"{p.id}.{attempt}",
            )
            for p in personas
        ]
        results = await self._ask(requests)
        return [
            self._stated(persona, result, config, f"{persona.id} attempt {attempt + 1}")
            for persona, result in zip(personas, results, strict=True)
        ]

    def _stated(
        self, persona: Persona, result: ChatResult, config: FactsConfig, where: str
    ) -> tuple[str, ...] | None:
        if not result.ok:
            reason = f"facts_oracle_{result.status.value}"
            self.report.personas.add(reason, where, result.detail)
            return None
        checked = check_facts(result.text, persona.text, config)
        self.report.facts.update(checked.dropped)
        if len(checked.kept) >= config.minimum:
            self.report.facts["kept"] += len(checked.kept)
            return checked.kept
        detail = f"{len(checked.kept)} of at least {config.minimum}"
        if checked.dropped:
            detail += "; dropped: " + _listed(checked.dropped.items())
        self.report.personas.add("persona_with_too_few_facts", where, detail)
        return None

    async def _ask(self, requests: Sequence[ChatRequest]) -> list[ChatResult]:
        """Results in the order of the requests. An error stops all: the rest would meet it too."""
        self.report.persona_calls += len(requests)
        return list(await asyncio.gather(*(self.oracle.complete(r) for r in requests)))


def _objection(
    config: GeneratedPersonas, name: str, text: str, result: ChatResult, casts: Sequence[Cast]
) -> tuple[str, str] | None:
    """(reason, detail) why an answer is no usable persona, or None."""
    if not result.ok:
        return f"oracle_{result.status.value}", result.detail
    if not name:
        return "persona_without_name", text[:60]
    if num_words(text) < config.min_words:
        return "persona_too_short", f"{num_words(text)} words"
    objections = (cast.objection(name, text) for cast in casts)
    return next(filter(None, objections), None)


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in counts)


def read_persona(answer: str) -> tuple[str, str]:
    """(name, profile text) of an answer: "Name: Ada Moreau", then the profile.

    Without such a line the name with which the text introduces itself; "" if it has none.
    """
    text = tidy(answer)
    first, _, rest = text.partition("\n")
    found = _NAME_LINE.fullmatch(first)
    if found and rest.strip():
        return _clean_name(found.group(1)), rest.strip()
    introduced = _NAME_IN_TEXT.search(text)
    if introduced and introduced.group(1)[0].isupper():
        return _clean_name(introduced.group(1)), text
    return "", text


def _clean_name(name: str) -> str:
    """A name as it should be written, "" for what is none."""
    name = " ".join(name.strip(" *_\"'.,").split())
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        return ""
    return name.title() if name.isupper() else name
