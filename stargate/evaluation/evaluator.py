"""Checkpoints of one run directory, evaluated with running actors; eval.json.

    m_t in the Questioner's engines -> dialogues -> controls -> final responses (for a judge)
    then, if a judge was asked for: m_0 responds to every checkpoint's dialogues -> the judge
    tables -> eval.json

All tables of m_t lie in the scope `eval-m<t>`; measures are made from them (measures.py).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stargate.config.roleplayer import FactsGrounding
from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.evaluation.controls import score_all
from stargate.evaluation.judging import JudgeEngine, judge_checkpoints, judge_name
from stargate.evaluation.measures import About, RoleplayerAbout, write_evaluation
from stargate.evaluation.playing import EvaluationPairs, play_all, scope_of
from stargate.evaluation.question_fit import score_fits
from stargate.evaluation.references import References
from stargate.evaluation.responding import respond_to_all
from stargate.records.files import user_cache
from stargate.records.schemas import dialogue_from_row
from stargate.records.store import RunStore
from stargate.run_context import Roles, RunContext
from stargate.text.chat import ChatFormat
from stargate.text.prompts import load_prompts
from stargate.types import Dialogue, Pair

# What a run logs of a checkpoint.
_LOGGED = (
    *("gold_logprob", "shuffled", "matched_minus_shuffled", "no_dialogue", "persona_given"),
    *("question_rate", "facts_per_dialogue"),
)


@dataclass
class Evaluator:
    """Evaluates the checkpoints of one run directory (or of RUN/evaluations/NAME).

    `trained` is the config of the training run: its Roleplayer may be another one. `voice_chat` and
    `voice_dir` are the Roleplayer's model, which may be asked to judge; None: it is an API.
    """

    config: RunConfig
    trained: RunConfig
    pairs: EvaluationPairs
    base_model_dir: Path
    chat: ChatFormat
    voice_chat: ChatFormat | None
    voice_dir: Path | None
    train_pairs: Sequence[Pair] = ()

    async def checkpoint(self, version: int, roles: Roles, context: RunContext) -> None:
        """Evaluates m_`version`, whose weights the Questioner's engines hold."""
        await evaluate(version, self.pairs, roles, context)

    async def references(self, versions: Sequence[int], roles: Roles, context: RunContext) -> None:
        """What the dialogues of `versions` are held against (references.py)."""
        if not self.config.evaluation.references:
            return
        asked = {
            version: [dialogue_from_row(row) for row in context.store.read(scope, "dialogues")]
            for version, scope in ((version, scope_of(version)) for version in versions)
        }
        folders = [self.base_model_dir, *([self.voice_dir] if self.voice_dir else [])]
        cache = user_cache() / "references"
        with context.counters.stage("references"):
            maker = References(self.pairs.scored, self.train_pairs, folders, cache)
            await maker.make(asked, roles, context)

    async def judge(self, versions: Sequence[int], roles: Roles, context: RunContext) -> None:
        """Has m_0 respond to the dialogues of all `versions`, and the judge compare.

        The engines hold m_0 afterwards.
        """
        if self.config.evaluation.judge is None:
            return
        await roles.push(str(self.base_model_dir), 0)
        pairs = self.pairs.scored
        for version in versions:
            with context.counters.stage("judge.respond"):
                played = played_dialogues(context.store, scope_of(version))
                await respond_to_all(version, 0, pairs, played, roles.generate, context)
                context.store.compact(scope_of(version))
        with context.counters.stage("judge"):
            engine = None
            if roles.voice is not None and self.voice_chat is not None:
                max_model_len = self.config.engines["roleplayer"].max_model_len
                engine = JudgeEngine(
                    roles.voice, self.voice_chat, max_model_len, str(self.voice_dir)
                )
            await judge_checkpoints(versions, pairs, engine, context)

    def write(self, store: RunStore) -> dict[str, Any]:
        """Makes eval.json from the tables that there are, and returns it."""
        config, judge = self.config, self.config.evaluation.judge
        about = About(
            split=config.data.test_split,
            data=config.data.source,
            roleplayer=_about_roleplayer(config),
            trained_with_roleplayer=_about_roleplayer(self.trained),
            num_dialogues=config.evaluation.num_dialogues,
            turns=config.evaluation.turns,
            seed=config.seed,
        )
        return write_evaluation(
            store,
            self.pairs.all,
            self.chat.count,
            about,
            judge_model=judge_name(self.config),
            thresholds=None if judge is None else judge.thresholds,
        )


async def evaluate(version: int, pairs: EvaluationPairs, roles: Roles, context: RunContext) -> None:
    """Plays and scores the test pairs with m_`version`, and responds where a judge will ask."""
    stage = context.counters.stage
    with stage(f"eval_m{version}.rollout"):
        played = await play_all(version, pairs, roles, context)
    with stage(f"eval_m{version}.fit"):
        await score_fits(version, pairs.scored, played, roles.generate, context)
    with stage(f"eval_m{version}.score"):
        await score_all(version, pairs.scored, played, roles.score, context)
    if context.config.evaluation.judge is not None:
        with stage(f"eval_m{version}.respond"):
            await respond_to_all(version, version, pairs.scored, played, roles.generate, context)
    context.store.compact(scope_of(version))


def plain_means(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What a run logs of a checkpoint, from its part of eval.json: means (nats) with their plain
    standard errors `..._se` and numbers `..._n`.
    """
    nothing = {"mean": None, "standard_error": None, "n": 0}
    found = {name: measured.get(name, nothing) for name in _LOGGED}
    means: dict[str, Any] = {
        "num_dialogues": found["facts_per_dialogue"]["n"],
        "num_turns": found["question_rate"]["n"],
    }
    for name, one in found.items():
        means |= {name: one["mean"], f"{name}_se": one["standard_error"], f"{name}_n": one["n"]}
    return means


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
    return {0: base_model_dir, **trained_folders(run_dir)}


def trained_folders(run_dir: Path) -> dict[int, Path]:
    """Folder of every m_t that a run has trained, by version."""
    found = {}
    for folder in (run_dir / "models").glob("m*"):
        number = folder.name.removeprefix("m")
        if folder.is_dir() and number.isdigit():
            found[int(number)] = folder.resolve()
    return dict(sorted(found.items()))


def version_named(name: str, known: Collection[int], what: str) -> int:
    """t of "m<t>", or of the number alone. Raises ConfigError, which begins with `what`, for one
    that is not `known`.
    """
    number = name.strip().removeprefix("m")
    if not number.isdecimal() or int(number) not in known:
        names = ", ".join(f"m{version}" for version in known)
        raise ConfigError(f"{what} {name.strip()!r} is not one of {names}")
    return int(number)


def _about_roleplayer(config: RunConfig) -> RoleplayerAbout:
    grounded = isinstance(config.roleplayer.grounding, FactsGrounding)
    prompts = config.roleplayer.prompts or config.prompts
    return RoleplayerAbout(
        model=config.roleplayer.model,
        prompts=prompts,
        grounding="facts" if grounded else "persona",
        style=config.roleplayer.style,
        patience=config.roleplayer.patience,
        told_already=load_prompts(prompts).told_already_text if grounded else None,
    )
