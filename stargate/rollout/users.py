"""Users who differ: in how they answer (roleplayer.style) and in patience.

    plain          as the others' base: rollout/roleplayer.py
    terse          a fact in telegram style: every telling word, no other
    evasive        would rather not say, now and then, whatever was asked
    chatty         adds a sentence of small talk, which tells nothing
    contradicting  now and then takes back a fact that it told earlier: Turn.retracted

This is what they do with facts grounding, where it is known what is told. With persona grounding
the model is told to behave so. All draws come from the dialogue's seed.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from stargate.config.roleplayer import Style
from stargate.protocols import Roleplay
from stargate.seeds import derive_seed
from stargate.text.views import Views
from stargate.types import Answer, Pair, StopReason, Turn, told_facts

# Shares of answers: an evasive user's that tell nothing, and a contradicting one's, of those that
# could, that take something back.
_DODGED = 1 / 3
_TAKEN_BACK = 1 / 2
# What a telegram leaves out. Negations stay.
_UNTELLING_TEXT = """
a an the i me my we our am is are was were be been have has had do does did
"""
_UNTELLING = frozenset(_UNTELLING_TEXT.split())


def style_of(pair: Pair, styles: Sequence[Style], seed: int) -> Style:
    """The style of the user of a pair: the same in all of its dialogues, at every checkpoint."""
    return Random(derive_seed(seed, pair.id, "style")).choice(styles)


def telegram(fact: str) -> str:
    """A fact without the words that tell nothing; a word that ends a clause stays."""
    kept = [word for word in fact.split() if word.lower() not in _UNTELLING]
    text = " ".join(kept)
    return text[:1].upper() + text[1:] if text else fact


class StyledFacts:
    """A Roleplayer that is grounded in facts, in the style of the pair's user.

    `worded` answers for all styles but terse, which needs the facts `as_they_are`.
    """

    def __init__(
        self,
        worded: Roleplay,
        as_they_are: Roleplay,
        views: Views,
        styles: Sequence[Style],
        seed: int,
    ) -> None:
        self._worded, self._as_they_are = worded, as_they_are
        self._views = views
        self._styles, self._seed = styles, seed

    async def __call__(
        self, pair: Pair, turns: Sequence[Turn], question: str, *, session: str, seed: int
    ) -> Answer:
        style, draw = style_of(pair, self._styles, self._seed), Random(derive_seed(seed, "style"))
        if style == "evasive" and draw.random() < _DODGED:
            text = self._views.of_user(self._views.users.dodge, pair)
            return Answer(text, (), StopReason.FIXED)
        roleplay = self._as_they_are if style == "terse" else self._worded
        answer = await roleplay(pair, turns, question, session=session, seed=seed)
        if style == "terse" and answer.elicited:
            facts = (pair.persona.facts[index] for index in answer.elicited)
            return _said(answer, " ".join(map(telegram, facts)))
        if style == "chatty":
            talk = self._views.of_user(draw.choice(self._views.users.small_talk), pair)
            return _said(answer, f"{answer.text} {talk}")
        if style == "contradicting":
            return self._taking_back(pair, turns, answer, draw)
        return answer

    def _taking_back(
        self, pair: Pair, turns: Sequence[Turn], answer: Answer, draw: Random
    ) -> Answer:
        """With a fact taken back first, by chance. One is taken back once: asked for again it is
        told again, and that holds.
        """
        before = {index for turn in turns for index in turn.retracted}
        candidates = [index for index in told_facts(turns) if index not in before]
        if not candidates or draw.random() >= _TAKEN_BACK:
            return answer
        index = draw.choice(candidates)
        template, fact = self._views.users.takes_back, pair.persona.facts[index]
        text = self._views.of_user(template, pair, fact=fact)
        return replace(_said(answer, f"{text} {answer.text}"), retracted=(index,))


class LimitedPatience:
    """Answers so many turns of a dialogue; then wants an answer, and the dialogue ends."""

    def __init__(self, roleplay: Roleplay, patience: int, views: Views) -> None:
        self._roleplay, self._patience, self._views = roleplay, patience, views

    async def __call__(
        self, pair: Pair, turns: Sequence[Turn], question: str, *, session: str, seed: int
    ) -> Answer:
        if len(turns) < self._patience:
            return await self._roleplay(pair, turns, question, session=session, seed=seed)
        text = self._views.of_user(self._views.users.impatient, pair)
        return Answer(text, (), StopReason.FIXED, final=True)


def _said(answer: Answer, text: str) -> Answer:
    """An answer in other words, which nobody sampled."""
    return replace(answer, text=text, token_ids=(), stop=StopReason.FIXED)
