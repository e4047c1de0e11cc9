"""STaR-GATE: the best dialogue of each pair is learned, with a response after it (PAPER 3-5).

own_response    opening, q1*, a1, ..., qK*, aK + task, response*    (* has weight 1; the paper)
questions_only  opening, q1*, a1, ..., qK*                          (ablation)
gold_response   opening, q1*, a1, ..., qK*, aK + task, gold*        (ablation)

Questions that were cut off at their limit have no weight.
"""

from collections.abc import Sequence
from dataclasses import replace

from stargate.algorithm.base import Drop, Needs, ScoredGroup, require_length
from stargate.algorithm.selection import RULES, select
from stargate.config.algorithm import StarGateConfig
from stargate.errors import RecordDropped
from stargate.text.chat import ChatFormat, Message
from stargate.text.views import Views
from stargate.types import Dialogue, Generation, Pair, Selection, TrainingExample


class StarGate:
    """An Algorithm. Longer examples than `max_length` tokens are dropped whole, because a cut one
    would teach a response that breaks off.
    """

    def __init__(
        self, config: StarGateConfig, views: Views, chat: ChatFormat, max_length: int
    ) -> None:
        self._config = config
        self._views = views
        self._chat = chat
        self._max_length = max_length
        others = RULES[config.selection].needs_others
        self.needs = Needs(
            num_other_golds=config.max_other_golds if others else 0,
            own_response=config.target == "own_response",
        )

    def select(self, group: ScoredGroup, seed: int) -> Sequence[Selection]:
        return [select(group.pair.id, group.scores, self._config.selection, seed)]

    def examples(self, group: ScoredGroup, drop: Drop) -> Sequence[TrainingExample]:
        made = []
        for selection in group.selections:
            dialogue = group.dialogue(selection.dialogue_id)
            try:
                made.append(self.example(group.pair, dialogue, group.responses.get(dialogue.id)))
            except RecordDropped as problem:
                drop(problem)
        return made

    def example(
        self, pair: Pair, dialogue: Dialogue, response: Generation | None
    ) -> TrainingExample:
        """The example of one dialogue; `response` is what m_t answered (own_response only).

        Raises RecordDropped for one that is too long or has nothing to learn.
        """
        views, turns, text = self._views, dialogue.turns, ""
        if self._config.target == "own_response":
            if response is None:
                raise ValueError(f"{dialogue.id}: own_response needs a response")
            text = response.text
            own = Message("assistant", text, response.token_ids, response.stop)
            masked = self._chat.masked_ids(
                self._mark_learned(views.trained(pair, turns, own), dialogue)
            )
        elif self._config.target == "questions_only":
            messages = views.questions_only(pair, turns)
            masked = self._chat.masked_ids(self._mark_learned(messages, dialogue))
        else:
            if pair.gold is None:
                raise ValueError(f"pair {pair.id} has no gold")
            text = pair.gold
            masked = self._chat.with_target(views.without_instruction(pair, turns), text)
        if not any(masked.mask):
            answered = "" if self._config.questions == "all" else " and was answered with a fact"
            problem = f"no question came to its end{answered}"
            raise RecordDropped("nothing_to_learn", dialogue.id, problem)
        require_length(masked.ids, self._max_length, dialogue.id)
        return TrainingExample(pair.id, dialogue.id, masked.ids, masked.mask, text)

    def _mark_learned(self, messages: Sequence[Message], dialogue: Dialogue) -> Sequence[Message]:
        if self._config.questions == "all":
            return messages
        return mark_learned(messages, [bool(turn.elicited) for turn in dialogue.turns])


def mark_learned(messages: Sequence[Message], learned: Sequence[bool]) -> Sequence[Message]:
    """The conversation with those questions marked that have no loss; a response always has it."""
    questions = [place for place, m in enumerate(messages) if m.token_ids is not None]
    marked = list(messages)
    # The response, if there is one, comes after the last turn's question.
    for place, has_loss in zip(questions, learned, strict=False):
        marked[place] = replace(messages[place], learned=messages[place].learned and has_loss)
    return marked
