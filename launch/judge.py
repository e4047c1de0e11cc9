"""The judge of an evaluation: bouts from the tables of responses, verdicts into the tables.

m_0's responses -> the judge's trials; m_t's and m_0's -> own, fixed -> verdicts on disk
"""

from collections.abc import Sequence
from functools import partial

from stargate.config.judge import ApiBackend
from stargate.config.run import RunConfig
from stargate.evaluation.comparisons import Bout, choose_pairs, trial_bouts, win_rate_bouts
from stargate.evaluation.judging import Judge, JudgeEngine, judge_all, open_judge
from stargate.evaluation.playing import scope_of
from stargate.evaluation.responses import Response, response_from_row
from stargate.launch.setup import Prepared
from stargate.pair_steps import Roles, RunContext


async def judge_checkpoints(
    versions: Sequence[int], prepared: Prepared, roles: Roles, bench: RunContext
) -> None:
    """Judges the responses of all `versions`, and tries the judge. Goes on where it was stopped."""
    config = bench.config.evaluation.judge
    if config is None:
        return
    pairs = prepared.test_pairs.scored
    chosen = choose_pairs(pairs, config.max_pairs, bench.config.seed)
    responses = {version: _responses(version, bench) for version in {0, *versions}}
    engine = None
    if roles.voice is not None:
        engine = JudgeEngine(
            generate=roles.voice,
            chat=prepared.roleplayer_chat,
            max_model_len=bench.config.roleplayer.engine.max_model_len,
            model=str(prepared.roleplayer_dir),
        )
    async with open_judge(config, bench.store.root / "judge.sqlite", engine) as judge:
        for version in versions:
            if version == 0:
                bouts = trial_bouts(
                    chosen,
                    pairs,
                    responses[0],
                    judge.prompts.praise,
                    prepared.chat.count,
                    bench.counters.drop,
                )
            else:
                bouts = win_rate_bouts(
                    version, chosen, responses[version], responses[0], bench.counters.drop
                )
            await _judge(scope_of(version), bouts, judge, bench)


def judge_name(config: RunConfig) -> str | None:
    """The model that judges, for eval.json; None without a judge."""
    judge = config.evaluation.judge
    if judge is None:
        return None
    if isinstance(judge.backend, ApiBackend):
        return judge.backend.oracle.model
    return config.roleplayer.model


async def _judge(scope: str, bouts: Sequence[Bout], judge: Judge, bench: RunContext) -> None:
    with bench.progress.stage(f"{scope} judge", 2 * len(bouts), "verdicts") as stage:
        stage.begin()
        done = await judge_all(
            bouts,
            judge.ask,
            partial(bench.store.append, scope, "verdicts"),
            bench.store.read(scope, "verdicts"),
            stage.advance,
        )
    bench.store.compact(scope)
    for problem, count in done.problems.most_common():
        bench.progress.say(f"{scope}: {count} of {done.num_asked} verdicts unparsable: {problem}")


def _responses(version: int, bench: RunContext) -> list[Response]:
    return [response_from_row(row) for row in bench.store.read(scope_of(version), "responses")]
