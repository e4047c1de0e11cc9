"""What `stargate bench score` scores: recorded dialogues of a real run, with the golds of a run.

    score_dialogues.jsonl (texts) + the starter data set's golds + a model's chat template -> Work

All four dialogues of each of 24 pairs, three turns each. Contexts have about 200 tokens, golds 137.

For several golds per dialogue there are long dialogues as well: the turns of a pair's four
dialogues, one after another, about 580 tokens of context. Three turns of models that write as
freely as the paper's come to that. Beside a recorded context of 200 tokens, 8 golds of 137 are 4.2
times the tokens of one, whoever scores them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stargate.actors.scoring.prefix_tree import Text, common_length, num_unique_tokens
from stargate.algorithm.score_requests import GoldScoring
from stargate.benchmarks.recorded import RecordedDialogues
from stargate.errors import DataError
from stargate.resources.models import context_length
from stargate.types import ScoreRequest

DIALOGUES = Path(__file__).parent / "score_dialogues.jsonl"
_NUM_LONG_TURNS = 3
# The requests of one pair, which a run asks for together.
PairRequests = tuple[ScoreRequest, ...]


@dataclass(frozen=True)
class Work:
    """Requests by pair: `num_golds` golds after each dialogue, and after one long dialogue.

    `turns`: the pair's gold before any turn, then after each turn of four long dialogues: the four
    recorded ones joined in other orders, every four of their twelve questions taken as one turn.
    """

    played: tuple[PairRequests, ...]
    long: tuple[PairRequests, ...]
    turns: tuple[PairRequests, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Token ids (T,) to compute by themselves; the last `num_places` predict gold tokens."""

    ids: tuple[int, ...]
    num_places: int


def load_work(model_dir: Path, num_pairs: int, num_golds: int) -> Work:
    """The first `num_pairs` pairs. Raises DataError if there are not so many pairs or golds."""
    recorded = RecordedDialogues(DIALOGUES, model_dir)
    scoring = GoldScoring(recorded.views, recorded.chat, context_length(model_dir))
    played, long, turns = [], [], []
    for row in recorded.rows(num_pairs, "--pairs"):
        pair = recorded.pair(row)
        others = tuple(
            text
            for (task, persona), (text, _) in sorted(recorded.data.golds.items())
            if task == pair.task.id and persona != pair.persona.id
        )
        if not 1 <= num_golds <= len(others) + 1:
            raise DataError(f"--golds must be in 1..{len(others) + 1}, got {num_golds}")
        others = others[: num_golds - 1]
        dialogues = [
            tuple(recorded.turn(one, ended=False) for one in said) for said in row["dialogues"]
        ]
        joined = tuple(turn for said in dialogues for turn in said)
        requests = [
            scoring.after_dialogue(f"{pair.id}/{name}", pair, said, others)
            for name, said in (*enumerate(dialogues), ("long", joined))
        ]
        played.append(tuple(requests[:-1]))
        long.append((requests[-1],))
        step = len(joined) // _NUM_LONG_TURNS
        after = [
            scoring.after_dialogue(f"{pair.id}/{n}/{k}", pair, (*joined[n:], *joined[:n])[:k])
            for n in range(0, len(joined), len(joined) // len(dialogues))
            for k in range(step, len(joined) + 1, step)
        ]
        turns.append((scoring.after_dialogue(f"{pair.id}/before", pair, ()), *after))
    return Work(tuple(played), tuple(long), tuple(turns))


def final_only(turns: Sequence[PairRequests]) -> list[PairRequests]:
    """Of `Work.turns`: those after a dialogue's last turn."""
    return [requests[_NUM_LONG_TURNS::_NUM_LONG_TURNS] for requests in turns]


def with_golds(pairs: Sequence[PairRequests], num_golds: int) -> list[PairRequests]:
    """The same requests with the first `num_golds` of their golds."""
    return [
        tuple(replace(request, golds=request.golds[:num_golds]) for request in requests)
        for requests in pairs
    ]


def texts_of(pairs: Sequence[PairRequests]) -> list[Text]:
    return [
        Text(request.context_ids, gold)
        for requests in pairs
        for request in requests
        for gold in request.golds
    ]


def num_tokens(pairs: Sequence[PairRequests]) -> int:
    """Tokens of every context and gold, as often as they are asked for."""
    return sum(len(text.context) + len(text.gold) for text in texts_of(pairs))


def num_unique(pairs: Sequence[PairRequests]) -> int:
    """Tokens that remain when what the texts of one pair have in common is counted once."""
    return sum(num_unique_tokens(texts_of([requests])) for requests in pairs)


def stretches(pairs: Sequence[PairRequests]) -> list[Stretch]:
    """The unique tokens as sequences: the first text of a pair, and what each further text adds.

    A further text stands without the beginning that it shares, so it attends to less than in truth.
    """
    found = []
    for requests in pairs:
        before: tuple[int, ...] = ()
        for text in sorted(texts_of([requests]), key=lambda text: text.context):
            shared = common_length(before, text.context)
            ids = (*text.context[shared:], *text.gold[:-1])
            if ids:
                found.append(Stretch(ids, min(len(text.gold), len(ids))))
            before = text.context
    return found
