"""The simulation behind `bench scale`: its clock, its batching, what it says about itself."""

import asyncio
import time

import pytest

from stargate.benchmarks import scale
from stargate.benchmarks.scale_engines import (
    CURVES,
    Curve,
    EngineHandle,
    SimulatedEngine,
    SimulatedEngines,
    SimulatedScorer,
)
from stargate.benchmarks.scale_run import Played, Setting, make_pairs
from stargate.types import GenerateRequest, Generation, Sampling, ScoreRequest
from tests.fakes.scripted import make_pair
from tests.unit.benchmarks.test_command import parse

TEXTS = {4: [("ab?", (1, 2, 3, 9))], 20: [("long", tuple(range(20)))]}
# 10 ms a step whatever runs, 1 ms per prefilled token, two places.
PLAIN = Curve("a test", ((1, 100.0), (2, 200.0)), 1000.0, max_num_seqs=2, push_seconds=0.0)


def request(session: str, prompt: int = 1, limit: int = 4) -> GenerateRequest:
    return GenerateRequest(
        f"{session}/q0", session, tuple(range(prompt)), Sampling(0.9, 1.0, limit, seed=5)
    )


def test_a_step_takes_what_the_measured_points_say() -> None:
    cpu = CURVES["cpu"]
    rates = {n: n / cpu.step_seconds(n) for n in (1, 16, 64)}
    assert rates == pytest.approx({1: 47.0, 16: 405.0, 64: 600.0})
    assert cpu.step_seconds(40) == pytest.approx((16 / 405 + 64 / 600) / 2)
    assert cpu.step_seconds(80) > cpu.step_seconds(64)


def timed(*requests: GenerateRequest) -> tuple[list[float], list[Generation]]:
    """Seconds until each request ended, all sent at once, and what came."""

    async def scenario() -> tuple[list[float], list[Generation]]:
        engine = SimulatedEngine(PLAIN, TEXTS)
        started = time.perf_counter()
        seconds = []

        async def one(asked: GenerateRequest) -> Generation:
            generation = await engine.generate(asked)
            seconds.append(time.perf_counter() - started)
            return generation

        generations = await asyncio.gather(*map(one, requests))
        return seconds, list(generations)

    return asyncio.run(scenario())


def test_a_text_takes_its_tokens_and_its_prompt() -> None:
    [seconds], [generation] = timed(request("a", prompt=30))
    assert 0.07 <= seconds < 0.5  # 30 x 1 ms + 4 x 10 ms
    assert (generation.text, generation.token_ids) == ("ab?", (1, 2, 3, 9))
    assert generation.num_prompt_tokens == 30
    assert generation.num_cached_tokens == 0


def test_two_run_side_by_side_and_a_third_waits() -> None:
    seconds, _ = timed(*(request(name) for name in "abc"))
    assert seconds[1] - seconds[0] < 0.03
    assert seconds[2] >= 0.08


def test_what_a_session_had_before_is_cached_in_whole_blocks() -> None:
    async def scenario() -> tuple[int, int]:
        engine = SimulatedEngine(PLAIN, TEXTS)
        await engine.generate(request("a", prompt=70))
        again = await engine.generate(request("a", prompt=100))
        other = await engine.generate(request("b", prompt=90))
        return again.num_cached_tokens, other.num_cached_tokens

    assert asyncio.run(scenario()) == (64, 0)


def test_a_late_process_does_not_slow_the_simulated_clock() -> None:
    async def scenario() -> float:
        engine = SimulatedEngine(PLAIN, TEXTS)
        started = time.perf_counter()
        first = asyncio.ensure_future(engine.generate(request("a", limit=20)))
        await asyncio.sleep(0)
        time.sleep(0.19)  # the process is busy with something else
        await first
        return time.perf_counter() - started

    assert 0.2 <= asyncio.run(scenario()) < 0.36


def test_engines_of_one_process_are_called_one_by_one() -> None:
    async def scenario() -> list[int]:
        host = SimulatedEngines(PLAIN, TEXTS, 2)

        class Method:
            def __init__(self, method: object) -> None:
                self.remote = method

        class Actor:
            load_weights = Method(host.load_weights)
            reported_version = Method(host.reported_version)

        first, second = EngineHandle(Actor, 0), EngineHandle(Actor, 1)
        await first.load_weights.remote("m1", 1)
        return [await handle.reported_version.remote() for handle in (first, second)]

    assert asyncio.run(scenario()) == [1, 0]


def test_scores_are_repeatable_and_differ() -> None:
    async def scenario() -> list[float]:
        scorer = SimulatedScorer(1e6)
        requests = [ScoreRequest(key, (1, 2), ((3, 4),)) for key in ("a", "b", "a")]
        return [result.sums[0] for result in await scorer.score(requests)]

    first, second, again = asyncio.run(scenario())
    assert first == again != second


def test_pairs_are_repeated_under_new_ids() -> None:
    starter = [make_pair(persona="p"), make_pair(persona="q")]
    pairs = make_pairs(starter, 5)
    assert len({pair.id for pair in pairs}) == 5
    assert {pair.task.text for pair in pairs} == {"t?"}


def played(setting: Setting) -> Played:
    turns = 2 * setting.num_dialogues
    rate = 10.0 * setting.num_engine_pairs * (0.96 if setting.num_engine_pairs == 64 else 1.0)
    return Played(
        setting=setting,
        dialogues=setting.num_dialogues,
        turns=turns,
        seconds=turns / rate,
        iteration_seconds=turns / rate + 1,
        driver_rss_gb=0.5,
        worker_rss_gb=0.4,
        ray_calls_per_turn=0.3,
        rows_per_file=50.0,
        engine_busy_share=0.9,
        mean_requests_running=60.0,
        cpu_seconds={"driver": 1.0},
    )


def test_the_figures_say_that_they_are_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    from stargate.benchmarks import scale_run

    monkeypatch.setattr(
        scale_run, "play_settings", lambda settings, say: [played(s) for s in settings]
    )
    said: list[str] = []
    found = scale.measure(parse("scale", "--dialogues", "100", "--limit-pairs", "8"), said.append)
    assert found.ratios == pytest.approx({"linear_64": 0.96})
    assert found.figures["turns_per_s"] == pytest.approx(80.0)
    assert found.figures["driver_rss_gb"] == 0.5
    assert found.figures["pairs_4"]["dialogues"] == 4 * 120
    assert found.figures["pairs_4"]["curve"] == "cpu (simulated)"
    assert "SIMULATED" in found.figures["simulated"]
    assert "SIMULATED" in said[0]
    without = scale.measure(parse("scale", "--pairs", "1", "4"), said.append)
    assert without.ratios == {}
