"""One evaluation's tables -> eval.json. Nothing else goes in, so it can be made again at any time.

    ROOT/eval-m<v>/{dialogues,controls,...} -> CheckpointRecords -> observations by measure
        -> mean and interval per checkpoint; change from the first checkpoint; win rates; the judge

Gold log-prob under m_0, in nats. One observation per dialogue, unless said otherwise:

gold_logprob                the gold after the pair's own dialogue
gold_logprob_best           the best of the pair's dialogues that have a score; one per pair. It
                            grows with their number: see `changes`
no_dialogue, persona_given  without a dialogue; one per pair
persona_and_dialogue        the persona given, and the own dialogue
shuffled                    after a dialogue with another persona about the same task
matched_minus_shuffled      of the dialogues that have both scores
matched_minus_no_dialogue   likewise
contrast                    the own gold's log-prob beyond what dialogue and gold have anyway, by
                            other personas' golds after the dialogue (contrast.py)
gain_at_turn_1, _2, ...     what a question added: after k turns minus after k - 1 (0: no dialogue)
..._per_token               divided by the number of the gold's tokens, dialogue by dialogue

Beside them all of elicitation.py, diversity.py, asking.py and question_fit.py, and win_rate (own
dialogues and responses against m_0's) and win_rate_fixed_responder (m_0 writes both).

Shares of turns (question_rate) have one observation per turn: a dialogue weighs by its turns, and
those, no independent samples, lie in one (task, persona) cell: what the intervals resample.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from stargate.config.judge import JudgeThresholds
from stargate.config.roleplayer import Style
from stargate.errors import DataError
from stargate.evaluation.asking import CONSTANT_POLICIES, observe_asking
from stargate.evaluation.checkpoint_records import WIN_RATES, CheckpointRecords, read_checkpoint
from stargate.evaluation.contrast import GoldAfter, contrasts
from stargate.evaluation.controls import FIXED, ControlScore, gains
from stargate.evaluation.diversity import observe_diversity
from stargate.evaluation.elicitation import CountTokens, observe_elicitation
from stargate.evaluation.qualification import TRIALS, Qualification, qualify
from stargate.evaluation.question_fit import observe_fit
from stargate.evaluation.references import FOLDER, RECORDS, read_rows
from stargate.evaluation.skill import skill
from stargate.evaluation.statistics import (
    BootstrapConfig,
    Measure,
    Observation,
    PairedMeasure,
    measure,
    paired_difference,
)
from stargate.evaluation.win_rate import JudgedComparison, WinRate, win_rate
from stargate.records.store import RunStore, versions_of
from stargate.types import Pair

EVALUATION_FILE = "eval.json"

Observations = dict[str, list[Observation]]
# What one control scored: (pair, dialogue) -> its score.
_Scored = dict[tuple[str, str | None], ControlScore]

# Controls that are measures as they are scored.
_AS_SCORED = ("no_dialogue", "persona_given", "persona_and_dialogue", "shuffled")
_GOLD_MEASURES = (
    "gold_logprob",
    "gold_logprob_per_token",
    "gold_logprob_best",
    *_AS_SCORED,
    "contrast",
    "matched_minus_shuffled",
    "matched_minus_shuffled_per_token",
    "matched_minus_no_dialogue",
)
# What is measured of reference rows.
_OF_ROWS = ("gold_logprob", "contrast", "facts_per_dialogue", "fact_coverage")
# Measures with such names lie between 0 and 1, and so does their interval.
_SHARES = re.compile(r"(_rate|_coverage|_accuracy)$|^coverage_of_")


@dataclass(frozen=True, slots=True)
class RoleplayerAbout:
    """Which simulated user answered. `facts`: it was given the facts that the question asks for,
    and says `told_already` where that fact was told.
    """

    model: str
    prompts: str
    grounding: Literal["facts", "persona"]
    style: tuple[Style, ...] = ("plain",)
    patience: int | None = None
    told_already: str | None = None

    @property
    def ways(self) -> str:
        """Its prompts, grounding and, where it differs from others, style and patience."""
        parts = [f"prompts {self.prompts}", f"grounding {self.grounding}"]
        if self.style != ("plain",):
            parts.append(f"style {'/'.join(self.style)}")
        if self.patience is not None:
            parts.append(f"patience {self.patience}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class About:
    """On what an evaluation was made. `trained_with_roleplayer` may differ: a held-out user."""

    split: str
    data: str
    roleplayer: RoleplayerAbout
    trained_with_roleplayer: RoleplayerAbout
    num_dialogues: int
    turns: tuple[int, ...]
    seed: int

    @property
    def of_pair(self) -> str:
        """The dialogues of a pair in words."""
        turns = " or ".join(map(str, self.turns))
        return f"{self.num_dialogues} dialogues of {turns} turns per pair"


def write_evaluation(
    store: RunStore,
    pairs: Iterable[Pair],
    count_tokens: CountTokens,
    about: About,
    config: BootstrapConfig | None = None,
    *,
    judge_model: str | None = None,
    thresholds: JudgeThresholds | None = None,
) -> dict[str, Any]:
    """Measures every checkpoint that has a scope in the store, and writes ROOT/eval.json.

    Returns what it wrote. Raises DataError where nothing was evaluated, or a table contradicts
    the pairs or itself.
    """
    of_id = {pair.id: pair for pair in pairs}
    checkpoints = {
        f"m{version}": read_checkpoint(store, f"eval-m{version}", of_id)
        for version in versions_of(store.root, "eval-m")
    }
    if not checkpoints:
        raise DataError(f"{store.root}: no checkpoint was evaluated here (no folder eval-m0, ...)")
    rows = {
        name: (read_checkpoint(RunStore(store.root / FOLDER / name), RECORDS, of_id), row)
        for name, row in read_rows(store.root).items()
    }
    values = evaluation_json(
        checkpoints,
        count_tokens,
        about,
        config,
        judge_model=judge_model,
        thresholds=thresholds,
        references=rows,
    )
    store.write_json(EVALUATION_FILE, values)
    return values


def evaluation_json(
    checkpoints: Mapping[str, CheckpointRecords],
    count_tokens: CountTokens,
    about: About,
    config: BootstrapConfig | None = None,
    *,
    judge_model: str | None = None,
    thresholds: JudgeThresholds | None = None,
    references: Mapping[str, tuple[CheckpointRecords, Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """The whole of eval.json: checkpoints by name, `changes`, `judge` if one was asked, `about`,
    and `reference`: its rows by name, with the questions of those that ask everybody the same.

    `checkpoints` are in the order of their versions; changes are from the first of them.
    """
    config = config or BootstrapConfig()
    grounded, told_already = about.roleplayer.grounding == "facts", about.roleplayer.told_already
    observed = {
        name: observe(records, count_tokens, grounded=grounded, told_already=told_already)
        for name, records in checkpoints.items()
    }
    values: dict[str, Any] = {}
    for name, records in checkpoints.items():
        rates = win_rates(records, config)
        measures = measure_checkpoint(observed[name], rates, config)
        values[name] = {key: asdict(measured) for key, measured in measures.items()}
        values[name] |= {f"{key}_details": rate.to_json() for key, rate in rates.items()}
    first, *later = checkpoints
    values["changes"] = {
        name: {
            key: asdict(change)
            for key, change in changes(observed[first], observed[name], config).items()
        }
        for name in later
    }
    if judged := judge_qualification(checkpoints.values(), thresholds, config):
        values["judge"] = judged.to_json(judge_model)
    if references:
        rows = {
            name: observe(records, count_tokens, grounded=grounded)
            for name, (records, _) in references.items()
        }
        values["reference"] = {
            name: _row_json(row, references[name][1], config) for name, row in rows.items()
        }
        for name, found in observed.items():
            values[name] |= skills(found, rows, config)
    values["about"] = asdict(about) | {"confidence": config.confidence, "changes_from": first}
    return values


def _row_json(
    row: Observations, about: Mapping[str, Any], config: BootstrapConfig
) -> dict[str, Any]:
    """A reference row's part of eval.json."""
    shown = {name: values for name, values in row.items() if name in _OF_ROWS}
    measured = measure_checkpoint(shown, {}, config)
    return {name: asdict(one) for name, one in measured.items()} | {
        "questions": about.get("questions", [])
    }


def skills(
    found: Observations, rows: Mapping[str, Observations], config: BootstrapConfig
) -> dict[str, Any]:
    """`skill`, of the contrast, and `skill_coverage`, of the gold's facts, of a checkpoint; without
    the rows that they need none, and the reason in place of a measure that can't be had.
    """
    made: dict[str, Any] = {}
    for name, of in (("skill", "contrast"), ("skill_coverage", "fact_coverage")):
        ends = [rows.get(row, {}).get(of) for row in ("constant", "gold_facts")]
        if of not in found or None in ends:
            continue
        reached = skill(found[of], ends[0] or (), ends[1] or (), config)
        made |= {f"no_{name}": reached} if isinstance(reached, str) else {name: asdict(reached)}
    return made


def observe(
    records: CheckpointRecords,
    count_tokens: CountTokens,
    *,
    grounded: bool,
    told_already: str | None = None,
) -> Observations:
    """Observations by measure, win rates apart. Measures of a table that is not there are absent;
    a measure that found nothing in its table has an empty list.
    """
    found: Observations = {}
    if records.controls:
        found |= {name: [] for name in _GOLD_MEASURES}
        for name, pair_id, value in _gold_values(records):
            task, persona = records.pairs[pair_id].task, records.pairs[pair_id].persona
            found.setdefault(name, []).append(Observation(task.id, persona.id, value))
    if records.dialogues:
        played = [(records.pairs[entry.pair_id], entry) for entry in records.dialogues]
        found |= observe_elicitation(played, count_tokens, grounded=grounded)
        found |= observe_diversity(
            played, records.pairs.values(), grounded=grounded, told_already=told_already
        )
        found |= observe_asking(played) | observe_fit(records.pairs, records.fits)
    return found


def win_rates(records: CheckpointRecords, config: BootstrapConfig | None) -> dict[str, WinRate]:
    """Win rates against m_0 by name, of the comparisons that were made."""
    return {
        name: win_rate(records.comparisons[comparison], config)
        for comparison, name in WIN_RATES.items()
        if comparison in records.comparisons
    }


def measure_checkpoint(
    observations: Mapping[str, Sequence[Observation]],
    rates: Mapping[str, WinRate],
    config: BootstrapConfig | None = None,
) -> dict[str, Measure]:
    """Mean and interval of every measure; of a win rate the agreed one's."""
    measures = {
        name: measure(values, config, bounds=(0.0, 1.0) if _SHARES.search(name) else None)
        for name, values in observations.items()
    }
    agreed = {name: asdict(rate.agreed) for name, rate in rates.items()}
    keys = [field.name for field in fields(Measure)]
    return measures | {
        name: Measure(**{key: values[key] for key in keys}) for name, values in agreed.items()
    }


def changes(
    before: Mapping[str, Sequence[Observation]],
    after: Mapping[str, Sequence[Observation]],
    config: BootstrapConfig | None = None,
) -> dict[str, PairedMeasure]:
    """What changed between two checkpoints, by measure, over the pairs that both have.

    Only of measures that both have; the controls without a dialogue can't change. The best of
    eight dialogues is above the best of two whatever the checkpoint, so gold_logprob_best is
    compared where a pair has equally many; its other pairs are among `num_only_before`.
    """
    found: dict[str, PairedMeasure] = {}
    for name in before:
        if name not in after or name in FIXED | CONSTANT_POLICIES:
            continue
        values = after[name]
        if name == "gold_logprob_best":
            num_before, num_after = (
                Counter((o.task, o.persona) for o in side["gold_logprob"])
                for side in (before, after)
            )
            cells = {c for c, n in num_before.items() if n != num_after[c]}
            values = [o for o in values if (o.task, o.persona) not in cells]
        found[name] = paired_difference(before[name], values, config)
    return found


def judge_qualification(
    checkpoints: Iterable[CheckpointRecords],
    thresholds: JudgeThresholds | None = None,
    config: BootstrapConfig | None = None,
) -> Qualification | None:
    """None if no judge was asked anything. One that was asked for win rates but not tried is
    unfit: `qualify` misses its comparisons.
    """
    judged: dict[str, list[JudgedComparison]] = defaultdict(list)
    for records in checkpoints:
        for name, comparisons in records.comparisons.items():
            judged[name] += comparisons
    if not judged:
        return None
    return qualify({name: judged[name] for name in TRIALS}, thresholds, config)


def _gold_values(records: CheckpointRecords) -> Iterator[tuple[str, str, float]]:
    """(measure, pair id, value) for everything that the controls say."""
    scored: dict[str, _Scored] = defaultdict(dict)
    for entry in records.controls:
        if entry.control != "after_turn":
            scored[entry.control][entry.pair_id, entry.dialogue_id] = entry
    for name in _AS_SCORED:
        yield from ((name, pair_id, e.gold_logprob) for (pair_id, _), e in scored[name].items())
    best: dict[str, float] = {}
    for (pair_id, dialogue_id), own in scored["matched"].items():
        value = own.gold_logprob
        best[pair_id] = max(value, best.get(pair_id, value))
        yield "gold_logprob", pair_id, value
        yield "gold_logprob_per_token", pair_id, value / own.num_gold_tokens
        if other := scored["shuffled"].get((pair_id, dialogue_id)):
            difference = value - other.gold_logprob
            yield "matched_minus_shuffled", pair_id, difference
            yield "matched_minus_shuffled_per_token", pair_id, difference / own.num_gold_tokens
        if without := scored["no_dialogue"].get((pair_id, None)):
            yield "matched_minus_no_dialogue", pair_id, value - without.gold_logprob
    yield from (("gold_logprob_best", pair_id, value) for pair_id, value in best.items())
    yield from _contrasts(records)
    yield from _gains(records, scored["no_dialogue"], scored["matched"])


def _contrasts(records: CheckpointRecords) -> Iterator[tuple[str, str, float]]:
    """The contrast of every dialogue that has one."""
    pair_of = {dialogue.id: records.pairs[dialogue.pair_id] for dialogue in records.dialogues}
    scores = [
        GoldAfter(
            task=pair_of[entry.dialogue_id].task.id,
            dialogue_id=entry.dialogue_id,
            persona=pair_of[entry.dialogue_id].persona.id,
            gold_persona=records.pairs[entry.pair_id].persona.id,
            logprob=entry.gold_logprob,
        )
        for entry in records.controls
        if entry.control in ("matched", "other_gold") and entry.dialogue_id is not None
    ]
    for dialogue_id, value in contrasts(scores).items():
        yield "contrast", pair_of[dialogue_id].id, value


def _gains(
    records: CheckpointRecords, without: _Scored, matched: _Scored
) -> Iterator[tuple[str, str, float]]:
    """gain_at_turn_k of every dialogue whose gold was scored after k - 1 and after k turns."""
    after: dict[str, dict[int, float]] = defaultdict(dict)
    for entry in records.controls:
        if entry.control == "after_turn":
            if entry.dialogue_id is None or entry.num_turns is None:
                raise DataError(f"pair {entry.pair_id}: after_turn needs a dialogue and num_turns")
            after[entry.dialogue_id][entry.num_turns] = entry.gold_logprob
    for dialogue in records.dialogues:
        ladder: dict[int, float | None] = {**after.get(dialogue.id, {})}
        if opening := without.get((dialogue.pair_id, None)):
            ladder[0] = opening.gold_logprob
        if whole := matched.get((dialogue.pair_id, dialogue.id)):
            ladder[len(dialogue.turns)] = whole.gold_logprob
        for turn, gain in enumerate(gains(ladder, len(dialogue.turns)), start=1):
            if gain is not None:
                yield f"gain_at_turn_{turn}", dialogue.pair_id, gain
