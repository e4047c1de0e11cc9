"""Golds: one call per pair, streamed, written in the order of the pairs.

    pairs -> requests (at most `width` at a time) -> answers, in any order -> spool (one line each)
                                                                                |
    golds.jsonl, missing-golds.jsonl  <- in the order of the pairs <- (8 bytes per pair: where) <--+

The spool only puts answers in order; what survives a kill is the Oracle's cache. No text of a pair
is held in memory once its line is written.
"""

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stargate.data.build.config import GoldsConfig
from stargate.data.build.prompts import BuildPrompts
from stargate.data.build.report import GoldReport
from stargate.data.text import tidy
from stargate.data.writing import GoldRecord, Row, gold_row, write_jsonl
from stargate.oracle.base import stream
from stargate.oracle.records import AnswerStatus, ChatRequest, ChatResult, Complete
from stargate.seeds import derive_seed
from stargate.types import Persona, Task

GOLDS, MISSING = "golds.jsonl", "missing-golds.jsonl"
SPOOL, UNFINISHED = "golds.spool", "golds.unfinished"
_PairOf = tuple[Task, Persona]


class Pairs:
    """All pairs that get a gold: split by split, task by task. Nothing is stored per pair."""

    def __init__(self, tasks: Sequence[Task], personas: Sequence[Persona]) -> None:
        splits = dict.fromkeys(task.split for task in tasks)
        self._people = {s: [p for p in personas if p.split == s] for s in splits}
        self._tasks = [t for s in splits for t in tasks if t.split == s and t.needs_question]
        plain = [task for task in tasks if not task.needs_question]
        self.num_plain = sum(len(self._people[task.split]) for task in plain)

    def __len__(self) -> int:
        return sum(len(self._people[task.split]) for task in self._tasks)

    def __iter__(self) -> Iterator[_PairOf]:
        return ((task, person) for task in self._tasks for person in self._people[task.split])


class GoldWriter:
    """Asks for all golds of a folder and writes them. `advance` is called for each answer."""

    def __init__(
        self,
        prompts: BuildPrompts,
        model: str,
        config: GoldsConfig,
        seed: int,
        advance: Callable[[ChatResult], None] = lambda result: None,
    ) -> None:
        self._prompts = prompts
        self._model = model
        self._config = config
        self._seed = seed
        self._advance = advance

    def requests(self, pairs: Pairs) -> Iterator[ChatRequest]:
        """One request per pair; `record` is its place in the order."""
        for index, (task, person) in enumerate(pairs):
            messages = self._prompts.messages(
                self._prompts.gold,
                name=person.name,
                persona=person.text,
                facts=list(person.facts),
                task=task.text,
            )
            yield ChatRequest(
                messages,
                self._model,
                self._config.max_tokens,
                temperature=self._config.temperature,
                seed=self._seed_of(task, person),
                purpose="gold",
                record=f"{index} {task.id}:{person.id}",
            )

    def _seed_of(self, task: Task, person: Persona) -> int | None:
        """What is sampled is seeded, where the server honours seeds; greedy golds need none."""
        if self._config.temperature == 0:
            return None
        return derive_seed(self._seed, "gold", task.id, person.id)

    async def write(self, oracle: Complete, pairs: Pairs, folder: Path, width: int) -> GoldReport:
        """Writes golds.jsonl and missing-golds.jsonl into `folder`."""
        spool = folder / SPOOL
        offsets = array("q", bytes(8 * len(pairs)))
        with spool.open("wb") as out:
            end = 0
            async for request, result in stream(oracle, self.requests(pairs), width):
                line = json.dumps([result.status.value, result.text, result.detail]).encode()
                offsets[int(request.record.partition(" ")[0])] = end
                end += out.write(line + b"\n")
                self._advance(result)
        report = GoldReport(plain_pairs=pairs.num_plain)
        for name in (GOLDS, MISSING, UNFINISHED):
            (folder / name).unlink(missing_ok=True)
        rows = self._in_order(pairs, spool, offsets, report, folder / MISSING)
        if write_jsonl(folder / UNFINISHED, rows):
            (folder / UNFINISHED).rename(folder / GOLDS)
        spool.unlink()
        return report

    def _in_order(
        self, pairs: Pairs, spool: Path, offsets: Sequence[int], report: GoldReport, missing: Path
    ) -> Iterator[Row]:
        """The rows of the golds; what is missing goes to its own file on the way."""
        with spool.open("rb") as lines, missing.open("w", encoding="utf-8") as misses:
            for (task, person), offset in zip(pairs, offsets, strict=True):
                lines.seek(offset)
                status, text, detail = json.loads(lines.readline())
                gold = tidy(text)
                if status == AnswerStatus.OK and gold:
                    report.golds[task.split] += 1
                    yield gold_row(GoldRecord(task.id, person.id, gold))
                    continue
                # Characters that no text may have were all there was: that is an empty answer.
                status = AnswerStatus.EMPTY if status == AnswerStatus.OK else status
                reason = f"oracle_{status}"
                report.missing.add(reason, f"{task.id}:{person.id}", detail)
                row = {"task_id": task.id, "persona_id": person.id, "reason": reason}
                misses.write(json.dumps({**row, "detail": detail}, ensure_ascii=False) + "\n")
        if not report.missing.counts:
            missing.unlink()
