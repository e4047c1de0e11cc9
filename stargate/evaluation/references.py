"""Reference rows: dialogues that no policy learned, to be beaten or to be reached.

    none          the opening alone
    constant      the same K questions for everybody: those that together bring out most of what the
                  golds of the train splits use, out of the stock questions and those that the
                  checkpoints ask most
    own_frequent  the K questions that the last checkpoint asks most, asked of everybody
    random_facts  K facts of the person, told one by one
    gold_facts    K of the facts that the gold uses, told: nobody can ask for better
    per_task      the K questions that are best for each task, chosen on the test golds themselves:
                  the most that asking by the task alone can bring

One dialogue per test pair. Questions are asked of the run's own Roleplayer; golds are scored for
the contrast, as after a checkpoint's dialogues. A row depends on the data, m_0, the Roleplayer and
what is asked, on nothing that is trained: it is kept in the user's cache folder, and costs nothing
the second time.

    RUN/references/<row>/{row.json, records/{dialogues,controls}.parquet}
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from stargate.config.roleplayer import ApiRoleplayerConfig
from stargate.config.run import RunConfig
from stargate.errors import RecordDropped
from stargate.evaluation.controls import score_contrasts
from stargate.evaluation.question_lists import (
    answer_table,
    best_list,
    most_asked,
    stock_questions,
)
from stargate.protocols import MatchFacts
from stargate.records.files import read_json, whole_folder, write_text
from stargate.records.model_folder import fingerprint
from stargate.records.schemas import dialogue_row
from stargate.records.store import RunStore
from stargate.rollout.dialogue import play
from stargate.rollout.tasks import run_bounded
from stargate.run_context import Roles, RunContext
from stargate.seeds import derive_seed
from stargate.text.prompts import load_prompts
from stargate.types import Dialogue, DialoguePlan, Generation, Pair, StopReason, Turn

# All rows, from the least that can be had to the most.
ROWS = ("none", "own_frequent", "random_facts", "constant", "per_task", "gold_facts")
# What is shown of a row, and the heads of the columns: short, or a printed page is too narrow.
COLUMNS = {
    "facts_per_dialogue": "facts per dialogue",
    "fact_coverage": "gold's facts",
    "contrast": "contrast, nats",
}
FOLDER, RECORDS = "references", "records"
_ROW_FILE = "row.json"
# Another form of the records makes those in the cache useless.
_FORM = 1
# Of the checkpoints' own questions so many may stand in a list, beside the stock questions.
_MOST_ASKED = 60
# What a told fact answers.
_TELL_ME = "What should I know about you?"


@dataclass(frozen=True)
class Row:
    """What a row plays, by pair id: questions to ask, or facts (indices) to tell. A pair that is in
    neither is not in the row.
    """

    name: str
    questions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    facts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def shared_questions(self) -> tuple[str, ...]:
        """The questions that everybody is asked; none if they differ."""
        lists = set(self.questions.values())
        return lists.pop() if len(lists) == 1 else ()


@dataclass(frozen=True)
class References:
    """Makes the rows of one evaluation.

    `train_pairs` are those that a constant list is chosen on. `model_dirs`: m_0, and the
    Roleplayer's model if it has one; `cache`: where finished rows are kept.
    """

    pairs: Sequence[Pair]
    train_pairs: Sequence[Pair]
    model_dirs: Sequence[Path]
    cache: Path

    async def make(
        self, asked: Mapping[int, Sequence[Dialogue]], roles: Roles, context: RunContext
    ) -> None:
        """All rows; they are in RUN/references when this returns. `asked`: the checkpoints' own
        dialogues by version. A row that is there already is not made again.
        """
        config, root = context.config, context.store.root / FOLDER
        num_turns = max(config.evaluation.turns)
        rows, notes = await plan_rows(
            self.pairs, self.train_pairs, asked, num_turns, roles.match, config.seed
        )
        for note in notes:
            context.progress.say(f"reference rows: {note}")
        models = [await asyncio.to_thread(fingerprint, folder) for folder in self.model_dirs]
        for row in rows:
            digest = _digest(row, self.pairs, config, models)
            about = {"digest": digest, "questions": list(row.shared_questions)}
            if _is_made(root / row.name, about):
                continue
            kept = self.cache / digest
            source = kept if _is_made(kept, about) else None
            with whole_folder(root / row.name) as folder:
                if source is not None:
                    shutil.copytree(source, folder, dirs_exist_ok=True)
                    continue
                complete = await self._make(row, folder, roles, context)
                write_text(folder / _ROW_FILE, json.dumps(about, indent=2) + "\n")
            if complete:
                _keep(root / row.name, kept, context)

    async def _make(self, row: Row, folder: Path, roles: Roles, context: RunContext) -> bool:
        """Plays and scores a row. Whether nothing was dropped."""
        here = replace(context, store=RunStore(folder))
        plans = [plan_row(row, pair, context.config) for pair in _pairs_of(row, self.pairs)]
        played: dict[str, list[Dialogue]] = {plan.pair.id: [] for plan in plans}
        before = sum(context.counters.dropped.values())
        with context.progress.stage(
            f"reference {row.name} rollout", len(plans), "dialogues"
        ) as stage:
            stage.begin()

            async def one(plan: DialoguePlan) -> None:
                try:
                    dialogue = await play_row(row, plan, roles, context)
                except RecordDropped as problem:
                    context.counters.drop(problem)
                else:
                    await here.store.append(
                        RECORDS, "dialogues", [dialogue_row(plan.pair, dialogue)]
                    )
                    played[plan.pair.id].append(dialogue)
                stage.advance()

            await run_bounded(plans, context.num_concurrent, one)
        pairs = [pair for pair in self.pairs if pair.id in played]
        await score_contrasts(
            RECORDS, f"reference {row.name} score", pairs, played, roles.score, here
        )
        here.store.compact(RECORDS)
        return sum(context.counters.dropped.values()) == before


async def plan_rows(
    pairs: Sequence[Pair],
    train_pairs: Sequence[Pair],
    asked: Mapping[int, Sequence[Dialogue]],
    num_turns: int,
    match: MatchFacts | None,
    seed: int,
) -> tuple[list[Row], list[str]]:
    """The rows that can be had, and why the others can't."""
    rows = [Row("none", facts={pair.id: () for pair in pairs})]
    last = max(asked)
    if own := most_asked(asked[last], num_turns):
        rows.append(Row("own_frequent", {pair.id: tuple(own) for pair in pairs}))
    known = [pair for pair in pairs if pair.gold_facts]
    if match is None:
        return rows, ["facts and lists need roleplayer.grounding.type=facts"]
    if not known:
        return rows, ["facts and lists need golds that name the facts they use (gold_facts)"]
    rows += [
        Row("random_facts", facts={pair.id: _drawn(pair, num_turns, seed) for pair in pairs}),
        Row("gold_facts", facts={pair.id: pair.gold_facts[:num_turns] for pair in known}),
    ]
    everything = [dialogue for dialogues in asked.values() for dialogue in dialogues]
    pool = [*stock_questions(), *most_asked(everything, _MOST_ASKED)]
    table = await answer_table(pool, _personas(known), match)
    best = {
        task: tuple(best_list([p for p in known if p.task.id == task], table, num_turns))
        for task in dict.fromkeys(pair.task.id for pair in known)
    }
    of_task = {pair.id: best[pair.task.id] for pair in pairs if pair.task.id in best}
    rows.append(Row("per_task", of_task))
    learnable = [pair for pair in train_pairs if pair.gold_facts]
    if not learnable:
        return rows, ["a constant list needs a train split with golds that name their facts"]
    table = await answer_table(pool, _personas(learnable), match)
    constant = tuple(best_list(learnable, table, num_turns))
    rows.append(Row("constant", {pair.id: constant for pair in pairs}))
    return rows, []


def plan_row(row: Row, pair: Pair, config: RunConfig) -> DialoguePlan:
    """What is drawn for a pair's one dialogue in a row."""
    return DialoguePlan(
        dialogue_id=f"{row.name}/{pair.id}/0",
        pair=pair,
        index=0,
        num_turns=len(row.questions.get(pair.id, row.facts.get(pair.id, ()))),
        seed=derive_seed(config.seed, FOLDER, row.name, pair.id),
    )


async def play_row(row: Row, plan: DialoguePlan, roles: Roles, context: RunContext) -> Dialogue:
    """A pair's dialogue in a row. Raises RecordDropped."""
    pair = plan.pair
    questions = row.questions.get(pair.id)
    if questions is None:
        told = tuple(_told(pair, index) for index in row.facts[pair.id])
        return Dialogue(plan.dialogue_id, pair.id, 0, plan.num_turns, plan.seed, 0, told)

    async def ask(
        plan: DialoguePlan, turns: Sequence[Turn], session: str | None = None
    ) -> Generation:
        return Generation(questions[len(turns)], (), StopReason.FIXED, 0, 0)

    return await play(plan, ask, roles.roleplay, context.turn_watch)


def read_rows(root: Path) -> dict[str, dict[str, Any]]:
    """What row.json says of each finished row of an evaluation, by name."""
    files = sorted((root / FOLDER).glob(f"*/{_ROW_FILE}"))
    return {file.parent.name: read_json(file) or {} for file in files}


def _told(pair: Pair, index: int) -> Turn:
    fixed = StopReason.FIXED
    return Turn(_TELL_ME, (), fixed, pair.persona.facts[index], (), fixed, (index,))


def _drawn(pair: Pair, num_facts: int, seed: int) -> tuple[int, ...]:
    facts = range(len(pair.persona.facts))
    random = Random(derive_seed(seed, "random_facts", pair.id))
    return tuple(random.sample(facts, min(num_facts, len(facts))))


def _personas(pairs: Sequence[Pair]) -> list[Any]:
    return list({pair.persona.id: pair.persona for pair in pairs}.values())


def _pairs_of(row: Row, pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.id in row.questions or pair.id in row.facts]


def _digest(row: Row, pairs: Sequence[Pair], config: RunConfig, models: Sequence[str]) -> str:
    """Of all that a row's records depend on."""
    roleplayer = config.roleplayer.model_dump(mode="json", exclude={"engine"})
    if isinstance(config.roleplayer, ApiRoleplayerConfig):
        for key in ("limits", "retry", "cost", "api_key_env"):
            roleplayer["oracle"].pop(key)
    parts = {
        "form": _FORM,
        "pairs": [
            [repr(pair.task), repr(pair.persona), pair.gold, pair.gold_facts] for pair in pairs
        ],
        "row": [row.name, dict(row.questions), dict(row.facts)],
        "roleplayer": roleplayer if row.questions else None,
        "prompts": [
            load_prompts(name).model_dump(mode="json")
            for name in (config.prompts, config.roleplayer.prompts or config.prompts)
        ],
        "num_other_golds": config.evaluation.num_other_golds,
        "scorer": config.scorer.dtype,
        "seed": config.seed,
        "models": list(models if row.questions else models[:1]),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_made(folder: Path, about: Mapping[str, Any]) -> bool:
    return (folder / _ROW_FILE).is_file() and read_json(folder / _ROW_FILE) == about


def _keep(made: Path, kept: Path, context: RunContext) -> None:
    """Puts a copy of a finished row into the cache; where that can't be, says so."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(kept) as folder:
            shutil.copytree(made, folder, dirs_exist_ok=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        context.progress.say(f"note: {kept.parent}: {reason}: this row is made anew next time")
