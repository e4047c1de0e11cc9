"""An ablation: its conditions, what their runs share, and how they compare.

    config + condition -> config of the condition's run
    tables that an earlier run made with m_0 -> share -> the next run's directory
    eval.json and the last checkpoint's tables of every run -> ablation_json

Every condition starts from the same m_0 with the same pairs and seeds, so what m_0 does is made
once and copied: its evaluation, and the rollouts and scores of iteration 0. What differs there
comes from the condition alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from stargate.config.files import validated
from stargate.config.roleplayer import FactsGrounding
from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.evaluation.catalog import checkpoints_of
from stargate.evaluation.checkpoint_records import read_checkpoint
from stargate.evaluation.elicitation import CountTokens
from stargate.evaluation.measures import Observations, changes, observe
from stargate.evaluation.playing import scope_of
from stargate.evaluation.statistics import BootstrapConfig
from stargate.records.schemas import Row
from stargate.records.store import RunStore
from stargate.types import Pair

ABLATION_FILE = "ablation.json"
REFERENCE = "own_response"
WEAKER = "weaker_roleplayer"
# The whole group: with `type` alone the keys of the facts grounding would stay and be unknown.
UNGROUNDED = ("roleplayer.grounding={type: persona}",)

# All that m_0 makes before a condition can matter. The verdicts of eval-m0 are the judge's trials.
_SHARED = {
    "eval-m0": ("dialogues", "question_fits", "controls", "responses", "verdicts"),
    "t0": ("dialogues", "scores"),
}
# Rows that are copied at a time: a paper-sized iteration has 125,000 dialogues.
_COPY_ROWS = 2000

Status = Literal["finished", "failed", "interrupted", "not_started"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to train; or, the weaker Roleplayer, to test what another condition trained."""

    name: str
    what: str
    overrides: tuple[str, ...] = ()


CONDITIONS = (
    Condition(
        REFERENCE, "own response as regulariser (the paper)", ("algorithm.target=own_response",)
    ),
    Condition(
        "questions_only",
        "no response: loss on questions only",
        ("algorithm.target=questions_only",),
    ),
    Condition(
        "gold_response", "the gold in the own response's place", ("algorithm.target=gold_response",)
    ),
    Condition(WEAKER, "own_response's checkpoints, tested with a weaker Roleplayer"),
    Condition(
        "contrastive",
        "dialogues chosen by gold minus other personas' golds",
        ("algorithm.target=own_response", "algorithm.selection=contrastive"),
    ),
    Condition(
        "random",
        "dialogues chosen at random",
        ("algorithm.target=own_response", "algorithm.selection=random"),
    ),
)
PAPER_CONDITIONS = (REFERENCE, "questions_only", "gold_response", WEAKER)


def conditions_of(names: Iterable[str]) -> tuple[Condition, ...]:
    """The named conditions, the reference first. Raises ConfigError for names that are none."""
    wanted = list(names)
    known = [condition.name for condition in CONDITIONS]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--conditions: {name!r} is not one of {', '.join(known)}")
    if WEAKER in wanted and REFERENCE not in wanted:
        raise ConfigError(f"--conditions: {WEAKER} tests the checkpoints of {REFERENCE}: name both")
    return tuple(condition for condition in CONDITIONS if condition.name in wanted)


def condition_config(config: RunConfig, name: str, overrides: Sequence[str]) -> RunConfig:
    """The config of a condition: the ablation's with the overrides. Raises ConfigError."""
    tree = config.model_dump(mode="json")
    return validated(RunConfig, Path(f"condition {name}"), tree, overrides)


def training_configs(config: RunConfig, conditions: Iterable[Condition]) -> dict[str, RunConfig]:
    """Configs by name of the conditions that are trained, which must all differ.

    Raises ConfigError: two equal runs would be compared as if they were two conditions.
    """
    found: dict[str, RunConfig] = {}
    for condition in conditions:
        if condition.name == WEAKER:
            continue
        made = condition_config(config, condition.name, condition.overrides)
        for name, other in found.items():
            if made == other:
                raise ConfigError(
                    f"{condition.name} and {name} are the same with this config "
                    f"(algorithm.selection={config.algorithm.label}): leave one out, or "
                    "set algorithm.selection=gold"
                )
        found[condition.name] = made
    return found


def weak_roleplayer(config: RunConfig, given: Sequence[str]) -> tuple[str, ...]:
    """The overrides of the weaker Roleplayer: those given, else the grounding taken away.

    Raises ConfigError if there is no grounding to take away, or if `given` are not about the
    Roleplayer or change nothing.
    """
    if not given:
        if isinstance(config.roleplayer.grounding, FactsGrounding):
            return UNGROUNDED
        raise ConfigError(
            f"{WEAKER}: the Roleplayer in training is not grounded in facts, so say what a weaker "
            "one is, e.g. --weak-roleplayer roleplayer.model=SMALLER; or leave the condition out "
            "(--conditions)"
        )
    for override in given:
        if not override.startswith("roleplayer."):
            raise ConfigError(
                f"--weak-roleplayer: expected roleplayer.KEY=VALUE, got {override!r}: all else "
                f"stays as it is for {REFERENCE}"
            )
    if condition_config(config, WEAKER, given).roleplayer == config.roleplayer:
        raise ConfigError(
            f"--weak-roleplayer {' '.join(given)}: that is the Roleplayer of training"
        )
    return tuple(given)


async def share(
    sources: Sequence[RunStore], target: RunStore, selection: str
) -> dict[str, dict[str, Any]]:
    """Copies what m_0 made into a run directory that is about to start.

    Each table comes from the first source that has it. Scores are copied where they hold what the
    `selection` type needs. Returns {"t0/scores": {"from": folder's name, "rows": number}}.
    """
    copied = {}
    for scope, tables in _SHARED.items():
        for table in tables:
            for source in sources:
                every = source.read(scope, table)
                rows = (row for row in every if _is_usable(table, row, selection))
                if num_rows := await _append(target, scope, table, rows):
                    copied[f"{scope}/{table}"] = {"from": source.root.name, "rows": num_rows}
                    break
    return copied


async def _append(target: RunStore, scope: str, table: str, rows: Iterable[Row]) -> int:
    """Appends rows some at a time; returns their number."""
    num_rows = 0
    remaining = iter(rows)
    while batch := list(islice(remaining, _COPY_ROWS)):
        await target.append(scope, table, batch)
        num_rows += len(batch)
    return num_rows


def _is_usable(table: str, row: Row, selection: str) -> bool:
    """A score without other personas' golds is no score for contrastive selection."""
    return table != "scores" or selection != "contrastive" or row["other_gold_logprob"] is not None


@dataclass(frozen=True)
class Outcome:
    """What became of one condition.

    `evaluation` is its eval.json; `observed` are the observations of its last checkpoint. Both are
    None where nothing was evaluated.
    """

    condition: Condition
    folder: str  # relative to the ablation's
    status: Status
    problem: str | None = None
    seconds: float | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    observed: Observations | None = None

    @property
    def checkpoint(self) -> str | None:
        """The last checkpoint that was evaluated."""
        return None if self.evaluation is None else checkpoints_of(self.evaluation)[-1]

    def to_json(self) -> dict[str, Any]:
        """Its part of ablation.json, without the differences."""
        evaluation: Mapping[str, Any] = self.evaluation or {}
        judge = evaluation.get("judge")
        return {
            "what": self.condition.what,
            "overrides": list(self.condition.overrides),
            "folder": self.folder,
            "status": self.status,
            "problem": self.problem,
            "seconds": self.seconds,
            "shared": dict(self.shared),
            "checkpoint": self.checkpoint,
            "measures": evaluation.get(self.checkpoint or "", {}),
            "changes": evaluation.get("changes", {}).get(self.checkpoint, {}),
        } | ({"judge": judge} if judge else {})


def observe_last(
    store: RunStore,
    evaluation: Mapping[str, Any],
    pairs: Mapping[str, Pair],
    count_tokens: CountTokens,
) -> Observations:
    """The observations of the last checkpoint of an eval.json, from the tables beside it.

    Raises DataError.
    """
    version = int(checkpoints_of(evaluation)[-1][1:])
    records = read_checkpoint(store, scope_of(version), pairs)
    user = evaluation["about"]["roleplayer"]
    return observe(
        records,
        count_tokens,
        grounded=user["grounding"] == "facts",
        told_already=user.get("told_already"),
    )


def ablation_json(
    outcomes: Sequence[Outcome],
    about: Mapping[str, Any],
    config: BootstrapConfig | None = None,
) -> dict[str, Any]:
    """The whole of ablation.json.

    conditions.NAME.{what, overrides, folder, status, problem, seconds, shared}
        .checkpoint, .measures      its last checkpoint, as in its eval.json
        .changes                    that checkpoint minus m_0, paired, as in its eval.json
        .differences                that checkpoint minus the reference's, paired over the pairs
                                    that both have; only between finished conditions
        .judge                      whether its win rates are to be believed
    about.reference                 own_response, or the first where that was not asked for
    """
    names = [outcome.condition.name for outcome in outcomes]
    reference = REFERENCE if REFERENCE in names else names[0]
    base = outcomes[names.index(reference)]
    return {
        "about": {**about, "reference": reference},
        "conditions": {
            outcome.condition.name: outcome.to_json()
            | ({} if outcome is base else {"differences": _differences(base, outcome, config)})
            for outcome in outcomes
        },
    }


def _differences(base: Outcome, outcome: Outcome, config: BootstrapConfig | None) -> dict[str, Any]:
    """Empty unless both have got to the same checkpoint."""
    if base.status != "finished" or outcome.status != "finished":
        return {}
    if base.observed is None or outcome.observed is None or base.checkpoint != outcome.checkpoint:
        return {}
    found = changes(base.observed, outcome.observed, config)
    return {name: asdict(difference) for name, difference in found.items()}
