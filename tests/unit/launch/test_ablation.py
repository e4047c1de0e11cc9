"""`stargate ablate` with fakes: which plan, in which order weights go, how conditions compare."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from stargate.algorithm.base import build_algorithm
from stargate.config.files import dump_config
from stargate.config.run import RunConfig
from stargate.data.dataset import Dataset
from stargate.errors import ConfigError, DataError, DivergenceError, EngineError
from stargate.evaluation.ablation import PAPER_CONDITIONS
from stargate.evaluation.playing import EvaluationPairs
from stargate.launch import ablation as launched
from stargate.launch.ablation import Ablation, new_plan, plan_ablation, resumed_plan
from stargate.launch.cli import main
from stargate.launch.setup import Prepared
from stargate.launch.system import RunningSystem
from stargate.monitoring.progress import PlainProgress
from stargate.records.counters import Counters
from stargate.records.store import RunStore
from stargate.run_context import Roles, RunContext
from stargate.types import GenerateRequest, TrainingExample, TrainResult
from tests.fakes.scripted import ScriptedGenerate, ScriptedScore, byte_chat
from tests.unit.evaluation.test_ablation import FACTS, config
from tests.unit.test_pair_steps import (
    PAIRS,
    RecordingPush,
    RecordingTrain,
    favour_second,
    roles,
    run_context,
    say,
)
from tests.unit.text.test_views import VIEWS

BASE = "base-model"


@pytest.fixture(autouse=True)
def _no_description_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs a dozen commands, for every run directory."""
    monkeypatch.setattr("stargate.launch.session.environment", dict)


def test_conditions_can_not_be_compared_without_evaluation() -> None:
    base = config(roleplayer=FACTS, evaluation={"enabled": False})
    with pytest.raises(ConfigError, match=r"evaluation.enabled must be true"):
        plan_ablation(base, PAPER_CONDITIONS, ())


def test_a_plan_of_the_papers_conditions() -> None:
    plan = plan_ablation(config(roleplayer=FACTS), PAPER_CONDITIONS, ())
    assert list(plan.configs) == ["own_response", "questions_only", "gold_response"]
    assert plan.weak == ("roleplayer.grounding={type: persona}",)
    with pytest.raises(ConfigError, match="weaker_roleplayer is not among the conditions"):
        plan_ablation(config(), ["own_response"], ["roleplayer.model=x"])


class DivergesWithoutResponse(RecordingTrain):
    async def __call__(self, examples: Sequence[TrainingExample], version: int) -> TrainResult:
        if not examples[0].response:
            raise DivergenceError("step 2: loss is nan")
        return await super().__call__(examples, version)


class FakeSystem:
    """Hands out one set of recording parts to every run directory."""

    def __init__(self, train: RecordingTrain | None = None) -> None:
        self.score = ScriptedScore(favour_second)
        self.train = train or RecordingTrain()
        self.push = RecordingPush()
        self.asked: dict[str, list[str]] = {}  # by run: what the Questioner was asked

    def open(
        self, config: RunConfig, store: RunStore, counters: Counters
    ) -> tuple[Roles, RunContext]:
        asked = self.asked[store.root.name] = []

        def script(request: GenerateRequest) -> str:
            asked.append(request.request_id)
            return say(request)

        context = replace(
            run_context(store.root),
            config=config,
            algorithm=build_algorithm(config, VIEWS, byte_chat()),
            store=store,
            counters=counters,
        )
        parts = roles(
            generate=ScriptedGenerate(script), score=self.score, train=self.train, push=self.push
        )
        return parts, context


def prepared(base: RunConfig) -> Prepared:
    dataset = Dataset(
        "fake",
        {pair.task.id: pair.task for pair in PAIRS},
        {pair.persona.id: pair.persona for pair in PAIRS},
        {(pair.task.id, pair.persona.id): ("gold", ()) for pair in PAIRS},
    )
    return Prepared(
        config=base,
        dataset=dataset,
        test_pairs=EvaluationPairs(PAIRS),
        base_model_dir=Path(BASE),
        roleplayer_dir=Path("r"),
        embedder_dir=None,
        views=VIEWS,
        roleplayer_views=VIEWS,
        chat=byte_chat(),
        roleplayer_chat=byte_chat(),
        placement=cast(Any, None),
        num_gpus=0,
    )


def ablation(root: Path, names: Sequence[str], **changes: object) -> Ablation:
    root.mkdir(exist_ok=True)
    base = config(**changes)
    return Ablation(plan_ablation(base, names, ()), prepared(base), root, PlainProgress())


def play(running: FakeSystem, made: Ablation, names: Sequence[str]) -> None:
    asyncio.run(made.train_in(cast(RunningSystem, running), names))


def played(
    root: Path, names: Sequence[str], train: RecordingTrain | None = None
) -> tuple[FakeSystem, Ablation]:
    """An ablation of which all conditions were run, and the system that it was run with."""
    running, made = FakeSystem(train), ablation(root, names)
    play(running, made, names)
    return running, made


def rows(root: Path, scope: str, table: str) -> list[str]:
    return sorted(map(str, RunStore(root).read(scope, table)))


def statuses(conditions: dict[str, Any]) -> dict[str, str]:
    return {name: entry["status"] for name, entry in conditions.items()}


def scopes_asked(running: FakeSystem, name: str) -> set[str]:
    return {asked.partition("/")[0] for asked in running.asked[name]}


def test_what_m0_does_is_made_once_and_m0_comes_back_before_each_condition(tmp_path: Path) -> None:
    names = ["own_response", "questions_only", "random"]
    running, _ = played(tmp_path, names)
    assert running.push.pushed == [(BASE, 0), ("m1", 1)] * 3
    assert scopes_asked(running, "own_response") == {"eval-m0", "t0", "eval-m1"}
    # Of iteration 0 the others ask for their own responses only.
    assert scopes_asked(running, "questions_only") == {"eval-m1"}
    of_t0 = [asked for asked in running.asked["random"] if asked.startswith("t0")]
    assert len(of_t0) == len(PAIRS)
    assert all(asked.endswith("/response") for asked in of_t0)
    of_m0 = ("eval-m0/dialogues", "eval-m0/question_fits", "eval-m0/controls")
    for shared in (*of_m0, "t0/dialogues", "t0/scores"):
        scope, table = shared.split("/")
        first, *others = (rows(tmp_path / name, scope, table) for name in names)
        assert first
        assert all(other == first for other in others), shared
    # Of 4 pairs: 1 dialogue in the evaluation, 2 in the iteration.
    assert len(rows(tmp_path / "random", "eval-m0", "dialogues")) == 4
    assert len(rows(tmp_path / "random", "t0", "dialogues")) == 8
    for name in names:
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["status"] == "finished"
        assert (tmp_path / name / "logs" / "driver.log").is_file()
    found = json.loads((tmp_path / "ablation.json").read_text())["conditions"]
    assert found["random"]["shared"]["t0/dialogues"] == {"from": "own_response", "rows": 8}


def test_contrastive_plays_nothing_again_but_scores_for_itself(tmp_path: Path) -> None:
    names = ["own_response", "contrastive"]
    running, _ = played(tmp_path, names)
    assert len(rows(tmp_path / "contrastive", "t0", "scores")) == 8
    others = {
        row["num_other_golds"] for row in RunStore(tmp_path / "contrastive").read("t0", "scores")
    }
    assert others == {1}
    again = [request for request in running.score.requests if request.key.startswith("t0/")]
    assert [len(request.golds) for request in again] == [1] * 8 + [2] * 8


def test_a_condition_that_diverges_does_not_stop_the_others(tmp_path: Path) -> None:
    names = ["own_response", "questions_only", "gold_response"]
    _, made = played(tmp_path, names, DivergesWithoutResponse())
    assert list(made.errors) == ["questions_only"]
    found = made.write()["conditions"]
    states = ["finished", "failed", "finished"]
    assert statuses(found) == dict(zip(names, states, strict=True))
    assert found["questions_only"]["problem"] == "DivergenceError: step 2: loss is nan"
    assert found["questions_only"]["checkpoint"] == "m0"
    assert found["questions_only"]["differences"] == {}
    assert found["gold_response"]["differences"]["gold_logprob"]["mean"] == 0.0
    assert "differences" not in found["own_response"]


def test_a_dead_engine_ends_the_ablation(tmp_path: Path) -> None:
    class Dies(RecordingTrain):
        async def __call__(self, examples: Sequence[TrainingExample], version: int) -> TrainResult:
            raise EngineError("an actor died")

    names = ["own_response", "questions_only"]
    made = ablation(tmp_path, names)
    with pytest.raises(EngineError):
        play(FakeSystem(Dies()), made, names)
    found = made.write()["conditions"]
    assert statuses(found) == {"own_response": "failed", "questions_only": "not_started"}


def test_a_resumed_condition_starts_anew_with_what_m0_had_made(tmp_path: Path) -> None:
    names = ["own_response", "questions_only"]
    played(tmp_path, names, DivergesWithoutResponse())
    running, made = FakeSystem(), ablation(tmp_path, names)
    play(running, made, ["questions_only"])
    assert (tmp_path / "questions_only-stopped-1" / "summary.json").is_file()
    assert scopes_asked(running, "questions_only") == {"eval-m1"}
    found = made.write()["conditions"]
    assert statuses(found) == dict.fromkeys(names, "finished")


def test_a_first_condition_that_was_stopped_gives_its_own_tables(tmp_path: Path) -> None:
    names = ["questions_only", "random"]
    play(FakeSystem(DivergesWithoutResponse()), ablation(tmp_path, names), names[:1])
    running, _ = played(tmp_path, names)
    assert scopes_asked(running, "questions_only") == {"eval-m1"}
    shared = json.loads((tmp_path / "questions_only" / "shared.json").read_text())
    assert shared["t0/scores"] == {"from": "questions_only-stopped-1", "rows": 8}


def test_the_weaker_roleplayer_needs_a_finished_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        launched, "run_evaluation", lambda *given, **named: asked.append((given, named))
    )
    names = ["own_response", "weaker_roleplayer"]
    made = ablation(tmp_path, names, roleplayer=FACTS)
    made.test_weaker()
    assert asked == []
    play(FakeSystem(), made, ["own_response"])
    made.test_weaker()
    overrides = ("roleplayer.grounding={type: persona}",)
    assert asked == [((tmp_path / "own_response", overrides), {"name": "weaker_roleplayer"})]


def test_the_command_from_start_to_end_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    actor_groups = [FakeSystem(DivergesWithoutResponse()), FakeSystem()]

    @asynccontextmanager
    async def running_system(*_: object) -> AsyncIterator[FakeSystem]:
        yield actor_groups.pop(0)

    monkeypatch.setattr(launched, "running_system", running_system)
    monkeypatch.setattr(launched, "prepare", lambda base, say, training=True: prepared(base))
    file = tmp_path / "small.yaml"
    file.write_text(dump_config(config(name="small", runs_dir=str(tmp_path / "runs"))))
    conditions = ["--conditions", "questions_only, own_response"]
    assert main(["ablate", str(file), "seed=3", *conditions]) == DivergenceError.exit_code
    [root] = (tmp_path / "runs").iterdir()
    assert root.name.startswith("small-ablation-")
    assert "questions_only: failed: DivergenceError: step 2" in capsys.readouterr().out
    # The second set of actors trains what failed and what is new, and keeps what has finished.
    assert main(["ablate", "--conditions", "random", "--resume", str(root)]) == 0
    found = json.loads((root / "ablation.json").read_text())
    trained = ("own_response", "questions_only", "random")
    assert statuses(found["conditions"]) == dict.fromkeys(trained, "finished")
    assert found["about"]["seed"] == 3
    assert (root / "report.html").read_text().startswith("<!doctype html>")
    assert "Against own_response, matched minus shuffled" in capsys.readouterr().out


def test_resume_takes_an_ablation_and_no_config(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not an ablation: it has no ablation.json"):
        resumed_plan(tmp_path, None, (), ())
    with pytest.raises(ConfigError, match="name no other"):
        resumed_plan(tmp_path, "cpu_demo", (), ())
    with pytest.raises(ConfigError, match="name a config"):
        new_plan(None, (), None, ())
