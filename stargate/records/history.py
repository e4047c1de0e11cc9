"""What earlier sittings of a run have left, for the one that goes on with it.

    metrics.jsonl, t*/train.json, models/  -> RunHistory: what is done, and what came of it
    sittings.json                          -> RunTotals: what it took
    tables of a scope                      -> Finished: what of an iteration is not made again

A sitting is one process's work on a run: `stargate run` is the first, each `stargate resume` is one
more. sittings.json is written when a sitting begins, after each iteration and evaluation, and at
its end; of a sitting that was killed, only the time after its last record there is unknown.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from operator import add
from pathlib import Path
from typing import Any

from stargate.errors import ModelError
from stargate.records.counters import Counters, generated_tokens
from stargate.records.model_folder import check_model_folder
from stargate.records.repair import scopes_of
from stargate.records.schemas import Row, dialogue_from_row
from stargate.records.store import METRICS, RunStore, parse, reading
from stargate.types import (
    Dialogue,
    DialogueScore,
    IterationResult,
    MemoryPeak,
    PushResult,
    Selection,
    TrainResult,
    TurnScore,
)

SITTINGS_FILE = "sittings.json"
# What a sitting counts on from where the one before it ended.
_DROPS = ("dropped", "dropped_examples")
# What runs of earlier versions did not count.
_ADDED_LATER = ("restarts", "longest_restart", "resent", "joined", "left")

# The fields of TrainResult and PushResult in a line of metrics.jsonl.
_TRAINED_KEYS = {entry.name: entry.name for entry in fields(TrainResult)} | {
    "losses": "train_losses",
    "seconds": "train_seconds",
}
del _TRAINED_KEYS["model_dir"]  # a run's folder may move
_PUSHED_KEYS = {"num_engines": "num_engines", "seconds": "push_seconds", "phases": "push_phases"}


@dataclass
class RunTotals(Counters):
    """What all sittings of a run counted and took, up to some point.

    Seconds are those that were recorded.
    """

    count: int = 0
    seconds: float = 0.0
    peak_gb: float = 0.0
    peak_measure: str = "pss"
    tracking_lost: Mapping[str, int] = field(default_factory=dict)

    def new_counters(self) -> Counters:
        """The counters of the next sitting. Drops are counted for the whole run."""
        return Counters(
            dropped=self.dropped.copy(), dropped_examples=deepcopy(self.dropped_examples)
        )

    def plus(
        self, counters: Counters, seconds: float, peak: MemoryPeak, lost: Mapping[str, int]
    ) -> "RunTotals":
        """With what the sitting in progress has counted; its counters are from `new_counters`."""
        counted = {}
        for name in (entry.name for entry in fields(Counters)):
            before, new = getattr(self, name), getattr(counters, name)
            if name in _DROPS:
                counted[name] = deepcopy(new)
            else:
                joined = _joined(before, new, max if name == "longest_restart" else add)
                counted[name] = type(before)(joined)
        return replace(
            self,
            **counted,
            seconds=self.seconds + seconds,
            peak_gb=max(self.peak_gb, peak.gb),
            peak_measure="rss" if "rss" in (self.peak_measure, peak.measure) else "pss",
            tracking_lost=_joined(self.tracking_lost, lost, add),
        )

    def write(self, store: RunStore) -> None:
        # Not dataclasses.asdict: it makes a Counter of a Counter's items.
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        store.write_json(SITTINGS_FILE, values)


def _joined(
    one: Mapping[str, Any], other: Mapping[str, Any], join: Callable[[Any, Any], Any]
) -> dict[str, Any]:
    return {name: join(one.get(name, 0), other.get(name, 0)) for name in [*one, *other]}


def read_totals(store: RunStore) -> RunTotals:
    """What sittings.json says; of a run of an earlier version, one sitting of unknown length."""
    values = store.read_json(SITTINGS_FILE)
    if values is None:
        return RunTotals(count=1)
    values = {**{name: {} for name in _ADDED_LATER}, **values}
    with reading(store.root / SITTINGS_FILE):
        return parse(RunTotals, {entry.name: values[entry.name] for entry in fields(RunTotals)})


def count_rollouts(store: RunStore, counted: RunTotals) -> tuple[int, int]:
    """(dialogues, sampled tokens) of all iterations, as their tables have them.

    What a killed sitting played was not counted by it. Only tables that have other numbers than
    `counted` are read.
    """
    num_dialogues = num_tokens = 0
    for scope in (folder.name for folder in scopes_of(store.root)):
        if scope.startswith("eval-"):
            continue
        found = store.num_rows(scope, "dialogues")
        num_dialogues += found
        if found == counted.dialogues.get(scope, 0):
            num_tokens += counted.generated_tokens.get(scope, 0)
        else:
            rows = store.read(scope, "dialogues")
            num_tokens += sum(generated_tokens(dialogue_from_row(row)) for row in rows)
    return num_dialogues, num_tokens


@dataclass(frozen=True)
class RunHistory:
    """What is done. The first `num_iterations` iterations have made their models.

    `results` has the iterations that metrics.jsonl tells about; None for a line of an earlier
    version, which had less in it. `trained` has the training results that t*/train.json tells.
    `evaluations` has the measures by version. `num_steps` counts the optimizer steps of all.
    """

    num_iterations: int = 0
    results: Mapping[int, IterationResult | None] = field(default_factory=dict)
    trained: Mapping[int, TrainResult] = field(default_factory=dict)
    evaluations: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    num_steps: int = 0

    def training(self, iteration: int) -> TrainResult | None:
        """What the training of an iteration did, if that is on record."""
        result = self.results.get(iteration)
        return self.trained.get(iteration) if result is None else result.trained


def read_history(store: RunStore) -> RunHistory:
    """Reads what is done. Raises ModelError if a model is missing or damaged that a later one, or
    its tables, were made with.
    """
    models = store.root.resolve() / "models"
    results: dict[int, IterationResult | None] = {}
    evaluations: dict[int, dict[str, Any]] = {}
    num_steps = {}
    for event in store.read_metrics():
        with reading(store.root / METRICS):
            if event["event"] == "iteration":
                number = int(event["iteration"])
                results[number] = _result(event, models)
                num_steps[number] = len(event["train_losses"])
            elif event["event"] == "evaluation":
                measures = {k: v for k, v in event.items() if k not in ("event", "version")}
                evaluations[int(event["version"])] = measures
    trained = {}
    for scope in (folder.name for folder in scopes_of(store.root)):
        values = store.read_json(train_file(scope))
        if values is not None:
            number = int(scope.removeprefix("t"))
            with reading(store.root / train_file(scope)):
                trained[number] = _train_result(values, models / f"m{number + 1}")
    num_done = 0
    while is_done(store, num_done, known=num_done in results or num_done in trained):
        num_done += 1
    return RunHistory(
        num_iterations=num_done,
        results={n: result for n, result in results.items() if n < num_done},
        trained={n: result for n, result in trained.items() if n < num_done},
        evaluations={v: measures for v, measures in evaluations.items() if v <= num_done},
        num_steps=sum(steps for number, steps in num_steps.items() if number < num_done),
    )


def is_done(store: RunStore, number: int, *, known: bool) -> bool:
    """Whether iteration t = `number` is done: m_{t+1} is there, whole.

    If nothing was made with it yet, it must also be `known` what its training did: else training is
    repeated, from the same examples, so that the record is complete. Raises ModelError.
    """
    version = number + 1
    folder = store.root / "models" / f"m{version}"
    made_with_it = (f"t{version}", f"eval-m{version}", f"models/m{version + 1}")
    used = any((store.root / name).is_dir() for name in made_with_it)
    if not folder.is_dir():
        if used:
            raise ModelError(f"{folder}: is missing, but later parts of the run were made with it")
        return False
    try:
        check_model_folder(folder)
    except ModelError:
        if used:
            raise
        return False
    return known or used


def train_file(scope: str) -> str:
    """Where a training result is kept until its iteration is recorded, and after."""
    return f"{scope}/train.json"


def iteration_event(iteration: int, result: IterationResult, counters: Counters) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    return {
        "event": "iteration",
        "iteration": iteration,
        **{key: getattr(result.trained, name) for name, key in _TRAINED_KEYS.items()},
        **{key: getattr(result.pushed, name) for name, key in _PUSHED_KEYS.items()},
        "dropped": dict(counters.dropped),
    }


def _result(event: Mapping[str, Any], models: Path) -> IterationResult | None:
    if "num_tokens" not in event:
        return None
    version = int(event["iteration"]) + 1
    # What runs of earlier versions did not count.
    event = {"num_repeated_steps": None, "engine_gap_mean": (), "engine_gap_max": (), **event}
    trained = {name: event[key] for name, key in _TRAINED_KEYS.items()}
    pushed = {name: event[key] for name, key in _PUSHED_KEYS.items()}
    return IterationResult(
        _train_result(trained, models / f"m{version}"),
        parse(PushResult, {"version": version, **pushed}),
    )


def _train_result(values: Mapping[str, Any], model_dir: Path) -> TrainResult:
    """The folder of a run may have moved, so the model's is not taken from what was written."""
    return parse(TrainResult, {**values, "model_dir": str(model_dir)})


@dataclass(frozen=True, slots=True)
class Finished:
    """Finished records of one scope: dialogues and scores by dialogue id, the rest by pair id."""

    dialogues: Mapping[str, Dialogue]
    scores: Mapping[str, DialogueScore]
    turn_scores: Mapping[str, Sequence[TurnScore]]
    selections: Mapping[str, Sequence[Selection]]
    examples: frozenset[str]


def read_finished(store: RunStore, scope: str) -> Finished:
    """Reads the tables of a scope; nothing is finished where there are none."""
    scores = store.records(scope, "scores", DialogueScore)
    turn_scores: dict[str, list[TurnScore]] = {}
    for score in store.records(scope, "turn_scores", TurnScore):
        turn_scores.setdefault(score.dialogue_id, []).append(score)
    selections: dict[str, list[Selection]] = {}
    for selection in store.records(scope, "selections", Selection):
        selections.setdefault(selection.pair_id, []).append(selection)
    return Finished(
        dialogues=_PackedDialogues(store.read(scope, "dialogues")),
        scores={score.dialogue_id: score for score in scores},
        turn_scores=turn_scores,
        selections=selections,
        examples=frozenset(row["pair_id"] for row in store.read(scope, "examples")),
    )


class _PackedDialogues(Mapping[str, Dialogue]):
    """Dialogues by id, in a fraction of the memory: 125,000 of them as objects take 1 GB."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._packed = {row["id"]: json.dumps(row, ensure_ascii=False).encode() for row in rows}

    def __getitem__(self, key: str) -> Dialogue:
        return dialogue_from_row(json.loads(self._packed[key]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)
