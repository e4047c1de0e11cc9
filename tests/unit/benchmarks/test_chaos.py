"""What the chaos benchmark makes of processes and records; its kills are in integration tests."""

import asyncio
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stargate.algorithm.selection import select
from stargate.benchmarks import chaos, chaos_records
from stargate.benchmarks.chaos import Chaos, _is_of, _victims
from stargate.benchmarks.chaos_records import Findings, due_dialogues, examine
from stargate.benchmarks.processes import Found, cpu_seconds, left_over, processes_of
from stargate.config.run import RunConfig
from stargate.evaluation.playing import EvaluationPairs
from stargate.records.schemas import dialogue_row, record_row
from stargate.records.store import RunStore
from stargate.seeds import derive_seed
from stargate.types import Dialogue, DialogueScore, TrainingExample
from tests import fakes
from tests.fakes.scripted import make_pair, make_turn

PAIRS = [make_pair(persona=name) for name in ("p", "q")]


def test_every_kind_has_its_turn_in_every_round() -> None:
    victims = _victims(["a", "b", "c"], 8, random.Random(1))
    assert [sorted(victims[start : start + 3]) for start in (0, 3)] == [["a", "b", "c"]] * 2
    assert len(victims) == 8


def test_the_trainers_ranks_have_one_name() -> None:
    assert _is_of("trainer-1", "trainer")
    assert _is_of("scorer-1", "scorer-1")
    assert not _is_of("scorer-1", "scorer-0")


def test_processes_are_known_by_the_log_that_they_write_to(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    started = []
    for name, log in (
        ("VLLM::Worker", logs / "roleplayer-0.log"),
        ("ray::Engine.gen", logs / "questioner-12.log"),
        ("VLLM::EngineCor", logs / "questioner-12.log"),
        ("ray::MeasuredEn", logs / "questioner-3.log"),  # of the rollout benchmark
        ("resource", logs / "scorer-0.log"),  # some helper of an actor's
        ("ray::Scorer", tmp_path / "scorer-0.log"),  # of another run
    ):
        program = tmp_path / name
        shutil.copy(shutil.which("sleep") or "sleep", program)
        with log.open("w") as out:
            started.append(subprocess.Popen([program, "60"], stdout=out))
    try:
        worker, engine, core, measured, helper, _ = (process.pid for process in started)
        assert processes_of(tmp_path) == [
            Found(engine, "questioner", "questioner-12"),
            Found(core, "questioner-core", "questioner-12"),
            Found(measured, "questioner", "questioner-3"),
            Found(worker, "roleplayer-worker", "roleplayer-0"),
        ]
        assert set(left_over(tmp_path)) == {worker, engine, core, measured, helper}
        assert cpu_seconds(tmp_path).keys() == {
            *("driver", "questioner_front_end", "questioner_core", "roleplayer_worker", "others")
        }
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run without models, which `stargate` commands now play."""
    program = tmp_path / "ray::Scorer"
    shutil.copy(shutil.which("cat") or "cat", program)  # ends when its input does
    script = Path(fakes.__file__).parent / "chaotic_run.py"
    monkeypatch.setattr(chaos, "_COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(chaos, "Driver", partial(_with_program, chaos.Driver, str(program)))
    return tmp_path / "run"


def _with_program(driver: Any, program: str, arguments: list[str]) -> Any:
    return driver([*arguments, program])


def test_it_kills_waits_and_resumes(run_dir: Path) -> None:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("kill 5"):
            (run_dir / "finish").touch()

    mayhem = Chaos(["scorer", "driver"], 5, 0.1, random.Random(3), say)
    mayhem.run(str(run_dir), [])
    kinds = [kill.kind for kill in mayhem.kills]
    assert len(kinds) == 5
    assert {"scorer", "driver"} == set(kinds)
    assert len(mayhem.resumes) == kinds.count("driver")
    assert mayhem.starts == [0.1] * len(mayhem.resumes)
    back = [kill for kill in mayhem.kills if kill.seconds is not None]
    assert all(kill.kind == "scorer" and kill.seconds < 5 for kill in back)
    assert len(back) >= 2
    assert left_over(run_dir) == []


def test_the_last_recovery_is_seen_while_the_run_goes_on(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not at its end, or all that came between would count as recovery."""
    monkeypatch.setattr(chaos, "_SILENCE_SECONDS", 30.0)

    def say(text: str) -> None:
        if "is back after" in text:
            (run_dir / "finish").touch()

    mayhem = Chaos(["scorer"], 1, 0.1, random.Random(3), say)
    mayhem.run(str(run_dir), [])
    assert [kill.missing for kill in mayhem.kills] == [False]


class Recorded:
    """A finished run of one iteration, without an evaluation, and its undisturbed scores."""

    def __init__(self, root: Path) -> None:
        self.config = RunConfig.model_validate(
            {
                "rollout": {"num_dialogues": 2, "turns": [1, 2]},
                "schedule": {"num_iterations": 1},
                "evaluation": {"enabled": False},
            }
        )
        self.test_pairs = EvaluationPairs(PAIRS)
        self.store = RunStore(root)
        self.dialogues = {
            name: Dialogue(
                id=name,
                pair_id=name.split("/")[1],
                index=int(name.split("/")[2]),
                num_turns=num_turns,
                seed=seed,
                policy_version=0,
                turns=(make_turn(),) * num_turns,
            )
            for name, (num_turns, seed, _) in due_dialogues(self).items()  # type: ignore[arg-type]
        }
        self.again = {name: -100.0 - place for place, name in enumerate(sorted(self.dialogues))}

    def train_pairs(self, iteration: int) -> Any:
        return PAIRS

    def write(self, **changed: Any) -> None:
        asyncio.run(self._write(**changed))

    async def _write(
        self,
        dialogues: dict[str, Dialogue] | None = None,
        scores: dict[str, float] | None = None,
        worst: bool = False,
    ) -> None:
        dialogues = self.dialogues if dialogues is None else dialogues
        values = {**self.again, **(scores or {})}
        seed = derive_seed(self.config.seed, "t0")
        for pair in PAIRS:
            own = [d for d in dialogues.values() if d.pair_id == pair.id]
            rows = [dialogue_row(pair, dialogue) for dialogue in own]
            await self.store.append("t0", "dialogues", rows)
            found = [DialogueScore(d.id, pair.id, values[d.id], 7) for d in own]
            await self.store.append("t0", "scores", [record_row(score) for score in found])
            selection = select(pair.id, found, self.config.algorithm.selection, seed)
            if worst:
                selection = replace(selection, dialogue_id=own[-1].id)
            await self.store.append("t0", "selections", [record_row(selection)])
            example = TrainingExample(pair.id, selection.dialogue_id, (1, 2), (0, 1), "r")
            await self.store.append("t0", "examples", [record_row(example)])

    def examine(self, num_dropped: int = 0) -> Findings:
        prepared: Any = SimpleNamespace(
            config=self.config, train_pairs=self.train_pairs, test_pairs=self.test_pairs
        )
        return asyncio.run(examine(prepared, self.store, num_dropped))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded(tmp_path)

    async def score_again(*arguments: Any) -> dict[str, float]:
        return {dialogue.id: recorded.again[dialogue.id] for dialogue in arguments[2]}

    monkeypatch.setattr(chaos_records, "_score_again", score_again)
    return recorded


def test_what_is_as_drawn_is_found_to_be_so(run: Recorded) -> None:
    assert sorted(run.dialogues) == ["t0/t:p/0", "t0/t:p/1", "t0/t:q/0", "t0/t:q/1"]
    run.write(scores={"t0/t:p/0": -100.01})
    found = run.examine()
    assert found == Findings(0, 0, (), (), (), pytest.approx(0.01))
    assert found.selection_consistent


def test_a_lost_dialogue_is_missed_unless_it_was_dropped(run: Recorded) -> None:
    run.write(dialogues={n: d for n, d in run.dialogues.items() if n != "t0/t:q/1"})
    assert run.examine().lost == 1
    assert run.examine(num_dropped=1).lost == 0


def test_rows_that_are_there_twice_are_counted(run: Recorded) -> None:
    run.write()
    run.write()
    assert run.examine().duplicated == 4 + 4 + 2 + 2


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"num_turns": 3}, {"turns": ()}, {"policy_version": 1}]
)
def test_a_dialogue_that_was_not_drawn_like_this_is_named(
    change: dict[str, Any], run: Recorded
) -> None:
    other = replace(run.dialogues["t0/t:p/0"], **change)
    run.write(dialogues={**run.dialogues, other.id: other})
    found = run.examine()
    assert found.altered == ("t0/t:p/0",)
    assert not found.selection_consistent


def test_another_score_is_named(run: Recorded) -> None:
    run.write(scores={"t0/t:q/1": -90.0})
    found = run.examine()
    assert found.misscored == ("t0/t:q/1",)
    assert found.misselected == ("t:q",)  # rightly chosen by a wrong score


def test_another_selection_is_named(run: Recorded) -> None:
    run.write(worst=True)
    found = run.examine()
    assert (found.misscored, found.misselected) == ((), ("t:p", "t:q"))
