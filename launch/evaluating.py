"""Checkpoints of one run directory, evaluated with running actors; eval.json.

for each checkpoint: (weights are in the engines) -> evaluate -> tables
then, if a judge was asked for: m_0 responds to every checkpoint's dialogues -> the judge
tables -> eval.json
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stargate.config.run import FactsGrounding, RunConfig
from stargate.evaluation.checkpoint import Evaluation, evaluate
from stargate.evaluation.controls import FIXED, ControlScore, control_from_row
from stargate.evaluation.measures import About, RoleplayerAbout, write_evaluation
from stargate.evaluation.playing import scope_of
from stargate.evaluation.responding import respond_to_all
from stargate.launch.judge import judge_checkpoints, judge_name
from stargate.launch.setup import Prepared
from stargate.pair_steps import Roles, RunContext
from stargate.records.schemas import dialogue_from_row
from stargate.records.store import RunStore
from stargate.types import Dialogue


class Evaluator:
    """Evaluates the checkpoints of one run directory (or of RUN/evaluations/NAME)."""

    def __init__(self, prepared: Prepared, config: RunConfig, trained: RunConfig) -> None:
        """`trained` is the config of the training run: its Roleplayer may be another one."""
        self._prepared = prepared
        self._config = config
        self._trained = trained
        self._fixed: Sequence[ControlScore] = ()

    async def checkpoint(self, version: int, roles: Roles, context: RunContext) -> Evaluation:
        """Evaluates m_`version`, whose weights the Questioner's engines hold."""
        pairs = self._prepared.test_pairs
        evaluation = await evaluate(version, pairs, roles, context, self._fixed)
        self._fixed = evaluation.fixed
        return evaluation

    def recall(self, version: int, store: RunStore) -> None:
        """m_`version` was evaluated before: its controls without a dialogue hold for the others."""
        controls = map(control_from_row, store.read(scope_of(version), "controls"))
        self._fixed = [entry for entry in controls if entry.control in FIXED]

    async def judge(self, versions: Sequence[int], roles: Roles, context: RunContext) -> None:
        """Has m_0 respond to the dialogues of all `versions`, and the judge compare.

        The engines hold m_0 afterwards.
        """
        if self._config.evaluation.judge is None:
            return
        await roles.push(str(self._prepared.base_model_dir), 0)
        pairs = self._prepared.test_pairs.scored
        for version in versions:
            with context.counters.stage("judge.respond"):
                played = played_dialogues(context.store, scope_of(version))
                await respond_to_all(version, 0, pairs, played, roles.generate, context)
                context.store.compact(scope_of(version))
        with context.counters.stage("judge"):
            await judge_checkpoints(versions, self._prepared, roles, context)

    def write(self, store: RunStore) -> dict[str, Any]:
        """Makes eval.json from the tables that there are, and returns it."""
        judge = self._config.evaluation.judge
        return write_evaluation(
            store,
            self._prepared.test_pairs.all,
            self._prepared.chat.count,
            self._about(),
            judge_model=judge_name(self._config),
            thresholds=None if judge is None else judge.thresholds,
        )

    def _about(self) -> About:
        config = self._config
        return About(
            split=config.data.test_split,
            data=config.data.source,
            roleplayer=_about_roleplayer(config),
            trained_with_roleplayer=_about_roleplayer(self._trained),
            num_dialogues=config.evaluation.num_dialogues,
            num_turns=config.evaluation.num_turns,
            seed=config.seed,
        )


def played_dialogues(store: RunStore, scope: str) -> dict[str, list[Dialogue]]:
    """The dialogues of a scope by pair id, by index."""
    played: dict[str, list[Dialogue]] = {}
    for dialogue in map(dialogue_from_row, store.read(scope, "dialogues")):
        played.setdefault(dialogue.pair_id, []).append(dialogue)
    for dialogues in played.values():
        dialogues.sort(key=lambda dialogue: dialogue.index)
    return played


def checkpoint_dirs(run_dir: Path, base_model_dir: Path) -> dict[int, Path]:
    """Folder of every checkpoint of a run by version; m_0 is the base model."""
    found = {0: base_model_dir}
    for folder in (run_dir / "models").glob("m*"):
        number = folder.name.removeprefix("m")
        if folder.is_dir() and number.isdigit():
            found[int(number)] = folder.resolve()
    return dict(sorted(found.items()))


def _about_roleplayer(config: RunConfig) -> RoleplayerAbout:
    grounded = isinstance(config.roleplayer.grounding, FactsGrounding)
    return RoleplayerAbout(
        model=config.roleplayer.model,
        prompts=config.roleplayer.prompts or config.prompts,
        grounding="facts" if grounded else "persona",
    )
