"""More dialogues than memory: what is held at once does not grow with the number of pairs."""

import asyncio
import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stargate.evaluation.playing import EvaluationPairs, play_all
from stargate.pair_steps import play_pairs
from stargate.records.schemas import Row
from stargate.records.store import RunStore
from stargate.run_context import Roles, RunContext
from stargate.types import Dialogue, GenerateRequest, Generation, Pair
from tests.fakes.scripted import ScriptedGenerate, make_pair
from tests.unit.test_pair_steps import roles, run_context, say

FEW, MANY = 20, 120


@pytest.fixture(autouse=True)
def nothing_else() -> Iterator[None]:
    """Hides what is there before a test from the counting, which goes through all objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def num_alive() -> int:
    """Dialogues in memory that are no garbage, made in this test."""
    gc.collect()
    return sum(type(thing) is Dialogue for thing in gc.get_objects())


class Counting(ScriptedGenerate):
    """Takes a moment for each text, and counts now and then what is alive meanwhile."""

    def __init__(self) -> None:
        super().__init__(say)
        self.most_tasks = self.most_dialogues = self.most_at_once = 0
        self._at_once = self._calls = 0

    async def __call__(self, request: GenerateRequest) -> Generation:
        self._calls += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.most_tasks = max(self.most_tasks, len(asyncio.all_tasks()))
        if self._calls % 200 == 0:
            self.most_dialogues = max(self.most_dialogues, num_alive())
        await asyncio.sleep(0)
        try:
            generation = await super().__call__(request)
            self.requests.clear()  # they are the test's own memory
            return generation
        finally:
            self._at_once -= 1


class NoStore(RunStore):
    """Keeps no row: records on disk take no memory, and their fsync would take the test's time."""

    async def append(self, scope: str, table: str, rows: Sequence[Row]) -> None:
        await asyncio.sleep(0)


def pairs(count: int) -> list[Pair]:
    return [make_pair(task=f"t{i}") for i in range(count)]


def context_for(root: Path, overlap: bool) -> RunContext:
    rollout = {"num_dialogues": 4, "turns": [1, 2], "max_concurrent_dialogues": 8}
    context = run_context(root, overlap, rollout=rollout, schedule={"wave_pairs": 6})
    return replace(context, store=NoStore(root))


@pytest.mark.parametrize("overlap", [True, False])
def test_what_an_iteration_holds_is_bounded(tmp_path: Path, overlap: bool) -> None:
    seen = {}
    for count in (FEW, MANY):
        generate = Counting()
        context = context_for(tmp_path / str(count), overlap)
        asyncio.run(play_pairs("t0", pairs(count), roles(generate=generate), context))
        assert context.counters.dialogues["t0"] == 4 * count
        seen[count] = generate
    for counted in seen.values():
        assert counted.most_at_once <= 8 + 4  # dialogues, and responses of the pairs under way
        # Two times 8 / 4 = 4 pairs, or a wave of 6, with 4 dialogues each.
        assert counted.most_tasks <= 6 * (1 + 4) + 1
    # Those of the pairs under way and, for a moment, of pairs that just ended.
    assert 0 < seen[MANY].most_dialogues <= 8 * 4


def test_an_evaluation_has_no_more_tasks_than_dialogues_in_flight(tmp_path: Path) -> None:
    generate = Counting()
    context = context_for(tmp_path, True)
    parts: Roles = roles(generate=generate)
    played = asyncio.run(play_all(0, EvaluationPairs(pairs(MANY)), parts, context))
    assert sum(map(len, played.values())) == 2 * MANY
    assert generate.most_at_once <= 8
    assert generate.most_tasks <= 3 * 8  # of 480; those that ended write their records
