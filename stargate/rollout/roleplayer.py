"""The simulated user: answers a question in the persona's voice, never solves the task.

persona grounding  question -> the model sees the whole persona -> free answer, no facts known
facts grounding    question -> the fact nearest to it -> the model words it
                     -> kept if it still states the fact, else the fact as it is
                     -> "I have no preference about that." when none is near, without a call
                     -> "I told you that already." when it was told: were the next nearest fact
                        told, a question that asks for nothing in particular would always pay
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from stargate.config.roleplayer import FactsGrounding, Style
from stargate.config.run import EngineRoleplayerConfig, RoleplayerConfig
from stargate.errors import DataError, RecordDropped
from stargate.protocols import Generate, MatchFacts, Roleplay
from stargate.rollout.question_text import questions_in
from stargate.rollout.questioner import require_room, sampling_of
from stargate.rollout.users import LimitedPatience, StyledFacts, style_of
from stargate.text.chat import ChatFormat, Message
from stargate.text.formats import heard_from
from stargate.text.reasoning import spoken_part
from stargate.text.views import Views
from stargate.types import Answer, GenerateRequest, Pair, StopReason, Turn, told_facts

# Words that carry no claim about a person: using one more of them invents nothing.
_FUNCTION_WORDS_TEXT = """
a about after all also am an and any are as at be because been but by can do does for from had has
have i if in into is it its just me my myself no not of on or our own so some such that the their
them then there these they this those to too up us very was we well were when which who will with
would yes you your
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())
# The share of a fact's words that a wording must keep to still state it.
_MIN_KEPT_SHARE = 0.6
# Letters by which two forms of one word are taken as the same ("walks" and "walking").
_STEM_LETTERS = 4


def invented_words(text: str, sources: Sequence[str]) -> set[str]:
    """The words of a text that no source contains, in any form: what a small model made up."""
    known = {_stem(word) for source in sources for word in _words(source)}
    return {word for word in _words(text) if _stem(word) not in known} - _FUNCTION_WORDS


def kept_share(text: str, fact: str) -> float:
    """The share of a fact's telling words that a text contains, in any form; 1 if it has none."""
    telling = {_stem(word) for word in _words(fact) if word not in _FUNCTION_WORDS}
    said = {_stem(word) for word in _words(text)}
    return len(telling & said) / len(telling) if telling else 1.0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def _stem(word: str) -> str:
    return word.split("'")[0][:_STEM_LETTERS]


class RoleplayerCall(Protocol):
    """Has the Roleplayer's model say something: the answer after `number` turns of a session.

    The text is what it says aloud; it may be empty. Raises RecordDropped where there is none.
    """

    async def __call__(
        self, messages: Sequence[Message], session: str, number: int, seed: int
    ) -> Answer: ...


class EngineCall:
    """One call of the Roleplayer's engine. (An API's: stargate/oracle/roleplayer_call.py.)"""

    def __init__(
        self, generate: Generate, chat: ChatFormat, config: EngineRoleplayerConfig
    ) -> None:
        self._generate = heard_from(generate, chat)
        self._chat = chat
        self._sampling = config.sampling
        self._max_model_len = config.engine.max_model_len

    async def __call__(
        self, messages: Sequence[Message], session: str, number: int, seed: int
    ) -> Answer:
        prompt_ids = self._chat.prompt_ids(messages)
        where = f"{session} answer {number + 1}"
        require_room(prompt_ids, self._sampling.max_new_tokens, self._max_model_len, where)
        generation = await self._generate(
            GenerateRequest(
                request_id=f"{session}/a{number}",
                session=session,
                prompt_ids=prompt_ids,
                sampling=sampling_of(self._sampling, seed),
            )
        )
        said = spoken_part(generation.text) or ""
        return Answer(said.strip(), generation.token_ids, generation.stop)


class PersonaRoleplayer:
    """The paper's Roleplayer: the whole persona is in its prompt, and how its user answers."""

    def __init__(
        self, call: RoleplayerCall, views: Views, styles: Sequence[Style], seed: int
    ) -> None:
        self._call = call
        self._views = views
        self._styles, self._seed = styles, seed

    async def __call__(
        self, pair: Pair, turns: Sequence[Turn], question: str, *, session: str, seed: int
    ) -> Answer:
        style = style_of(pair, self._styles, self._seed)
        messages = self._views.roleplayer(pair, turns, question, style)
        answer = await self._call(messages, session, len(turns), seed)
        if not answer.text:
            raise RecordDropped("empty_answer", session, "the Roleplayer said nothing")
        return answer


async def facts_asked_for(
    text: str, facts: Sequence[str], match: MatchFacts, per_turn: int
) -> list[int]:
    """Indices of the facts that answer the first `per_turn` questions of a text, each once."""
    found = [await match(question, facts) for question in questions_in(text)[:per_turn]]
    return list(dict.fromkeys(index for index in found if index is not None))


class FactsRoleplayer:
    """Told only the facts that answer the question, so what was elicited is known exactly."""

    def __init__(
        self, call: RoleplayerCall, views: Views, match: MatchFacts, grounding: FactsGrounding
    ) -> None:
        self._call = call
        self._views = views
        self._match = match
        self._grounding = grounding

    async def __call__(
        self, pair: Pair, turns: Sequence[Turn], question: str, *, session: str, seed: int
    ) -> Answer:
        nearest = await self._nearest(pair, question)
        told = told_facts(turns)
        elicited = tuple(index for index in nearest if index not in told)
        if not elicited:
            text = self._views.told_already() if nearest else self._views.no_preference()
            return Answer(text, (), StopReason.FIXED)
        facts = [pair.persona.facts[index] for index in elicited]
        if self._grounding.voice == "model":
            messages = self._views.voice(pair, question, facts)
            answer = await self._call(messages, session, len(turns), seed)
            # Grounding holds by what was said, not by what was asked for: a small model drifts off.
            if (
                answer.stop is StopReason.STOP
                and not invented_words(answer.text, [question, *facts])
                and await self._states_all(answer.text, facts)
            ):
                return replace(answer, elicited=elicited)
        return Answer(" ".join(facts), (), StopReason.FIXED, elicited)

    async def _nearest(self, pair: Pair, text: str) -> list[int]:
        """The facts that answer the first questions of a turn, each once."""
        per_turn = self._grounding.questions_per_turn
        return await facts_asked_for(text, pair.persona.facts, self._match, per_turn)

    async def _states_all(self, text: str, facts: Sequence[str]) -> bool:
        for fact in facts:
            if kept_share(text, fact) < _MIN_KEPT_SHARE:
                return False
            if not await self._match.states(text, fact):
                return False
        return bool(text)


def build_roleplayer(
    config: RoleplayerConfig,
    call: RoleplayerCall,
    views: Views,
    match: MatchFacts | None,
    seed: int,
) -> Roleplay:
    """The Roleplayer that the config asks for; `match` is needed for facts grounding.

    `seed` is the run's: it draws the pairs' styles.
    """
    roleplay: Roleplay = PersonaRoleplayer(call, views, config.style, seed)
    if isinstance(config.grounding, FactsGrounding):
        if match is None:
            raise ValueError("facts grounding needs a fact matcher")
        roleplay = FactsRoleplayer(call, views, match, config.grounding)
        as_they_are = config.grounding.model_copy(update={"voice": "fact"})
        as_facts = FactsRoleplayer(call, views, match, as_they_are)
        roleplay = StyledFacts(roleplay, as_facts, views, config.style, seed)
    if config.patience is not None:
        roleplay = LimitedPatience(roleplay, config.patience, views)
    return roleplay


def require_facts(pairs: Sequence[Pair]) -> None:
    """Raises DataError naming the first persona without facts: grounding can't work for it."""
    for pair in pairs:
        if not pair.persona.facts:
            raise DataError(
                f"persona {pair.persona.id!r} has no facts, but roleplayer.grounding.type is "
                "'facts': add facts to it or set roleplayer.grounding.type=persona"
            )
