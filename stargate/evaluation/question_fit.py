"""How much a checkpoint's first questions are made for their tasks, by its own probabilities.

    first questions of m_t -> m_t reads each after its own task and after others
        -> eval-m<t>/question_fits -> observations

question_fit  log m_t(q | its own task) minus the mean of log m_t(q | another task), in nats per
              question: 0 where m_t would ask the same at any task

A log-prob is the sum over all ids that were sampled (thoughts and end token, too), under the
model's own distribution: temperature 1, nothing cut off. The other tasks stand in the same prompt,
under the same name. Later questions are left out: they depend on what was said before.

It is a sample: the first dialogues of NUM_QUESTIONS pairs, those that begin with a question, and
NUM_OTHERS other tasks of the evaluation for each, all that need a question. Pairs and tasks come in
an order drawn by the run's seed, the same for every checkpoint, so changes are paired.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from stargate.errors import RecordDropped
from stargate.evaluation.playing import scope_of
from stargate.evaluation.statistics import Observation
from stargate.protocols import Generate
from stargate.rollout.deadline import session_of
from stargate.rollout.question_text import questions_in
from stargate.rollout.tasks import run_bounded
from stargate.run_context import RunContext
from stargate.seeds import derive_seed
from stargate.types import Dialogue, GenerateRequest, Generation, Pair, Sampling, Task

NUM_QUESTIONS = 64
NUM_OTHERS = 4
_TABLE = "question_fits"


@dataclass(frozen=True, slots=True)
class FitScore:
    """log m_t of a dialogue's first question after the opening with `task_id`, in nats."""

    dialogue_id: str
    pair_id: str
    task_id: str
    logprob: float


async def score_fits(
    version: int,
    pairs: Sequence[Pair],
    played: Mapping[str, Sequence[Dialogue]],
    generate: Generate,
    context: RunContext,
) -> None:
    """The table of m_`version`, whose weights the engines must hold, on disk when this returns.

    What the store has already is not scored again. What can't be scored is dropped and counted.
    """
    scope = scope_of(version)
    done = {(row["dialogue_id"], row["task_id"]) for row in context.store.read(scope, _TABLE)}
    missing = [
        item
        for item in sampled_questions(pairs, played, context.config.seed)
        if (item[1].id, item[2].id) not in done
    ]
    with context.progress.stage(f"{scope} fit", len(missing), "sequences") as stage:
        stage.begin()

        async def one(item: tuple[Pair, Dialogue, Task]) -> None:
            pair, dialogue, task = item
            try:
                read = await _read(pair, dialogue, task, generate, context)
            except RecordDropped as problem:
                context.counters.drop(problem)
                stage.advance()
                return
            if read.prompt_logprobs is None:
                raise ValueError(f"{dialogue.id}: no log-probs of what was read")
            score = FitScore(dialogue.id, pair.id, task.id, sum(read.prompt_logprobs))
            await context.store.append(scope, _TABLE, [asdict(score)])
            stage.advance(tokens=read.num_prompt_tokens)

        await run_bounded(missing, context.num_concurrent, one)


def sampled_questions(
    pairs: Sequence[Pair], played: Mapping[str, Sequence[Dialogue]], seed: int
) -> list[tuple[Pair, Dialogue, Task]]:
    """The dialogues whose first question is scored, each with its own task and then with others;
    none where only one task needs a question.
    """

    def drawn(*names: str) -> int:
        return derive_seed(seed, "question_fit", *names)

    vague = [pair for pair in pairs if pair.task.needs_question]
    tasks = {pair.task.id: pair.task for pair in vague}
    begun = [
        (pair, dialogue)
        for pair in sorted(vague, key=lambda pair: drawn(pair.id))
        for dialogue in played.get(pair.id, ())
        if dialogue.index == 0 and questions_in(dialogue.turns[0].question)
    ]
    found = []
    for pair, dialogue in begun[:NUM_QUESTIONS]:
        order = sorted((drawn(pair.id, task), task) for task in tasks if task != pair.task.id)
        if others := [tasks[task] for _, task in order[:NUM_OTHERS]]:
            found += [(pair, dialogue, task) for task in (pair.task, *others)]
    return found


def observe_fit(
    pairs: Mapping[str, Pair], scores: Iterable[FitScore]
) -> dict[str, list[Observation]]:
    """Observations of question_fit, one per dialogue; empty without scores."""
    of_dialogue: dict[str, list[FitScore]] = defaultdict(list)
    for score in scores:
        of_dialogue[score.dialogue_id].append(score)
    found = []
    for _, entries in sorted(of_dialogue.items()):
        pair = pairs[entries[0].pair_id]
        own = [entry.logprob for entry in entries if entry.task_id == pair.task.id]
        others = [entry.logprob for entry in entries if entry.task_id != pair.task.id]
        if own and others:
            found.append(Observation(pair.task.id, pair.persona.id, own[0] - fmean(others)))
    return {"question_fit": found} if of_dialogue else {}


async def _read(
    pair: Pair, dialogue: Dialogue, task: Task, generate: Generate, context: RunContext
) -> Generation:
    """Has an engine read the first question after the opening with `task`."""
    seen = context.views.questioner(replace(pair, task=task), ())
    asked = dialogue.turns[0].question_ids
    where = f"{dialogue.id} fit {task.id}"

    async def attempt_at(attempt: int) -> Generation:
        session = session_of(where, attempt)
        return await generate(
            GenerateRequest(
                request_id=session,
                session=session,
                prompt_ids=(*context.chat.prompt_ids(seen), *asked),
                sampling=Sampling(0.0, 1.0, 1, 0, num_prompt_logprobs=len(asked)),
            )
        )

    return await context.turn_watch.run(attempt_at, where)
