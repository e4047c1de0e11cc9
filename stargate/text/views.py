"""One dialogue as each role sees it: lists of messages, for ChatFormat to turn into ids.

    view            first user turn                     then              last user turn
    questioner      opening + elicitation instruction   q1, a1, q2 ...    plain answer
    scored/trained  opening                             q1, a1, ...       answer + task once more
    responder       opening                             q1, a1, ...       answer, task, instruction
    roleplayer      instruction + persona + question 1  a1, q2, ...       plain question (swapped)

That is how `paper` and `small` have them; a prompt set may place the response instruction first,
and give the Roleplayer the dialogue as a text.

The questions stay the ids that the policy sampled, in every view of the policy and of m_0 (one
tokenizer).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from stargate.config.roleplayer import Style
from stargate.errors import ConfigError
from stargate.text.chat import Message
from stargate.text.prompts import Conversation, PromptSet, UserTexts
from stargate.types import Pair, StopReason, Turn

_Closing = Callable[[Pair, str], str]

# Rendered texts that are remembered, about 1 kB each: a pair's opening and instruction are the same
# in all of its dialogues, a dialogue's first turns in all of its later prompts.
_MAX_REMEMBERED = 4096
_NEUTRAL = "What else should I know about you?"


class Views:
    """Builds every role's view of a dialogue from one prompt set.

    Safe to share between dialogues: it remembers rendered texts, never whose they are.
    """

    def __init__(self, prompts: PromptSet) -> None:
        self._prompts = prompts
        self._render_once = lru_cache(_MAX_REMEMBERED)(self._render_now)

    def questioner(self, pair: Pair, turns: Sequence[Turn]) -> list[Message]:
        """What m_t sees before its next question."""
        conversation = self._prompts.questioner
        first = self._render(conversation.turn, pair, opening=self._opening(pair))
        messages = [*self._before(conversation, pair), Message("user", first)]
        for turn in turns:
            messages += [_question(turn), Message("user", turn.answer)]
        return messages

    def without_instruction(self, pair: Pair, turns: Sequence[Turn]) -> list[Message]:
        """Scoring and training context: no instruction, the task once more at the end of the last
        user turn.

        Without turns it is the opening alone: the no-dialogue control. With the turns of another
        persona's dialogue it is the shuffled control: the name stays the pair's own, only the
        dialogue is another's.
        """
        return self._plain(self._opening(pair), pair, turns, self._closing)

    def with_persona(self, pair: Pair, turns: Sequence[Turn] = ()) -> list[Message]:
        """Scoring context in which the persona is given outright: the upper control."""
        opening = self._render(
            self._prompts.persona, pair, opening=self._opening(pair), persona=pair.persona.text
        )
        return self._plain(opening, pair, turns, self._closing)

    def responder(self, pair: Pair, turns: Sequence[Turn]) -> list[Message]:
        """What the responder sees:

        the scoring context with the response instruction in the last user turn, or the first.
        """
        prompt = self._prompts.responder

        def closing(pair: Pair, answer: str) -> str:
            return self._render(prompt.turn, pair, closing=self._closing(pair, answer))

        before = self._before(prompt, pair)
        opening = self._render(prompt.first, pair, opening=self._opening(pair))
        if not turns:
            return [*before, Message("user", self._render(prompt.turn, pair, closing=opening))]
        return [*before, *self._plain(opening, pair, turns, closing)]

    def trained(self, pair: Pair, turns: Sequence[Turn], response: Message) -> list[Message]:
        """The training conversation: instruction-free context, then the response."""
        return [*self.without_instruction(pair, turns), response]

    def questions_only(self, pair: Pair, turns: Sequence[Turn]) -> list[Message]:
        """The training conversation of the questions-only ablation:

        it ends with the last question.
        """
        messages = [Message("user", self._opening(pair))]
        for number, turn in enumerate(turns, start=1):
            messages.append(_question(turn))
            if number < len(turns):
                messages.append(Message("user", turn.answer))
        return messages

    def roleplayer(
        self, pair: Pair, turns: Sequence[Turn], question: str, style: Style = "plain"
    ) -> list[Message]:
        """Role-swapped:

        questions are user turns, the Roleplayer's own answers are assistant turns. How it is to
        answer stands at the end of the first turn. With `history: text` there is one turn only, and
        what was said before is a text in it.
        """
        conversation = self._prompts.roleplayer
        questions = [turn.question for turn in turns] + [question]
        given: dict[str, Any] = {"persona": pair.persona.text, "question": questions[0]}
        if conversation.history == "text":
            said = [{"question": turn.question, "answer": turn.answer} for turn in turns]
            given, turns, questions = given | {"question": question, "turns": said}, (), [question]
        first = self._render(conversation.turn, pair, **given)
        if style != "plain":
            first += "\n\n" + self.of_user(getattr(self.users, style), pair)
        messages = [*self._before(conversation, pair), Message("user", first)]
        for turn, following in zip(turns, questions[1:], strict=True):
            messages += [_answer(turn), Message("user", following)]
        return messages

    def voice(self, pair: Pair, question: str, facts: Sequence[str]) -> list[Message]:
        """The Roleplayer's view under `grounding:

        facts`: the question and the facts that answer it, nothing else.
        """
        conversation = self._prompts.voice
        text = self._render(conversation.turn, pair, question=question, facts=list(facts))
        return [*self._before(conversation, pair), Message("user", text)]

    def no_preference(self) -> str:
        return self._prompts.no_preference_text

    def neutral_turn(self, answer: str | None = None) -> Turn:
        """A fixed question about nothing, and its answer; None: one that brings nothing.

        So that what an answer is worth does not hold what the mere form of a turn is worth.
        """
        text = self.no_preference() if answer is None else answer
        return Turn(_NEUTRAL, (), StopReason.FIXED, text, (), StopReason.FIXED)

    def told_already(self) -> str:
        return self._prompts.told_already_text

    @property
    def users(self) -> UserTexts:
        """The texts of users who differ. Raises ConfigError where the prompt set has none."""
        if self._prompts.users is None:
            raise ConfigError(
                "the Roleplayer's prompt set has no texts for roleplayer.style and "
                "roleplayer.patience: add `users`, as in configs/prompts/paper.yaml"
            )
        return self._prompts.users

    def of_user(self, text: str, pair: Pair, **values: str) -> str:
        """One of the texts of `users`."""
        return self._render(text, pair, **values)

    def _plain(
        self, opening: str, pair: Pair, turns: Sequence[Turn], closing: _Closing
    ) -> list[Message]:
        messages = [Message("user", opening)]
        for number, turn in enumerate(turns, start=1):
            last = number == len(turns)
            messages += [
                _question(turn),
                Message("user", closing(pair, turn.answer) if last else turn.answer),
            ]
        return messages

    def _opening(self, pair: Pair) -> str:
        return self._render(self._prompts.opening, pair)

    def _closing(self, pair: Pair, answer: str) -> str:
        return self._render(self._prompts.closing, pair, answer=answer)

    def _before(self, conversation: Conversation, pair: Pair) -> list[Message]:
        return [Message(m.role, self._render(m.content, pair)) for m in conversation.before]

    def _render(self, template: str, pair: Pair, **values: Any) -> str:
        given = {"name": pair.persona.name, "task": pair.task.text, **values}
        if any(isinstance(value, list) for value in values.values()):
            return self._prompts.render(template, **given)
        return self._render_once(template, tuple(given.items()))

    def _render_now(self, template: str, given: tuple[tuple[str, Any], ...]) -> str:
        return self._prompts.render(template, **dict(given))


def _question(turn: Turn) -> Message:
    """One that was cut off has no loss: it would teach to begin what never ends. A fixed one, as
    reference rows ask, was not sampled: it is tokenised.
    """
    if turn.question_stop is StopReason.FIXED:
        return Message("assistant", turn.question)
    return Message(
        "assistant",
        turn.question,
        turn.question_ids,
        turn.question_stop,
        learned=turn.question_stop is not StopReason.LENGTH,
    )


def _answer(turn: Turn) -> Message:
    """A fixed answer was not sampled, an API's ids are not known: such a text is tokenised."""
    if turn.answer_stop is StopReason.FIXED:
        return Message("assistant", turn.answer)
    return Message("assistant", turn.answer, turn.answer_ids, turn.answer_stop)
