"""`stargate bench NAME` with real engines, small: each runs, and its sides do the same work."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stargate.benchmarks.score_work import (
    Work,
    final_only,
    load_work,
    num_tokens,
    num_unique,
    stretches,
    with_golds,
)
from stargate.errors import DataError
from stargate.resources.models import resolve_model
from tests.integration.run_process import Command
from tests.integration.tiny_model import save_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.engines]


def bench(tmp_path: Path, name: str, *options: str, timeout: float) -> tuple[Any, set[str], str]:
    """Figures and names of the ratios, the same on the screen's last line as in the file; and what
    stands on the screen.
    """
    file = tmp_path / f"{name}.json"
    command = [sys.executable, "-m", "stargate.launch.cli", "bench", name, "--json", str(file)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(file.read_text(encoding="utf-8"))
    assert json.loads(done.stdout.splitlines()[-1]) == result
    assert {"benchmark", "ratios", "figures", "hardware", "versions"} <= set(result)
    assert result["benchmark"] == name
    assert all(value > 0 for value in result["ratios"].values())
    return result["figures"], set(result["ratios"]), done.stdout


def test_rollout_every_pass_does_the_same_work(tmp_path: Path) -> None:
    small = ["--dialogues", "6", "--turns", "2", "--rounds", "1", "--max-new-tokens", "6"]
    figures, ratios, _ = bench(tmp_path, "rollout", *small, "--skip-reload", timeout=240)
    assert ratios == {"vs_ceiling", "vs_lockstep"}
    assert (figures["dialogues"], figures["turns"], figures["dropped"]) == (6, 12, 0)
    roles = figures["questioner"], figures["roleplayer"]
    assert [role["requests"] for role in roles] == [12, 12]
    assert all(1.0 <= role["tokens_per_text"] <= 6.0 for role in roles)
    work = [figures["work"][name] for name in ("pipeline", "ceiling", "lock_step")]
    for key in ("num_requests", "num_prompt_tokens", "num_generated_tokens"):
        assert len({one[key] for one in work}) == 1, key
    # Two dialogues' prompts begin alike, so some of each pass must have been found again.
    assert all(0 < one["num_cached_tokens"] < one["num_prompt_tokens"] for one in work)
    assert figures["driver_cpu_s"] > 0
    assert figures["cpu_seconds"]["pipeline"]["questioner_core"] > 0


@pytest.fixture(scope="module")
def work() -> Work:
    return load_work(resolve_model("embedded"), 2, 3)


def test_score_is_of_recorded_dialogues_with_real_golds(work: Work) -> None:
    assert [len(requests) for requests in work.played] == [4, 4]
    assert [len(requests) for requests in work.long] == [1, 1]
    for requests in (*work.played, *work.long):
        assert all(len(request.golds) == 3 for request in requests)
        assert all(100 < len(gold) < 200 for request in requests for gold in request.golds)
    assert all(130 < len(r.context_ids) < 260 for requests in work.played for r in requests)
    assert all(400 < len(requests[0].context_ids) < 800 for requests in work.long)


def test_score_computes_the_same_tokens_on_both_sides_of_vs_forward(work: Work) -> None:
    for pairs in (with_golds(work.played, 1), work.played, work.long):
        computed = stretches(pairs)
        assert sum(len(one.ids) for one in computed) == num_unique(pairs) < num_tokens(pairs)
    single = with_golds(work.played, 1)
    golds = sum(len(gold) for requests in single for r in requests for gold in r.golds)
    assert sum(one.num_places for one in stretches(single)) == golds


def test_turns_are_scored_before_any_and_after_each(work: Work) -> None:
    for before, *after in work.turns:
        assert len({request.context_ids for request in after}) == 4 * 3
        opening = before.context_ids[:-10]  # what closes it comes later in the others
        assert all(request.context_ids[: len(opening)] == opening for request in after)
        for one, two, three in zip(*[iter(after)] * 3, strict=True):
            assert len(one.context_ids) < len(two.context_ids) < len(three.context_ids)
            assert three.golds == before.golds
    assert final_only(work.turns) == [tuple(after[2::3]) for _, *after in work.turns]


def test_score_refuses_more_than_there_is() -> None:
    folder = resolve_model("embedded")
    with pytest.raises(DataError, match=r"--pairs must be in 1\.\.24, got 25"):
        load_work(folder, 25, 1)
    with pytest.raises(DataError, match=r"--golds must be in 1\.\.8, got 9"):
        load_work(folder, 1, 9)


def test_score_checks_every_log_prob(tmp_path: Path) -> None:
    options = ["--pairs", "1", "--golds", "2", "--rounds", "1", "--device", "cpu"]
    figures, ratios, _ = bench(tmp_path, "score", *options, timeout=300)
    assert ratios == {"vs_prompt_logprobs", "vs_forward", "golds8_vs_1", "turn_scores_vs_final"}
    assert figures["dialogues"] == 4
    assert figures["unique_tokens"] < figures["tokens"]
    differences = figures["largest_differences_nats_per_token"]
    # Not a bit of difference, where the same keys stand in the same order.
    assert 0.0 <= differences["several_golds_from_one"] <= 0.02
    assert 0.0 <= differences["turn_scores_from_final"] <= 0.02
    assert 0.0 < differences["scorer_from_float32"] <= 0.02
    assert differences["prompt_logprobs_from_float32"] <= 0.1


def test_train_measures_all_sides_on_the_same_work(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "tiny", resolve_model("embedded"))
    options = "--dialogues 8 --batch-size 4 --micro-batch-size 2 --steps 1 --warmup-steps 1"
    given = [*options.split(), "--model", str(model), "--threads", "1", "--lora", "4"]
    figures, ratios, _ = bench(tmp_path, "train", *given, timeout=150)
    assert ratios == {"vs_padded_trainer", "vs_bare_loop"}
    own = figures["ours"]
    # bfloat16 rounds in other places on each side; the same weights and examples give this loss.
    for side in ("padded_trainer", "bare_loop"):
        assert figures[side]["first_loss"] == pytest.approx(own["first_loss"], rel=0.01)
        assert figures[side]["last_loss"] == pytest.approx(own["last_loss"], rel=0.01)
    assert {"setup_s", "settle_s", "save_s", "peak_memory_gb"} <= own.keys()
    assert figures["work"]["steps"] == 1
    assert figures["work"]["packed"] is True
    assert figures["work"]["tokens"] > figures["work"]["loss_tokens"] > 0


def test_push_measures_what_its_names_say(tmp_path: Path) -> None:
    embedded = resolve_model("embedded")
    model = save_tiny_model(tmp_path / "tiny", embedded, dtype="bfloat16", head_dim=64)
    options = ["--model", str(model), "--pushes", "2", "--max-model-len", "256"]
    figures, ratios, _ = bench(tmp_path, "push", *options, timeout=300)
    assert ratios == {"vs_restart", "vs_memcpy"}
    # Both sides ended with the same weights, and those were moved as a whole.
    assert figures["same_answer_as_restarted"] is True
    assert figures["bytes"] == (model / "model.safetensors").stat().st_size
    phases = {"check", "pause", "start", "update", "finish", "reset", "resume", "ray_and_versions"}
    assert phases <= set(figures["phases_s"])


def test_iteration_makes_the_same_records_on_both_sides(tmp_path: Path) -> None:
    changes = (
        *("rollout.num_dialogues=2", "rollout.turns=[1]", "response.sampling.max_new_tokens=8"),
        "questioner.sampling.max_new_tokens=12",
        # One at a time: so that both sides sample the same tokens.
        "rollout.max_concurrent_dialogues=1",
    )
    options = ["--tasks", "1", "--personas", "2", "--rounds", "1", "--no-train"]
    options += [f"--set={change}" for change in changes]
    figures, ratios, _ = bench(tmp_path, "iteration", *options, timeout=400)
    assert ratios == {"vs_sequential"}
    assert figures["same_selections"] == 1.0
    for side in ("sequential", "streamed"):
        assert (figures[side]["dialogues"], figures[side]["examples"]) == (4, 2)
        assert figures[side]["dropped"] == 0
        assert set(figures[side]["stage_s"]) == {"rollout", "score", "respond"}
        assert {"questioner-0", "roleplayer-0", "scorer-0"} < set(figures[side]["idle_share"])
    assert figures["sequential"]["generated_tokens"] == figures["streamed"]["generated_tokens"]
    # In turn means in turn.
    assert sum(figures["sequential"]["at_the_same_time_s"].values()) < 0.05


def test_scale_says_that_it_simulates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten dialogues per engine pair; that every record is there is checked by the command."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--pairs", "1", "64", "--per-pair", "10", "--curve", "fast", "--workers", "1"]
    options += ["--dialogues", "100", "--limit-pairs", "1", "--max-new-tokens", "12"]
    figures, ratios, screen = bench(tmp_path, "scale", *options, timeout=300)
    assert ratios == {"linear_64"}
    assert "SIMULATED" in figures["simulated"]
    assert "SIMULATED" in screen
    assert {"turns_per_s", "driver_rss_gb", "ray_calls_per_turn"} <= set(figures)
    # The same work per engine pair.
    assert [figures[f"pairs_{n}"]["dialogues"] for n in (1, 64)] == [10, 640]
    assert figures["orchestrator_limit"]["dialogues"] == 100
    assert 0 < figures["ray_calls_per_turn"] < 3
    assert set(figures["pairs_64"]["cpu_ms_per_turn"]) == {
        *("driver", "dialogue_workers", "simulated_engines", "simulated_scorer", "ray_daemons")
    }


def test_chaos_loses_nothing_by_random_kills(tmp_path: Path) -> None:
    """A few kills at random moments; the long form has thirty."""
    file = tmp_path / "chaos.json"
    command = Command(
        *("bench", "chaos", "--kills", "3", "--gap", "3", "--kinds", "scorer,roleplayer,trainer"),
        *("--iterations", "1", "--tasks", "2", "--personas", "2", "--dialogues", "4"),
        *("--set", "data.test={tasks: 1, personas: 2}", "--set", "evaluation.turns=[2]"),
        *("--set", "rollout.max_concurrent_dialogues=2", "--json", str(file)),
    )
    output = command.finish()
    assert command.process.returncode == 0, output
    assert command.left_over() == []
    figures = json.loads(file.read_text())["figures"]
    assert (figures["lost"], figures["duplicated"]) == (0, 0)
    assert figures["selection_consistent"] is True
    assert figures["kills"] == 3
    assert figures["num_dialogues"] == 16
    assert set(figures["kills_by_kind"]) == {"scorer", "roleplayer", "trainer"}
    assert figures["longest_recovery_s"] > 0
