"""`stargate bench iteration`: its sums on literal spans, and that streaming changes no record."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from stargate.benchmarks.iteration import (
    SEQUENTIAL,
    STREAMED,
    Played,
    Timeline,
    _Bench,
    idle_shares,
    same_share,
    summarise,
)
from stargate.config.run import RunConfig
from stargate.records.counters import Counters
from stargate.records.store import RunStore
from stargate.run_context import Roles, RunContext
from stargate.training_loop import run_iteration
from stargate.types import GenerateRequest, Generation
from tests.fakes.scripted import ScriptedGenerate, ScriptedScore
from tests.unit.test_pair_steps import (
    PAIRS,
    RecordingPush,
    config,
    favour_second,
    roles,
    run_context,
    say,
)

# Stage, beginning and end.
SPANS = [
    ("rollout", 0.0, 4.0),
    ("rollout", 1.0, 5.0),  # with the first one: 0-5
    ("rollout", 7.0, 8.0),
    ("score", 4.0, 6.0),
    ("score", 7.5, 9.0),
    ("respond", 9.0, 10.0),
]


def timeline_of_spans() -> Timeline:
    """What is counted by a clock that stands at the spans' beginnings and ends."""
    timeline, open_spans = Timeline(), {}
    ends = [(at, number) for number, (_, *both) in enumerate(SPANS) for at in both]
    for at, number in sorted(ends):
        with patch("time.perf_counter", return_value=at):
            if number in open_spans:
                open_spans[number].__exit__(None, None, None)
            else:
                open_spans[number] = timeline.stage(SPANS[number][0])
                open_spans[number].__enter__()
    return timeline


def test_seconds_of_stages_and_what_they_share() -> None:
    timeline = timeline_of_spans()
    assert timeline.stages() == {"rollout": 6.0, "score": 3.5, "respond": 1.0}
    assert timeline.shared_seconds() == {
        "rollout+score": 1.5,
        "rollout+respond": 0.0,
        "score+respond": 0.0,
    }
    assert set(Timeline().shared_seconds().values()) == {0.0}


def test_idle_is_what_busy_leaves() -> None:
    before, after = {"a": 10.0, "b": 0.0}, {"a": 13.0, "b": 4.2}
    assert idle_shares(before, after, 4.0) == {"a": 0.25, "b": 0.0}


def test_what_only_one_side_has_is_not_the_same() -> None:
    assert same_share({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == pytest.approx(1 / 3)
    assert same_share({}, {}) == 1.0


def played(
    side: str, seconds: float, train: float = 0.0, push: float = 0.0, best: str = "p/1"
) -> Played:
    timeline = timeline_of_spans()
    timeline.stage_seconds |= {"train": train, "push": push}
    timeline.generated_tokens["t0"] = 70
    timeline.dialogues["t0"] = 4
    return Played(side, seconds, timeline, {"core-0": 0.5}, {"p": best}, {"p": (1, 2)})


def test_the_ratio_is_of_medians_and_the_whole_includes_training() -> None:
    runs = [
        played(SEQUENTIAL, 30.0),
        played(STREAMED, 22.0),
        played(STREAMED, 18.0, train=9.0, push=1.0, best="p/0"),
        played(SEQUENTIAL, 20.0, train=10.0, push=1.0),
    ]
    got = summarise(runs, {"pairs": 1})
    assert got.ratios == {"vs_sequential": 25.0 / 20.0}
    figures = got.figures
    assert figures["whole_iteration"] == 36.0 / 30.0
    assert (figures["same_selections"], figures["same_examples"], figures["pairs"]) == (0.0, 1.0, 1)
    assert figures[SEQUENTIAL]["seconds"] == [30.0, 20.0]
    assert figures[STREAMED]["at_the_same_time_s"]["rollout+score"] == 1.5
    assert (figures[STREAMED]["dialogues"], figures[STREAMED]["generated_tokens"]) == (4, 70)


def test_without_training_there_is_no_whole_iteration() -> None:
    got = summarise([played(SEQUENTIAL, 3.0), played(STREAMED, 2.0)], {})
    assert "whole_iteration" not in got.figures


class FakeActor:
    """An actor with a quarter of a second's work between two looks."""

    def __init__(self) -> None:
        self.stats = self
        self._busy = 0.0

    async def remote(self) -> SimpleNamespace:
        self._busy += 0.25
        return SimpleNamespace(busy_seconds=self._busy)


class FakeSystem:
    """Hands out the loop with fakes, as launch/system.py does with actors."""

    def __init__(self) -> None:
        self.actor_group = SimpleNamespace(
            places={
                "questioner": [FakeActor()],
                "roleplayer": [FakeActor()],
                "scorer": [FakeActor(), FakeActor()],
            }
        )
        self.prepared = SimpleNamespace(
            config=config(), base_model_dir=Path("m0"), train_pairs=lambda number: PAIRS
        )
        self.push = RecordingPush()

    def open(
        self, config: RunConfig, store: RunStore, counters: Counters
    ) -> tuple[Roles, RunContext]:
        context = replace(run_context(store.root), store=store, counters=counters)
        return roles(push=self.push), context


def test_each_side_is_played_in_a_folder_of_its_own_after_a_push(tmp_path: Path) -> None:
    running = FakeSystem()
    context = _Bench(running, tmp_path)  # type: ignore[arg-type]

    async def play() -> list[Played]:
        return [
            await context.play("warm", 1),
            await context.play(SEQUENTIAL, None),
            await context.play(STREAMED, None, train=True),
        ]

    warm, in_turn, streamed = asyncio.run(play())
    # m_0 before each; the last one also trained, and pushed what it had trained.
    assert running.push.pushed == [("m0", 10), ("m0", 11), ("m0", 12), ("m1", 1)]
    assert (len(warm.examples), len(in_turn.examples)) == (1, 4)
    assert in_turn.selections == streamed.selections
    assert in_turn.examples == streamed.examples
    assert {f"scorer-{n}" for n in (0, 1)} | {"questioner-0", "roleplayer-0"} < set(in_turn.idle)
    assert in_turn.train_seconds == 0.0 < streamed.train_seconds
    got = summarise([in_turn, streamed], {})
    assert got.figures["same_examples"] == 1.0
    assert got.figures[STREAMED]["dialogues"] == 12


class Uneven(ScriptedGenerate):
    """Every dialogue takes its own time, so pairs finish in another order than they begin."""

    async def __call__(self, request: GenerateRequest) -> Generation:
        for _ in range(sum(map(ord, request.session)) % 7):
            await asyncio.sleep(0)
        return await super().__call__(request)


@pytest.mark.parametrize("selection", ["gold", "contrastive"])
def test_streamed_or_in_turn_the_records_are_the_same(tmp_path: Path, selection: str) -> None:
    rows: dict[str, list[list[str]]] = {}
    trained: list[list[str]] = []
    orders: list[list[str]] = []
    for overlap in (False, True):
        context = run_context(tmp_path / str(overlap), overlap, algorithm={"selection": selection})
        parts = roles(generate=Uneven(say), score=ScriptedScore(favour_second))
        asyncio.run(run_iteration(0, PAIRS, parts, context))
        orders.append([row["pair_id"] for row in context.store.read("t0", "selections")])
        trained.append([example.dialogue_id for example in parts.train.examples])  # type: ignore[attr-defined]
        for table in ("dialogues", "scores", "selections", "examples"):
            kept = [{**row, "seconds": 0.0} for row in context.store.read("t0", table)]
            rows.setdefault(table, []).append(sorted(map(str, kept)))
    for table, (in_turn, streamed) in rows.items():
        assert in_turn, table
        assert in_turn == streamed, table
    assert trained[0] == trained[1]
    assert set(orders[0]) == {pair.id for pair in PAIRS}
