"""The loop with fakes: what is recorded, what is dropped, what waits for what."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from stargate.algorithm.base import build_algorithm
from stargate.algorithm.score_requests import GoldScoring
from stargate.config.run import RunConfig
from stargate.errors import DataError, DivergenceError, EngineError
from stargate.monitoring.progress import PlainProgress
from stargate.records.counters import Counters
from stargate.records.store import RunStore
from stargate.run_context import Roles, RunContext
from stargate.training_loop import run_iteration
from stargate.types import (
    GenerateRequest,
    Pair,
    PushResult,
    ScoreRequest,
    ScoreResult,
    TrainingExample,
    TrainResult,
)
from tests.fakes.scripted import (
    FixedRoleplay,
    ScriptedGenerate,
    ScriptedScore,
    byte_chat,
    make_pair,
)
from tests.unit.text.test_views import VIEWS


class RecordingTrain:
    def __init__(self) -> None:
        self.examples: list[TrainingExample] = []

    async def __call__(self, examples: Sequence[TrainingExample], version: int) -> TrainResult:
        self.examples = list(examples)
        return TrainResult((2.0, 1.0), (1.0, 1.0), (0.1, 0.1), None, 1, 1, 1, 1.0, f"m{version}")


class RecordingPush:
    def __init__(self) -> None:
        self.pushed: list[tuple[str, int]] = []

    async def __call__(self, model_dir: str, version: int) -> PushResult:
        self.pushed.append((model_dir, version))
        return PushResult(version, 1, 0.1, {})


def config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "rollout": {"num_dialogues": 3, "turns": [2]},
            "questioner": {"sampling": {"max_new_tokens": 20}},
            "response": {"sampling": {"max_new_tokens": 20}},
            **changes,
        }
    )


def run_context(root: Path, overlap: bool = False, **changes: object) -> RunContext:
    chat, settings = byte_chat(), config(**changes)
    return RunContext(
        config=settings,
        views=VIEWS,
        chat=chat,
        scoring=GoldScoring(VIEWS, chat, 10_000),
        algorithm=build_algorithm(settings, VIEWS, chat),
        store=RunStore(root),
        counters=Counters(),
        progress=PlainProgress(),
        overlap=overlap,
        num_concurrent=settings.num_concurrent_dialogues("cpu"),
    )


def say(request: GenerateRequest) -> str:
    return "resp" if request.request_id.endswith("response") else f"q{request.session[-1]}?"


def favour_second(request: ScoreRequest) -> float:
    return -1.0 if request.key.endswith("/1") else -2.0


def roles(**changes: object) -> Roles:
    parts: dict[str, object] = {
        "generate": ScriptedGenerate(say),
        "roleplay": FixedRoleplay(),
        "score": ScriptedScore(favour_second),
        "train": RecordingTrain(),
        "push": RecordingPush(),
    }
    return Roles(**{**parts, **changes})  # type: ignore[arg-type]


def iterate(
    context: RunContext, number: int = 0, pairs: Sequence[Pair] | None = None, **changes: object
) -> None:
    """One iteration over PAIRS, or others."""
    asyncio.run(run_iteration(number, list(pairs or PAIRS), roles(**changes), context))


def count(context: RunContext, table: str) -> int:
    return context.store.num_rows("t0", table)


PAIRS: list[Pair] = [make_pair(task=t, persona=p) for t in ("t1", "t2") for p in ("p", "q")]


@pytest.mark.parametrize("overlap", [True, False])
def test_an_iteration_records_every_step(tmp_path: Path, overlap: bool) -> None:
    context, train, push = run_context(tmp_path, overlap), RecordingTrain(), RecordingPush()
    iterate(context, train=train, push=push)
    tables = {"dialogues": 12, "scores": 12, "selections": 4, "examples": 4}
    assert {table: count(context, table) for table in tables} == tables
    selections = context.store.read("t0", "selections")
    assert {row["dialogue_id"][-2:] for row in selections} == {"/1"}
    # Training order does not depend on which pair was finished first.
    assert [e.pair_id for e in train.examples] == ["t1:p", "t1:q", "t2:p", "t2:q"]
    assert train.examples[0].response == "resp"
    assert push.pushed == [("m1", 1)]
    assert context.counters.dialogues["t0"] == 12
    # Two questions of "q0?" plus end token each; the fixed answers were not sampled.
    assert context.counters.generated_tokens["t0"] == 12 * 2 * 4
    assert context.counters.dropped == {}


def test_without_overlap_scoring_begins_when_all_dialogues_have_ended(tmp_path: Path) -> None:
    order: list[str] = []

    def generate(request: GenerateRequest) -> str:
        order.append("respond" if request.request_id.endswith("response") else "play")
        return say(request)

    def score(request: ScoreRequest) -> float:
        order.append("score")
        return favour_second(request)

    iterate(run_context(tmp_path), generate=ScriptedGenerate(generate), score=ScriptedScore(score))
    steps = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert steps == ["play", "score", "respond"]


def test_waves_bound_what_is_in_memory(tmp_path: Path) -> None:
    score = ScriptedScore(favour_second)
    context = run_context(tmp_path, schedule={"wave_pairs": 3})
    iterate(context, score=score)
    assert count(context, "examples") == 4


def test_dropped_dialogues_are_counted_and_the_pair_goes_on(tmp_path: Path) -> None:
    def generate(request: GenerateRequest) -> str:
        return "" if request.session.endswith("/1") else say(request)

    context = run_context(tmp_path)
    iterate(context, generate=ScriptedGenerate(generate))
    assert context.counters.dropped == {"empty_question": 4}
    assert context.counters.dropped_examples["empty_question"][0].startswith("t0/t1:p/1 question 1")
    assert count(context, "scores") == 8
    assert count(context, "examples") == 4


def test_a_pair_that_loses_all_dialogues_does_not_hold_up_the_others(tmp_path: Path) -> None:
    def generate(request: GenerateRequest) -> str:
        return "" if "t1:p" in request.session else say(request)

    context = run_context(tmp_path)
    iterate(context, generate=ScriptedGenerate(generate))
    assert context.counters.dropped == {"empty_question": 3, "pair_without_dialogue": 1}
    assert count(context, "examples") == 3


def test_a_response_that_asks_is_no_target(tmp_path: Path) -> None:
    def generate(request: GenerateRequest) -> str:
        asks = request.request_id.endswith("response") and "t1:p" in request.session
        return "Sure! What can you spend?" if asks else say(request)

    context = run_context(tmp_path)
    iterate(context, generate=ScriptedGenerate(generate))
    assert context.counters.dropped == {"response_asks": 1}
    assert count(context, "examples") == 3


def test_nothing_left_to_train_on_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no training example is left of 4 pairs.*empty_question"):
        iterate(run_context(tmp_path), generate=ScriptedGenerate(lambda request: ""))


def test_an_engine_error_stops_the_iteration_and_keeps_what_was_finished(tmp_path: Path) -> None:
    class Fails(ScriptedGenerate):
        async def __call__(self, request: GenerateRequest):  # type: ignore[no-untyped-def]
            if "t2:q" in request.session:
                await asyncio.sleep(0.3)
                raise EngineError("the engine died")
            return await super().__call__(request)

    context = run_context(tmp_path)
    with pytest.raises(EngineError, match="the engine died"):
        iterate(context, generate=Fails(say))
    assert len(list(RunStore(tmp_path).read("t0", "dialogues"))) == 9


def test_divergence_pushes_nothing(tmp_path: Path) -> None:
    class Diverges(RecordingTrain):
        async def __call__(self, examples: Sequence[TrainingExample], version: int) -> TrainResult:
            raise DivergenceError("step 3: loss is nan")

    push = RecordingPush()
    with pytest.raises(DivergenceError):
        iterate(run_context(tmp_path), train=Diverges(), push=push)
    assert push.pushed == []


def test_questions_only_needs_no_response(tmp_path: Path) -> None:
    generate = ScriptedGenerate(say)
    context = run_context(tmp_path, algorithm={"target": "questions_only"})
    iterate(context, generate=generate)
    assert not [r for r in generate.requests if r.request_id.endswith("response")]


def test_two_runs_with_one_seed_ask_for_the_same(tmp_path: Path) -> None:
    def requests(root: Path) -> list[tuple[str, int]]:
        generate = ScriptedGenerate(say)
        iterate(run_context(root), generate=generate)
        return sorted((r.request_id, r.sampling.seed) for r in generate.requests)

    assert requests(tmp_path / "a") == requests(tmp_path / "b")


def test_what_is_on_disk_is_not_made_again(tmp_path: Path) -> None:
    """Two dialogues, two selections and three examples were lost; only those are made."""
    iterate(run_context(tmp_path / "whole"))
    whole, torn = RunStore(tmp_path / "whole"), RunStore(tmp_path / "torn")

    async def copy() -> None:
        for table, lost in (
            ("dialogues", ("t0/t1:p/0", "t0/t2:q/2")),
            ("scores", ("t0/t1:p/0", "t0/t2:q/2")),
            ("selections", ("t1:p", "t2:q")),
            ("examples", ("t1:p", "t2:q", "t2:p")),
        ):
            key = {"dialogues": "id", "scores": "dialogue_id"}.get(table, "pair_id")
            rows = [row for row in whole.read("t0", table) if row[key] not in lost]
            await torn.append("t0", table, rows)

    asyncio.run(copy())
    generate, score = ScriptedGenerate(say), ScriptedScore(favour_second)
    iterate(run_context(tmp_path / "torn"), generate=generate, score=score)
    assert {request.session for request in generate.requests} == {
        "t0/t1:p/0",
        "t0/t2:q/2",
        *(f"t0/{pair}/1" for pair in ("t1:p", "t2:q", "t2:p")),  # the responses
    }
    assert sorted(request.key for request in score.requests) == ["t0/t1:p/0", "t0/t2:q/2"]
    for table in ("scores", "selections", "examples"):
        rows = [
            sorted(map(str, RunStore(root).read("t0", table))) for root in (whole.root, torn.root)
        ]
        assert rows[0] == rows[1]


def test_contrastive_selection_prefers_what_is_about_the_person(tmp_path: Path) -> None:
    """Dialogue 1 makes every gold likely, dialogue 2 only the pair's own."""

    class Score(ScriptedScore):
        async def __call__(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
            self.requests += requests
            values = {"/0": (-9.0, -9.0), "/1": (-1.0, -1.0), "/2": (-2.0, -8.0)}
            return [ScoreResult(r.key, tuple((v,) for v in values[r.key[-2:]])) for r in requests]

    score = Score(lambda request: 0.0)
    context = run_context(tmp_path, algorithm={"selection": "contrastive"})
    iterate(context, score=score)
    assert {len(request.golds) for request in score.requests} == {2}
    selections = list(context.store.read("t0", "selections"))
    assert {row["dialogue_id"][-2:] for row in selections} == {"/2"}
    assert {tuple(row["candidate_scores"]) for row in selections} == {(0.0, 0.0, 6.0)}
    scores = list(context.store.read("t0", "scores"))
    assert {row["num_other_golds"] for row in scores} == {1}


def test_without_another_persona_contrastive_selection_drops_the_pair(tmp_path: Path) -> None:
    context = run_context(tmp_path, algorithm={"selection": "contrastive"})
    lonely = make_pair(task="t9", persona="p")
    score = ScriptedScore(favour_second)
    iterate(context, pairs=[*PAIRS, lonely], score=score)
    assert context.counters.dropped == {"pair_without_contrast": 1}
    assert count(context, "examples") == 4


@pytest.mark.parametrize(("examples", "learned"), [("iteration", ["t1"]), ("all", ["t0", "t1"])])
def test_an_iteration_learns_from_its_own_examples_or_from_all_so_far(
    tmp_path: Path, examples: str, learned: list[str]
) -> None:
    context, train = run_context(tmp_path, trainer={"examples": examples}), RecordingTrain()
    for number in (0, 1):
        iterate(context, number, train=train)
    ids = [example.dialogue_id for example in train.examples]
    assert sorted(ids) == [f"{scope}/{pair.id}/1" for scope in learned for pair in PAIRS]
    assert [e.pair_id for e in train.examples] == sorted(e.pair_id for e in train.examples)
