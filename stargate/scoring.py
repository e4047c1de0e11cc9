"""What the frozen m_0 is asked:

the pair's gold after the instruction-free view of a dialogue (PAPER 2).
"""

from collections.abc import Sequence

from stargate.chat import ChatFormat, Message
from stargate.errors import RecordDropped
from stargate.types import Dialogue, DialogueScore, Pair, ScoreRequest, ScoreResult, Turn
from stargate.views import Views


class GoldScoring:
    """Builds score requests for one model. `max_length` is the context of m_0 in tokens."""

    def __init__(self, views: Views, chat: ChatFormat, max_length: int) -> None:
        self._views = views
        self._chat = chat
        self._max_length = max_length

    def after_dialogue(self, key: str, pair: Pair, turns: Sequence[Turn]) -> ScoreRequest:
        """The gold after a dialogue.

        With another persona's turns: the shuffled control. Without: no dialogue.
        """
        return self._request(key, pair, self._views.without_instruction(pair, turns))

    def with_persona(self, key: str, pair: Pair, turns: Sequence[Turn] = ()) -> ScoreRequest:
        """The gold with the persona given outright: the upper control."""
        return self._request(key, pair, self._views.with_persona(pair, turns))

    def _request(self, key: str, pair: Pair, messages: list[Message]) -> ScoreRequest:
        if pair.gold is None or not pair.gold.strip():
            raise RecordDropped("empty_gold", pair.id, "there is no gold to score")
        context, gold = self._chat.continuation(messages, pair.gold)
        if len(context) + len(gold) > self._max_length:
            raise RecordDropped(
                "score_too_long",
                key,
                f"{len(context)} context + {len(gold)} gold tokens, "
                f"the context has {self._max_length}",
            )
        return ScoreRequest(key, context, (gold,))


def to_dialogue_score(dialogue: Dialogue, result: ScoreResult) -> DialogueScore:
    """The dialogue's score: the plain sum over the gold's tokens."""
    return DialogueScore(
        dialogue_id=dialogue.id,
        pair_id=dialogue.pair_id,
        gold_logprob=result.sums[0],
        num_gold_tokens=len(result.token_logprobs[0]),
    )
