"""The judge of an evaluation: comparisons from the tables of responses, verdicts into the tables.

m_0's responses -> the judge's trials; m_t's and m_0's -> own, fixed -> verdicts on disk
"""

from collections.abc import Sequence
from functools import partial

from stargate.config.judge import ApiBackend
from stargate.config.run import RunConfig
from stargate.evaluation.comparisons import (
    Comparison,
    Response,
    choose_pairs,
    trial_comparisons,
    win_rate_comparisons,
)
from stargate.evaluation.judging import Judge, JudgeEngine, judge_all, open_judge
from stargate.evaluation.playing import scope_of
from stargate.run_context import RunContext
from stargate.types import Pair


async def judge_checkpoints(
    versions: Sequence[int],
    pairs: Sequence[Pair],
    engine: JudgeEngine | None,
    context: RunContext,
) -> None:
    """Judges the responses of all `versions`, and tries the judge. Goes on where it was stopped."""
    config = context.config.evaluation.judge
    if config is None:
        return
    chosen = choose_pairs(pairs, config.max_pairs, context.config.seed)
    responses = {version: _responses(version, context) for version in {0, *versions}}
    async with open_judge(config, context.store.root / "judge.sqlite", engine) as judge:
        for version in versions:
            if version == 0:
                comparisons = trial_comparisons(
                    chosen,
                    pairs,
                    responses[0],
                    judge.prompts.praise,
                    context.chat.count,
                    context.counters.drop,
                )
            else:
                comparisons = win_rate_comparisons(
                    version, chosen, responses[version], responses[0], context.counters.drop
                )
            await _judge(scope_of(version), comparisons, judge, context)


def judge_name(config: RunConfig) -> str | None:
    """The model that judges, for eval.json; None without a judge."""
    judge = config.evaluation.judge
    if judge is None:
        return None
    if isinstance(judge.backend, ApiBackend):
        return judge.backend.oracle.model
    return config.roleplayer.model


async def _judge(
    scope: str, comparisons: Sequence[Comparison], judge: Judge, context: RunContext
) -> None:
    with context.progress.stage(f"{scope} judge", 2 * len(comparisons), "verdicts") as stage:
        stage.begin()
        done = await judge_all(
            comparisons,
            judge.ask,
            partial(context.store.append, scope, "verdicts"),
            context.store.read(scope, "verdicts"),
            stage.advance,
        )
    context.store.compact(scope)
    for problem, count in done.problems.most_common():
        context.progress.say(f"{scope}: {count} of {done.num_asked} verdicts unparsable: {problem}")


def _responses(version: int, context: RunContext) -> list[Response]:
    return [Response(**row) for row in context.store.read(scope_of(version), "responses")]
