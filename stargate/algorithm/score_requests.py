"""What the frozen m_0 is asked:

the pair's gold after the instruction-free view of a dialogue (PAPER 2).
"""

from collections.abc import Sequence

from stargate.errors import RecordDropped
from stargate.text.chat import ChatFormat, Message
from stargate.text.views import Views
from stargate.types import (
    Dialogue,
    DialogueScore,
    Pair,
    ScoreRequest,
    ScoreResult,
    Turn,
    TurnScore,
)


class GoldScoring:
    """Builds score requests for one model. `max_length` is the context of m_0 in tokens.

    Golds stand after what was said: thoughts are left out, and none is begun.
    """

    def __init__(self, views: Views, chat: ChatFormat, max_length: int) -> None:
        self._views = views
        self._chat = chat.without_thoughts()
        self._max_length = max_length

    def after_dialogue(
        self, key: str, pair: Pair, turns: Sequence[Turn], others: Sequence[str] = ()
    ) -> ScoreRequest:
        """The gold after a dialogue, then `others` (golds of other personas) after the same.

        With another persona's turns: the shuffled control. Without: no dialogue.
        """
        return self._request(key, pair, self._views.without_instruction(pair, turns), others)

    def after_fact(
        self, key: str, pair: Pair, fact: str | None, others: Sequence[str] = ()
    ) -> ScoreRequest:
        """The gold after one fixed turn that told a fact; None: after one that brought nothing.

        The latter is what a dialogue's first turn is compared with: it has the form of a turn.
        """
        return self.after_dialogue(key, pair, [self._views.neutral_turn(fact)], others)

    def with_persona(self, key: str, pair: Pair, turns: Sequence[Turn] = ()) -> ScoreRequest:
        """The gold with the persona given outright: the upper control."""
        return self._request(key, pair, self._views.with_persona(pair, turns), ())

    def _request(
        self, key: str, pair: Pair, messages: list[Message], others: Sequence[str]
    ) -> ScoreRequest:
        if pair.gold is None or not pair.gold.strip():
            raise RecordDropped("empty_gold", pair.id, "there is no gold to score")
        context, gold = self._chat.continuation(messages, pair.gold)
        splits = [self._chat.continuation(messages, other) for other in others]
        if any(other_context != context for other_context, _ in splits):
            # A tokenizer that merges across the border leaves no common context to share.
            raise RecordDropped("golds_without_common_context", key, "their first tokens differ")
        golds = (gold, *(ids for _, ids in splits))
        longest = max(map(len, golds))
        if len(context) + longest > self._max_length:
            raise RecordDropped(
                "score_too_long",
                key,
                f"{len(context)} context + {longest} gold tokens, "
                f"the context has {self._max_length}",
            )
        return ScoreRequest(key, context, golds)


def to_dialogue_score(dialogue: Dialogue, result: ScoreResult) -> DialogueScore:
    """The dialogue's score: the plain sum over the gold's tokens; the mean sum of other golds."""
    own, *others = result.sums
    return DialogueScore(
        dialogue_id=dialogue.id,
        pair_id=dialogue.pair_id,
        gold_logprob=own,
        num_gold_tokens=len(result.token_logprobs[0]),
        other_gold_logprob=sum(others) / len(others) if others else None,
        num_other_golds=len(others) if others else None,
    )


def to_turn_scores(dialogue: Dialogue, results: Sequence[ScoreResult]) -> list[TurnScore]:
    """The scores before the dialogue (see `after_fact`) and after each of its turns, from results
    in that order.
    """
    return [
        TurnScore(dialogue.id, turn, result.sums[0], result.sums[1:])
        for turn, result in enumerate(results)
    ]
