"""Plays planned dialogues, each once: what a scope has on disk already is not played again.

    plan -> on disk? -> else play -> dropped and counted, or appended to the table `dialogues`

For training and evaluation alike. Every text is heard by the watch for degeneration.
"""

import asyncio
from collections.abc import Mapping

from stargate.errors import RecordDropped
from stargate.monitoring.progress import Stage
from stargate.protocols import Play
from stargate.records.counters import Counters
from stargate.records.schemas import dialogue_row
from stargate.records.store import RunStore
from stargate.rollout.degeneration import DegenerationWatch
from stargate.types import Dialogue, DialoguePlan


class RecordedRollout:
    """The dialogues of one scope ("t0", "eval-m1"), at most `at_most` under way.

    Call it with a plan; it returns the dialogue once it is on disk, None if it was dropped. Raises
    DivergenceError when too many texts are empty or endless. Call `finish` when all have ended.
    """

    def __init__(
        self,
        scope: str,
        play: Play,
        store: RunStore,
        counters: Counters,
        watch: DegenerationWatch,
        finished: Mapping[str, Dialogue],
        stage: Stage,
        at_most: int,
    ) -> None:
        self._scope = scope
        self._play = play
        self._store = store
        self._counters = counters
        self._watch = watch
        self._finished = finished
        self._stage = stage
        self._places = asyncio.Semaphore(at_most)
        self.finish = watch.finish

    async def __call__(self, plan: DialoguePlan) -> Dialogue | None:
        if (finished := self._finished.get(plan.dialogue_id)) is not None:
            self._stage.advance()
            self._watch.heard(finished)
            return finished
        async with self._places:
            try:
                dialogue = await self._play(plan)
            except RecordDropped as problem:
                self._counters.drop(problem)
                self._watch.dropped(problem)
                self._watch.check()
                self._stage.advance()
                return None
        await self._store.append(self._scope, "dialogues", [dialogue_row(plan.pair, dialogue)])
        self._stage.advance(tokens=self._counters.finished_dialogue(self._scope, dialogue))
        self._watch.heard(dialogue)
        self._watch.check()
        return dialogue
