"""Reads a run directory for the report (the records are in report/records.py).

    config.yaml, environment.json, metrics.jsonl, summary.json
    data.source -> pairs                                        one per distinct dataset
    eval.json, eval-m<t>/ of RUN and of RUN/evaluations/*       -> Evaluation, dialogues
    t<t>/                                                       -> dialogues, selections
      -> ReportData

A run that stopped early or was never evaluated is a run: what is missing is said in `notes`. Only
what is no run directory, or a broken file in it, is a DataError.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stargate.config.files import load_config
from stargate.config.roleplayer import FactsGrounding
from stargate.config.run import RunConfig
from stargate.data.dataset import Dataset, open_dataset
from stargate.errors import DataError
from stargate.evaluation.catalog import checkpoints_of
from stargate.evaluation.measures import EVALUATION_FILE, About
from stargate.evaluation.statistics import Measure, PairedMeasure
from stargate.records.files import read_json
from stargate.records.schemas import Row
from stargate.records.store import (
    EVALUATION_DROPS,
    METRICS,
    RunStore,
    load_run_config,
    parse,
    reading,
    versions_of,
)
from stargate.report.dialogues import (
    keep_whole_pairs,
    read_dialogues,
    read_evaluated,
    read_training,
    stated_facts,
    told_facts,
)
from stargate.report.records import (
    TEST,
    TRAIN,
    DialogueView,
    Drops,
    Evaluation,
    Iteration,
    Judge,
    ReferenceRow,
    ReportData,
    SelectionView,
    Throughput,
)
from stargate.types import Pair, Persona, Task

# Dialogues that one report holds: a browser opens 10,000 in under two seconds. All evaluation
# dialogues are kept; training pairs are left out whole, evenly over the iterations, and counted.
MAX_DIALOGUES = 20_000
# What a checkpoint's part of eval.json says in place of a measure that can't be had.
_REASONS = ("no_skill", "no_skill_coverage")


def load_report(run_dir: Path, max_dialogues: int = MAX_DIALOGUES) -> ReportData:
    """Everything the report shows.

    Raises DataError for what is not a run directory, or for a broken file in it.
    """
    config = load_run_config(run_dir)
    loader = _Loader(run_dir, config)
    evaluations = loader.evaluations()
    selections = loader.training(max_dialogues)
    iterations = _read_iterations(run_dir)
    summary = read_json(run_dir / "summary.json")
    if summary is None:
        loader.notes.append(
            "The run has no summary.json: it is still going on, or it was killed. Stage times, "
            "throughput and dropped records are not known."
        )
    values: Mapping[str, Any] = summary or {}
    if left_out := loader.num_left_out:
        loader.notes.append(
            f"The browser leaves out {left_out} training dialogues (whole pairs, evenly over the "
            "iterations) to stay usable; they are in the run directory."
        )
    with reading(run_dir / "summary.json"):
        stages = (values.get("stages") or {}).items()
        return ReportData(
            name=run_dir.resolve().name,
            config=config,
            environment=read_json(run_dir / "environment.json") or {},
            status=str(values.get("status", "not finished")),
            evaluations=evaluations,
            iterations=iterations,
            selections=tuple(selections),
            dialogues=tuple(loader.dialogues),
            num_dialogues_left_out=left_out,
            pairs=loader.pairs,
            stages={name: parse(float, stage["seconds"]) for name, stage in stages},
            throughput=parse(Throughput, values),
            drops=_drops(values, run_dir),
            notes=tuple(dict.fromkeys(loader.notes)),
        )


class _Loader:
    """Reads the dialogues source by source and gathers what there is to say on the way."""

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self.notes: list[str] = []
        self.pairs: dict[str, dict[str, Pair]] = {}
        self.dialogues: list[DialogueView] = []
        self.num_left_out = 0
        self._root = run_dir
        self._config = config
        self._datasets: dict[str, Dataset | str] = {}

    def evaluations(self) -> tuple[Evaluation, ...]:
        """The run's own evaluation, if any was begun, and those beside it by name."""
        found = [self._evaluation(self._root, TEST, "test", self._config)]
        for root in sorted((self._root / "evaluations").glob("*/")):
            # With its own config if it has its own data or Roleplayer, else with the run's.
            file = root / "config.yaml"
            config = load_config(file) if file.is_file() else self._config
            found.append(self._evaluation(root, f"evaluations/{root.name}", root.name, config))
        evaluations = tuple(entry for entry in found if entry is not None)
        if not evaluations:
            self.notes.append(
                "Nothing was evaluated: run `stargate eval` on this run to see whether it got "
                "better."
            )
        return evaluations

    def _evaluation(
        self, root: Path, source: str, name: str, config: RunConfig
    ) -> Evaluation | None:
        versions = versions_of(root, "eval-m")
        evaluation = _read_evaluation(root, source, name)
        if not versions and not evaluation.measures:
            return None
        if not evaluation.measures:
            self.notes.append(
                f"Evaluation {name!r} has dialogues but no measures yet (no eval.json): "
                "`stargate eval` writes them."
            )
        with reading(root):
            rows = {version: read_dialogues(root, f"eval-m{version}") for version in versions}
            pairs = self._read_pairs(source, config, rows)
            about = evaluation.about
            grounded = about.roleplayer.grounding == "facts" if about else _grounded(config)
            facts_of = told_facts if grounded else stated_facts
            self.dialogues += read_evaluated(root, source, rows, pairs, facts_of)
        return evaluation

    def training(self, max_dialogues: int) -> list[SelectionView]:
        """Reads the training dialogues; returns the selections of all pairs."""
        selections: list[SelectionView] = []
        with reading(self._root):
            rows = {t: read_dialogues(self._root, f"t{t}") for t in versions_of(self._root, "t")}
            room = max(max_dialogues - len(self.dialogues), 0)
            kept, self.num_left_out = keep_whole_pairs(rows, room)
            pairs = self._read_pairs(TRAIN, self._config, rows)
            facts_of = told_facts if _grounded(self._config) else stated_facts
            for t, found in kept.items():
                dialogues, selected = read_training(self._root, t, found, pairs, facts_of)
                self.dialogues += dialogues
                selections += selected
        return selections

    def _read_pairs(
        self, source: str, config: RunConfig, rows: Mapping[int, Iterable[Row]]
    ) -> dict[str, Pair]:
        """The pairs that occur in the rows, with what the dataset says about them."""
        name = config.data.source
        if name not in self._datasets:
            try:
                self._datasets[name] = open_dataset(name)
            except DataError as error:
                self._datasets[name] = str(error)
        dataset = self._datasets[name]
        if isinstance(dataset, str):
            self.notes.append(
                f"The data can't be read ({dataset}), so persona profiles, the texts of facts and "
                "golds are not shown."
            )
            dataset = Dataset(name, {}, {}, {})
        by_id = {row["pair_id"]: row for found in rows.values() for row in found}
        self.pairs[source] = {key: _pair(row, dataset) for key, row in by_id.items()}
        return self.pairs[source]


def _grounded(config: RunConfig) -> bool:
    return isinstance(config.roleplayer.grounding, FactsGrounding)


def _pair(row: Row, dataset: Dataset) -> Pair:
    """What the dialogues say comes first: a data folder may have changed since the run."""
    known = dataset.tasks.get(row["task_id"])
    task = Task(row["task_id"], row["task"], "", known is None or known.needs_question)
    someone = dataset.personas.get(row["persona_id"])
    text, facts = (someone.text, someone.facts) if someone else ("", ())
    persona = Persona(row["persona_id"], row["persona_name"], text, "", facts)
    return Pair(task, persona, *dataset.golds.get((task.id, persona.id), (None, ())))


def _drops(summary: Mapping[str, Any], run_dir: Path) -> Drops:
    """Those of the run, and those of every `stargate eval` of it, by reason and place."""
    counts = _counts(summary.get("dropped"))
    examples = parse(dict[str, tuple[str, ...]], summary.get("dropped_examples") or {})
    for folder in (run_dir, *sorted((run_dir / "evaluations").glob("*"))):
        where = "stargate eval" if folder == run_dir else f"evaluation {folder.name}"
        evaluation = read_json(folder / EVALUATION_DROPS) or {}
        with reading(folder / EVALUATION_DROPS):
            for reason, count in _counts(evaluation.get("dropped")).items():
                counts[f"{reason} ({where})"] = count
                texts = parse(tuple[str, ...], evaluation["examples"][reason])
                examples[f"{reason} ({where})"] = texts
    return Drops(run=counts, data=_counts(summary.get("data_dropped")), examples=examples)


def _counts(values: Mapping[str, Any] | None) -> dict[str, int]:
    return parse(dict[str, int], values or {})


def _read_iterations(run_dir: Path) -> tuple[Iteration, ...]:
    """The iterations of metrics.jsonl in order; of one that was done again, the last."""
    found: dict[int, Iteration] = {}
    with reading(run_dir / METRICS):
        for event in RunStore(run_dir).read_metrics():
            if event["event"] == "iteration":
                iteration = parse(Iteration, event)
                found[iteration.number] = iteration
    return tuple(found[number] for number in sorted(found))


def _read_evaluation(root: Path, source: str, name: str) -> Evaluation:
    """ROOT/eval.json; without one, an evaluation without measures. Raises DataError."""
    file = root / EVALUATION_FILE
    tree = read_json(file)
    if tree is None:
        checkpoints = tuple(f"m{version}" for version in versions_of(root, "eval-m"))
        return Evaluation(source, name, checkpoints)
    checkpoints = tuple(checkpoints_of(tree))
    with reading(file):
        judge = tree.get("judge")
        if judge is not None:
            criteria = [{**entry, "name": name} for name, entry in judge["criteria"].items()]
            judge = parse(Judge, {**judge, "criteria": criteria})
        return Evaluation(
            source,
            name,
            checkpoints,
            about=parse(About, tree["about"]),
            confidence=parse(float, tree["about"]["confidence"]),
            measures={
                checkpoint: {
                    name: parse(Measure, value)
                    for name, value in tree[checkpoint].items()
                    if not name.endswith("_details") and name not in _REASONS
                }
                for checkpoint in checkpoints
            },
            changes=parse(dict[str, dict[str, PairedMeasure]], tree["changes"]),
            win_rates={
                m: {k: v for k, v in tree[m].items() if k.endswith("_details")} for m in checkpoints
            },
            judge=judge,
            references={
                name: _reference_row(name, row) for name, row in tree.get("reference", {}).items()
            },
            no_skill={
                m: parse(str, tree[m]["no_skill"]) for m in checkpoints if "no_skill" in tree[m]
            },
        )


def _reference_row(name: str, row: Mapping[str, Any]) -> ReferenceRow:
    measures = {key: value for key, value in row.items() if key != "questions"}
    return ReferenceRow(
        name, parse(dict[str, Measure], measures), parse(tuple[str, ...], row["questions"])
    )
