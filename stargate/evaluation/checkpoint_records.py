"""The tables of one evaluated checkpoint, read and checked.

    ROOT/eval-m<v>/{dialogues,controls,question_fits,verdicts} -> CheckpointRecords

A table that contradicts the data or itself is refused: what is measured from it would be wrong.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stargate.errors import DataError
from stargate.evaluation.comparisons import Order
from stargate.evaluation.controls import ControlScore, read_controls
from stargate.evaluation.qualification import TRIALS
from stargate.evaluation.question_fit import FitScore
from stargate.evaluation.verdicts import Verdict
from stargate.evaluation.win_rate import JudgedComparison
from stargate.records.schemas import Row, dialogue_from_row
from stargate.records.store import RunStore
from stargate.types import Dialogue, Pair

# Win rates by the name of their comparison in the table of verdicts.
WIN_RATES = {"own": "win_rate", "fixed": "win_rate_fixed_responder"}
# The columns that name a comparison; its two rows differ in `order`.
_COMPARED = ("comparison", "task_id", "persona_id", "candidate", "baseline")


@dataclass(frozen=True, slots=True)
class CheckpointRecords:
    """All that one checkpoint's scope holds. A table that is not there is empty.

    `pairs` are by id; `comparisons` by name ("own", "fixed", and the judge's trials).
    """

    pairs: Mapping[str, Pair]
    dialogues: Sequence[Dialogue]
    controls: Sequence[ControlScore]
    comparisons: Mapping[str, Sequence[JudgedComparison]]
    fits: Sequence[FitScore] = ()


def read_checkpoint(store: RunStore, scope: str, pairs: Mapping[str, Pair]) -> CheckpointRecords:
    """The tables of one scope. Raises DataError for rows that are there twice, that name a pair
    or a dialogue that isn't, and for comparisons that were not judged in both orders.
    """
    dialogues = [dialogue_from_row(row) for row in store.read(scope, "dialogues")]
    controls = read_controls(store, scope)
    fits = tuple(FitScore(**row) for row in store.read(scope, "question_fits"))
    named = {dialogue.pair_id for dialogue in dialogues}
    named |= {entry.pair_id for entry in controls} | {fit.pair_id for fit in fits}
    if unknown := sorted(named - set(pairs)):
        raise DataError(
            f"{scope}: the data have no pair {unknown[0]!r} ({len(unknown)} such); was it "
            "evaluated on other data?"
        )
    known = {None, *(dialogue.id for dialogue in dialogues)}
    for table, entries in (("controls", controls), ("question_fits", fits)):
        for entry in entries:
            if entry.dialogue_id not in known:
                raise DataError(f"{scope}/{table}: no dialogue {entry.dialogue_id!r} in {scope}")
    comparisons = comparisons_from_rows(store.read(scope, "verdicts"), scope)
    return CheckpointRecords(pairs, dialogues, controls, comparisons, fits)


def comparisons_from_rows(rows: Iterable[Row], scope: str) -> dict[str, list[JudgedComparison]]:
    """Rows of `verdicts`, the two orders of each comparison together, by name of the comparison.

    Raises DataError naming a comparison with one order only: half of it would be a position's win.
    """
    orders: dict[tuple[str, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        key = tuple(row[column] for column in _COMPARED)
        where = f"{scope}/verdicts: {' '.join(key)}"
        if row["comparison"] not in (*WIN_RATES, *TRIALS):
            raise DataError(f"{where}: unknown comparison")
        if row["order"] not in set(Order):
            raise DataError(f"{where}: unknown order {row['order']!r}")
        if row["order"] in orders[key]:
            raise DataError(f"{where}: judged {row['order']} twice")
        if row["verdict"] not in set(Verdict):
            raise DataError(f"{where}: unknown verdict {row['verdict']!r}")
        orders[key][row["order"]] = row
    found: dict[str, list[JudgedComparison]] = defaultdict(list)
    for key, judged in sorted(orders.items()):
        if len(judged) < len(Order):
            raise DataError(f"{scope}/verdicts: {' '.join(key)}: judged {next(iter(judged))} only")
        first, second = (judged[order] for order in Order)
        found[key[0]].append(
            JudgedComparison(
                task=first["task_id"],
                persona=first["persona_id"],
                candidate_first=Verdict(first["verdict"]),
                candidate_second=Verdict(second["verdict"]),
                candidate_length=first["candidate_length"],
                baseline_length=first["baseline_length"],
            )
        )
    return dict(found)
