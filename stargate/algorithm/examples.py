"""From a selected dialogue to what the trainer learns: token ids and loss mask (PAPER 5).

own_response    opening, q1*, a1, ..., qK*, aK + task, response*    (* has loss; the paper)
questions_only  opening, q1*, a1, ..., qK*                          (ablation)
gold_response   opening, q1*, a1, ..., qK*, aK + task, gold*        (ablation)
"""

from collections.abc import Sequence
from dataclasses import replace

from stargate.config.run import TrainerConfig
from stargate.errors import RecordDropped
from stargate.text.chat import ChatFormat, Message
from stargate.text.views import Views
from stargate.types import Dialogue, Generation, Pair, TrainingExample


def build_example(
    pair: Pair,
    dialogue: Dialogue,
    response: Generation | None,
    views: Views,
    chat: ChatFormat,
    config: TrainerConfig,
) -> TrainingExample:
    """The training example of one selected dialogue; `response` is what m_t answered (own_response
    only).

    Raises RecordDropped if the example is longer than max_length: it is dropped whole, because a
    cut one would teach a response that breaks off.
    """
    if config.target == "own_response":
        if response is None:
            raise ValueError(f"{dialogue.id}: own_response needs a response")
        own = Message("assistant", response.text, response.token_ids, response.stop)
        messages = views.trained(pair, dialogue.turns, own)
        masked = chat.masked_ids(_learned(messages, dialogue, config))
        text = response.text
    elif config.target == "questions_only":
        messages = views.questions_only(pair, dialogue.turns)
        masked = chat.masked_ids(_learned(messages, dialogue, config))
        text = ""
    else:
        if pair.gold is None:
            raise ValueError(f"pair {pair.id} has no gold")
        masked = chat.with_target(views.without_instruction(pair, dialogue.turns), pair.gold)
        text = pair.gold
    if not any(masked.mask):
        raise RecordDropped("nothing_to_learn", dialogue.id, "no question was answered with a fact")
    if len(masked.ids) > config.max_length:
        raise RecordDropped(
            "example_too_long",
            dialogue.id,
            f"{len(masked.ids)} tokens, trainer.max_length is {config.max_length}",
        )
    return TrainingExample(pair.id, dialogue.id, masked.ids, masked.mask, text)


def _learned(
    messages: Sequence[Message], dialogue: Dialogue, config: TrainerConfig
) -> Sequence[Message]:
    """The conversation with the questions marked that have no loss; a response has it always."""
    if config.questions == "all":
        return messages
    questions = [place for place, m in enumerate(messages) if m.token_ids is not None]
    marked = list(messages)
    for place, turn in zip(questions, dialogue.turns, strict=False):
        marked[place] = replace(messages[place], learned=bool(turn.elicited))
    return marked
