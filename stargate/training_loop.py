"""A run, top to bottom.

    evaluate m_0
    T times:  play, score, select, respond    (pair_steps.py: every pair by itself)
              train m_{t+1} -> push it into the Questioner's engines -> evaluate m_{t+1}
              stop early, if held-out pairs say so
    references, judge: what all checkpoints are held against

The loop waits for a step to end before the next begins; within the first, nothing waits for another
pair. It knows the actors by stargate/protocols.py only.

Going on with a run is the same loop: every step first looks whether it is recorded, and is skipped
if it is. Weights are pushed when a step needs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from stargate.errors import DataError
from stargate.evaluation.evaluator import Evaluator, plain_means
from stargate.evaluation.playing import scope_of
from stargate.evaluation.validation import Validation
from stargate.monitoring.journal import RunJournal
from stargate.pair_steps import play_pairs
from stargate.records.history import RunHistory, train_file
from stargate.records.training_checkpoints import remove_training, training_folder
from stargate.run_context import Roles, RunContext
from stargate.types import IterationResult, Pair, PushResult, TrainingExample, TrainResult


class TrainingLoop:
    """One process's work on a run. `train_pairs(t)` are the pairs of iteration t.

    `held` is the version that the Questioner's engines hold; None if that is not known.
    """

    def __init__(
        self,
        roles: Roles,
        context: RunContext,
        train_pairs: Callable[[int], Sequence[Pair]],
        evaluator: Evaluator,
        journal: RunJournal,
        base_model_dir: Path,
        past: RunHistory,
        held: int | None = 0,
        validation: Validation | None = None,
    ) -> None:
        self._roles = roles
        self._context = context
        self._store = context.store
        self._train_pairs = train_pairs
        self._evaluator = evaluator
        self._journal = journal
        self._base_model_dir = base_model_dir
        self._past = past
        self._held = held
        self._validation = validation

    async def run(self) -> None:
        """Everything that is not recorded yet. Raises StargateError."""
        num_iterations = self._context.config.schedule.num_iterations
        await self._evaluate(0)
        last = 0
        while await self._goes_on(last) and last < num_iterations:
            iteration, last = last, last + 1
            await self._play(iteration)
            trained = await self._train(iteration)
            if trained is not None:
                pushed = await self._push(iteration, trained)
                self._record(iteration, trained, pushed)
            await self._evaluate(last)
        await self._compare(range(last + 1))

    async def _play(self, iteration: int) -> None:
        """The dialogues of iteration t with m_t, and what is learned from them."""
        scope = f"t{iteration}"
        if iteration < self._past.num_iterations and not self._store.damaged(scope):
            return
        await self._load(iteration)
        await play_pairs(scope, self._train_pairs(iteration), self._roles, self._context)

    async def _train(self, iteration: int) -> TrainResult | None:
        """m_{t+1}. None if it is there, but what its training did is not on record."""
        version = iteration + 1
        if iteration < self._past.num_iterations:
            self._remove_checkpoints(version)  # killed just before it could do so
            known = self._past.training(iteration)
            if known is None:
                self._say(f"iteration {iteration}: what its training did is not on record")
            return known
        num_pairs = len(self._train_pairs(iteration))
        examples = read_examples(iteration, num_pairs, self._context)
        with self._context.counters.stage("train"):
            trained = await self._roles.train(examples, version)
        self._store.write_json(train_file(f"t{iteration}"), asdict(trained))
        self._remove_checkpoints(version)
        return trained

    async def _push(self, iteration: int, trained: TrainResult) -> PushResult:
        known = self._past.results.get(iteration)
        if known is not None:
            return known.pushed
        pushed = await self._load(iteration + 1, trained.model_dir)
        assert pushed is not None  # what is not recorded yet was not pushed by this process
        return pushed

    def _record(self, iteration: int, trained: TrainResult, pushed: PushResult) -> None:
        known = iteration in self._past.results
        self._journal.iteration(iteration, IterationResult(trained, pushed), known=known)

    async def _evaluate(self, version: int) -> None:
        if not self._context.config.evaluation.enabled:
            return
        known = self._past.evaluations.get(version)
        if known is not None and not self._store.damaged(scope_of(version)):
            self._journal.evaluation(version, known, known=True)
            return
        await self._load(version)
        await self._evaluator.checkpoint(version, self._roles, self._context)
        measured = self._evaluator.write(self._store)[f"m{version}"]
        self._journal.evaluation(version, plain_means(measured), known=known is not None)

    async def _goes_on(self, version: int) -> bool:
        """Whether the held-out pairs speak for training on from m_`version`."""
        validation = self._validation
        if validation is None:
            return True
        if not validation.is_known(version):
            await self._load(version)
            await validation.checkpoint(version, self._roles)
        found = validation.judgement(version)
        self._say(str(found))
        event = {"event": "validation", **asdict(found)}
        if event not in self._store.read_metrics():  # it may be there from before a kill
            self._store.append_metrics(event)
        return found.stop is None

    async def _compare(self, versions: Sequence[int]) -> None:
        """With dialogues that nobody learned, and by a judge."""
        if self._context.config.evaluation.enabled:
            await self._evaluator.references(versions, self._roles, self._context)
            await self._evaluator.judge(versions, self._roles, self._context)
            self._evaluator.write(self._store)

    async def _load(self, version: int, model_dir: str = "") -> PushResult | None:
        """Puts m_`version` into the Questioner's engines; None if they hold it already."""
        if self._held == version:
            return None
        if not model_dir:
            of_run = self._store.root.resolve() / "models" / f"m{version}"
            model_dir = str(of_run if version else self._base_model_dir)
        with self._context.counters.stage("push"):
            pushed = await self._roles.push(model_dir, version)
        self._held = version
        return pushed

    def _remove_checkpoints(self, version: int) -> None:
        """Those within a training whose result is on record."""
        folder = training_folder(self._store.root, version)
        try:
            remove_training(folder)
        except OSError as error:
            self._say(f"{folder}: can't be removed: {error.strerror}")

    def _say(self, text: str) -> None:
        self._context.progress.say(text)


def read_examples(iteration: int, num_pairs: int, context: RunContext) -> list[TrainingExample]:
    """What m_{t+1} learns from, in an order that no timing changes. Raises DataError if empty."""
    scopes = [iteration]
    if context.config.trainer.examples == "all":
        scopes += range(iteration)
    examples = [
        example
        for number in scopes
        for example in context.store.records(f"t{number}", "examples", TrainingExample)
    ]
    examples.sort(key=lambda example: example.pair_id)
    if not examples:
        raise DataError(
            f"iteration {iteration}: no training example is left of {num_pairs} pairs; "
            f"dropped: {dict(context.counters.dropped)}"
        )
    return examples


async def run_iteration(
    number: int, pairs: Sequence[Pair], roles: Roles, context: RunContext
) -> IterationResult:
    """Iteration t = `number` alone, without a record of it: what benchmarks measure."""
    await play_pairs(f"t{number}", pairs, roles, context)
    examples = read_examples(number, len(pairs), context)
    with context.counters.stage("train"):
        trained = await roles.train(examples, number + 1)
    with context.counters.stage("push"):
        pushed = await roles.push(trained.model_dir, number + 1)
    return IterationResult(trained, pushed)
