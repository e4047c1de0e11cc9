"""The rollout benchmark's pure parts: phases, latencies, figures, whose CPU time it was."""

import pytest

from stargate.benchmarks.processes import used
from stargate.benchmarks.rollout import workload_overrides
from stargate.benchmarks.rollout_figures import (
    EngineRecord,
    Phase,
    Served,
    StepFigures,
    Work,
    percentile,
    phases,
    place_of,
    role_figures,
    step_figures,
    turn_seconds,
)
from stargate.config.files import load_config
from stargate.errors import ConfigError, DataError
from stargate.launch.setup import prepare
from stargate.types import GenerateRequest, Sampling


def text(
    request_id: str,
    submitted: float = 0.0,
    finished: float = 0.0,
    num_prompt: int = 4,
    num_generated: int = 5,
    num_cached: int = 0,
) -> Served:
    request = GenerateRequest(request_id, "d", (1,) * num_prompt, Sampling(0.0, 1.0, 20, 0))
    return Served(request, num_generated, num_cached, submitted, finished)


def test_a_request_id_names_its_dialogue_turn_and_role() -> None:
    assert place_of("bench/trip:ann/0/q2") == ("bench/trip:ann/0", Phase(2, False))
    dialogue, phase = place_of("bench/trip:ann/0#2/a10")
    assert (dialogue, phase.turn, phase.role) == ("bench/trip:ann/0#2", 10, "roleplayer")


@pytest.mark.parametrize("bad", ["", "q0", "d/response", "d/x1", "d/q", "/q0"])
def test_other_request_ids_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="names no dialogue"):
        place_of(bad)


def test_phases_come_in_the_order_of_a_lock_step_loop() -> None:
    ids = ["d1/a1", "d2/q0", "d1/q1", "d1/a0", "d1/q0", "d2/q10"]
    assert [(p.turn, p.role[0]) for p in phases(text(one) for one in ids)] == [
        (0, "q"),
        (0, "r"),
        (1, "q"),
        (1, "r"),
        (10, "q"),
    ]


def test_a_turn_lasts_until_the_next_question_or_the_last_text() -> None:
    served = [
        text("d1/q0", 1.0, 2.0),
        text("d1/a0", 2.5, 3.0),
        text("d1/q1", 3.5, 4.0),  # what lay between answer and question belongs to turn 0
        text("d1/a1", 4.0, 6.0),
        text("d2/q0", 0.0, 1.5),  # its answer needed no call
    ]
    assert sorted(turn_seconds(served)) == [1.5, 2.5, 2.5]


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert percentile(values, 0.5) == 51.0
    assert percentile(values, 0.99) == 100.0
    assert percentile([7.0], 0.5) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_role_figures() -> None:
    served = [
        text("d/q0", num_prompt=30),
        text("d/q1", num_prompt=50, num_cached=32, num_generated=15),
    ]
    engines = [EngineRecord(served, busy_seconds=4.0), EngineRecord(busy_seconds=2.0)]
    figures = role_figures(engines, seconds=4.0)
    assert figures == step_figures([engine.steps for engine in engines]) | {
        "requests": 2,
        "busy_share": 0.75,
        "generated_tokens_per_s": 5.0,
        "tokens_per_text": 10.0,
        "prompt_tokens_per_text": 40.0,
        "prefix_cache_hit_rate": 0.4,
    }


def test_work_adds_up() -> None:
    request = text("d/q0", num_prompt=30).request
    assert Work.of(request, 5, 16) + Work.of(request, 7, 0) == Work(2, 60, 12, 16)


def test_step_figures_of_several_engines() -> None:
    first = StepFigures(3, num_running=90, num_waiting=6, peak_kv_usage=0.2, queue_seconds=[0.1])
    second = StepFigures(1, num_running=10, num_waiting=0, peak_kv_usage=0.5, num_preempted=2)
    assert step_figures([first, second]) == {
        "mean_running": 25.0,
        "mean_waiting": 1.5,
        "peak_kv_usage": 0.5,
        "preempted": 2.0,
        "queue_p50_s": 0.1,
        "queue_p99_s": 0.1,
    }


def test_used_cpu_counts_processes_that_came_later() -> None:
    assert used({"driver": 2.0, "others": 5.0}, {"driver": 3.0, "others": 5.5, "worker": 9.0}) == {
        "worker": 9.0,
        "driver": 1.0,
        "others": 0.5,
    }


def test_the_workload_calls_both_roles_in_every_turn() -> None:
    config = load_config("cpu_learn", workload_overrides(3, 32))
    assert config.rollout.turns == (3,)
    assert config.roleplayer.grounding.type == "persona"
    limits = (config.questioner.sampling, config.roleplayer.sampling)
    assert [sampling.max_new_tokens for sampling in limits] == [32, 32]
    as_preset = load_config("cpu_learn", workload_overrides(2, None))
    assert as_preset.questioner.sampling.max_new_tokens == 40


def test_only_a_training_asks_for_answers_that_are_known() -> None:
    """cpu_learn learns from answered questions; an evaluation does not."""
    config = load_config("cpu_learn", [*workload_overrides(3, 32), "data.source=/none"])
    assert config.algorithm.questions == "answered"
    with pytest.raises(ConfigError, match="needs roleplayer"):
        prepare(config, print)
    with pytest.raises(DataError, match="/none: no such dataset folder"):
        prepare(config, print, training=False)
