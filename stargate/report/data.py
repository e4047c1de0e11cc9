"""Reads a run directory for the report (the records are in report/records.py).

    config.yaml, environment.json, metrics.jsonl, summary.json
    data.source -> Texts                                        one per distinct dataset
    eval.json, eval-m<t>/ of RUN and of RUN/evaluations/*       -> Evaluation, dialogues
    t<t>/                                                       -> dialogues, selections
      -> ReportData

A run that stopped early or was never evaluated is a run: what is missing is said in `notes`. Only
what is no run directory, or a broken file in it, is a DataError.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stargate.config.files import load_config
from stargate.config.run import FactsGrounding, RunConfig
from stargate.data.dataset import Dataset, open_dataset
from stargate.errors import DataError
from stargate.records.files import read_json
from stargate.records.store import EVALUATION_DROPS
from stargate.report.dialogues import (
    Row,
    keep_whole_pairs,
    read_evaluated,
    read_rows,
    read_training,
    stated_facts_of,
    told_facts,
)
from stargate.report.reading import (
    count_of,
    evaluation_scopes,
    iteration_scopes,
    number_of,
    read_evaluation,
    read_iterations,
    reading,
)
from stargate.report.records import (
    TEST,
    TRAIN,
    DialogueView,
    Drops,
    Evaluation,
    GoldView,
    Iteration,
    PersonaView,
    ReportData,
    SelectionView,
    TaskView,
    Texts,
    Throughput,
    TurnView,
)

__all__ = [
    "DialogueView",
    "Evaluation",
    "Iteration",
    "ReportData",
    "SelectionView",
    "Texts",
    "TurnView",
    "load_report",
]

# Dialogues that one report holds: a browser opens 10,000 in under two seconds. All evaluation
# dialogues are kept; training pairs are left out whole, evenly over the iterations, and counted.
MAX_DIALOGUES = 20_000


def load_report(run_dir: Path, max_dialogues: int = MAX_DIALOGUES) -> ReportData:
    """Everything the report shows.

    Raises DataError for what is not a run directory, or for a broken file in it.
    """
    config = _read_config(run_dir)
    loader = _Loader(run_dir, config)
    evaluations = loader.evaluations()
    selections = loader.training(max_dialogues)
    summary = read_json(run_dir / "summary.json")
    iterations = read_iterations(run_dir / "metrics.jsonl")
    if summary is None:
        loader.notes.append(
            "The run has no summary.json: it is still going on, or it was killed. Stage times, "
            "throughput and dropped records are not known."
        )
    left_out = loader.num_left_out
    if left_out:
        loader.notes.append(
            f"The browser leaves out {left_out} training dialogues (whole pairs, evenly over the "
            "iterations) to stay usable; they are in the run directory."
        )
    values: Mapping[str, Any] = summary or {}
    with reading(run_dir / "summary.json"):
        stages = {
            name: float(stage["seconds"]) for name, stage in (values.get("stages") or {}).items()
        }
        seconds, throughput = number_of(values.get("seconds")), _throughput(values)
        drops = _drops(values, run_dir)
    return ReportData(
        run_dir=run_dir,
        name=run_dir.resolve().name,
        config=config,
        environment=read_json(run_dir / "environment.json") or {},
        status=str(values.get("status", "not finished")),
        seconds=seconds,
        evaluations=evaluations,
        iterations=iterations,
        selections=tuple(selections),
        dialogues=tuple(loader.dialogues),
        num_dialogues_left_out=left_out,
        texts=loader.texts,
        stages=stages,
        throughput=throughput,
        drops=drops,
        notes=tuple(dict.fromkeys(loader.notes)),
    )


def _read_config(run_dir: Path) -> RunConfig:
    if not run_dir.is_dir():
        raise DataError(f"{run_dir}: no such run directory")
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise DataError(
            f"{run_dir}: not a run directory: it has no config.yaml; give the folder that "
            "`stargate run` named"
        )
    return load_config(file)


class _Loader:
    """Reads the dialogues source by source and gathers what there is to say on the way."""

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self.notes: list[str] = []
        self.texts: dict[str, Texts] = {}
        self.dialogues: list[DialogueView] = []
        self.num_left_out = 0
        self._root = run_dir
        self._config = config
        self._datasets: dict[str, Dataset | str] = {}

    def evaluations(self) -> tuple[Evaluation, ...]:
        """The run's own evaluation, if any was begun, and those beside it by name."""
        found = [self._evaluation(self._root, TEST, "test", self._config)]
        folder = self._root / "evaluations"
        for root in sorted(folder.iterdir()) if folder.is_dir() else ():
            if root.is_dir():
                found.append(
                    self._evaluation(root, f"evaluations/{root.name}", root.name, self._own(root))
                )
        evaluations = tuple(entry for entry in found if entry is not None)
        if not evaluations:
            self.notes.append(
                "Nothing was evaluated: run `stargate eval` on this run to see whether it got "
                "better."
            )
        return evaluations

    def _own(self, root: Path) -> RunConfig:
        """The config of an evaluation with its own data or Roleplayer; the run's without one."""
        file = root / "config.yaml"
        return load_config(file) if file.is_file() else self._config

    def _evaluation(
        self, root: Path, source: str, name: str, config: RunConfig
    ) -> Evaluation | None:
        scopes = evaluation_scopes(root)
        evaluation = read_evaluation(root, source, name, scopes)
        if not scopes and not evaluation.measures:
            return None
        if not evaluation.measures:
            self.notes.append(
                f"Evaluation {name!r} has dialogues but no measures yet (no eval.json): "
                "`stargate eval` writes them."
            )
        with reading(root):
            rows = {version: read_rows(root, f"eval-m{version}") for version in scopes}
            found = [row for of_version in rows.values() for row in of_version]
            texts = self._texts(source, config, found)
            facts_of = told_facts if _grounded(evaluation, config) else stated_facts_of(texts)
            self.dialogues += read_evaluated(root, source, rows, texts, facts_of)
        return evaluation

    def training(self, max_dialogues: int) -> list[SelectionView]:
        """Reads the training dialogues; returns the selections of all pairs."""
        with reading(self._root):
            rows = {t: read_rows(self._root, f"t{t}") for t in iteration_scopes(self._root)}
            room = max(max_dialogues - len(self.dialogues), 0)
            kept, self.num_left_out = keep_whole_pairs(rows, room)
            found = [row for of_iteration in rows.values() for row in of_iteration]
            texts = self._texts(TRAIN, self._config, found)
            grounded = isinstance(self._config.roleplayer.grounding, FactsGrounding)
            facts_of = told_facts if grounded else stated_facts_of(texts)
            dialogues, selections = read_training(self._root, kept, texts, facts_of)
            self.dialogues += dialogues
        return selections

    def _texts(self, source: str, config: RunConfig, rows: Sequence[Row]) -> Texts:
        """Tasks and personas that occur in the rows, with what the dataset says about them."""
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
            self.texts[source] = _texts_of_rows(rows, dataset)
        else:
            self.texts[source] = _texts_of_dataset(rows, dataset)
        return self.texts[source]


def _grounded(evaluation: Evaluation, config: RunConfig) -> bool:
    if evaluation.about.roleplayer is not None and evaluation.about.roleplayer.grounding:
        return evaluation.about.roleplayer.grounding == "facts"
    return isinstance(config.roleplayer.grounding, FactsGrounding)


def _texts_of_rows(rows: Sequence[Row], problem: str | None) -> Texts:
    return Texts(
        tasks={row["task_id"]: TaskView(row["task_id"], row["task"], True) for row in rows},
        personas={
            row["persona_id"]: PersonaView(row["persona_id"], row["persona_name"], None, ())
            for row in rows
        },
        golds={},
        problem=problem,
    )


def _texts_of_dataset(rows: Sequence[Row], dataset: Dataset) -> Texts:
    """What the dialogues say comes first: a data folder may have changed since the run."""
    told = _texts_of_rows(rows, None)
    tasks, personas = dict(told.tasks), dict(told.personas)
    for task_id, task in tasks.items():
        known = dataset.tasks.get(task_id)
        if known is not None:
            tasks[task_id] = TaskView(task_id, task.text, known.needs_question)
    for persona_id, persona in personas.items():
        someone = dataset.personas.get(persona_id)
        if someone is not None:
            personas[persona_id] = PersonaView(
                persona_id, persona.name, someone.text, someone.facts
            )
    golds = {}
    for pair_id, key in {
        row["pair_id"]: (row["task_id"], row["persona_id"]) for row in rows
    }.items():
        if key in dataset.golds:
            golds[pair_id] = GoldView(*dataset.golds[key])
    return Texts(tasks, personas, golds, None)


def _throughput(summary: Mapping[str, Any]) -> Throughput:
    rollout = summary.get("rollout") or {}
    train = summary.get("train") or {}
    push = summary.get("push") or {}
    return Throughput(
        num_dialogues=count_of(rollout.get("num_dialogues")),
        generated_tokens=count_of(rollout.get("generated_tokens")),
        generated_tokens_per_s=number_of(rollout.get("generated_tokens_per_s")),
        train_examples=count_of(train.get("num_examples")),
        train_steps=count_of(train.get("num_steps")),
        train_tokens_per_s=number_of(train.get("tokens_per_s")),
        push_seconds=number_of(push.get("seconds")),
        num_engines=count_of(push.get("num_engines")),
        peak_rss_gb=number_of(summary.get("peak_rss_gb")),
    )


def _drops(summary: Mapping[str, Any], run_dir: Path) -> Drops:
    """Those of the run, and those of every `stargate eval` of it, by reason and place."""
    counts = _counts(summary.get("dropped"))
    examples = {
        reason: tuple(map(str, texts))
        for reason, texts in (summary.get("dropped_examples") or {}).items()
    }
    for folder in (run_dir, *sorted((run_dir / "evaluations").glob("*"))):
        where = "stargate eval" if folder == run_dir else f"evaluation {folder.name}"
        evaluation = read_json(folder / EVALUATION_DROPS) or {}
        with reading(folder / EVALUATION_DROPS):
            for reason, count in _counts(evaluation.get("dropped")).items():
                counts[f"{reason} ({where})"] = count
                texts = evaluation["examples"][reason]
                examples[f"{reason} ({where})"] = tuple(map(str, texts))
    return Drops(run=counts, data=_counts(summary.get("data_dropped")), examples=examples)


def _counts(values: Mapping[str, Any] | None) -> dict[str, int]:
    return {str(reason): count_of(number) or 0 for reason, number in (values or {}).items()}
