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
from dataclasses import dataclass
from pathlib import Path

from stargate.data.build.config import GoldsConfig
from stargate.data.build.prompts import BuildPrompts
from stargate.data.build.report import GoldReport
from stargate.data.dataset import Dataset
from stargate.data.reading import Row
from stargate.data.text import tidy
from stargate.data.writing import gold_row, write_jsonl
from stargate.oracle.base import stream
from stargate.oracle.records import AnswerStatus, ChatRequest, ChatResult, Complete
from stargate.records.files import write_atomically
from stargate.seeds import derive_seed
from stargate.types import Persona, Task

GOLDS, MISSING, SPOOL = "golds.jsonl", "missing-golds.jsonl", "golds.spool"
Pairs = Sequence[tuple[Task, Persona]]


def pairs_of(data: Dataset) -> Pairs:
    """All pairs that get a gold: split by split, task by task."""
    return [(task, person) for split in data.splits for task, person in data.asked(split)]


@dataclass(frozen=True, slots=True)
class GoldWriter:
    """Asks for all golds of a folder and writes them."""

    prompts: BuildPrompts
    model: str
    config: GoldsConfig
    seed: int

    def requests(self, pairs: Pairs) -> Iterator[ChatRequest]:
        """One request per pair; `record` is its place in the order."""
        for index, (task, person) in enumerate(pairs):
            messages = self.prompts.messages(
                self.prompts.gold,
                name=person.name,
                persona=person.text,
                facts=list(person.facts),
                task=task.text,
            )
            # What is sampled is seeded, where the server honours seeds; greedy golds need none.
            seed = derive_seed(self.seed, "gold", task.id, person.id)
            yield ChatRequest(
                messages,
                self.model,
                self.config.max_tokens,
                temperature=self.config.temperature,
                seed=seed if self.config.temperature else None,
                purpose="gold",
                record=f"{index} {task.id}:{person.id}",
            )

    async def write(
        self,
        oracle: Complete,
        pairs: Pairs,
        folder: Path,
        width: int,
        report: GoldReport,
        advance: Callable[[ChatResult], None],
    ) -> None:
        """Writes golds.jsonl and missing-golds.jsonl into `folder`, and counts them in `report`.

        `advance` is called for each answer.
        """
        spool = folder / SPOOL
        offsets = array("q", bytes(8 * len(pairs)))
        with spool.open("wb") as out:
            end = 0
            async for request, result in stream(oracle, self.requests(pairs), width):
                line = json.dumps([result.status.value, result.text, result.detail]).encode()
                offsets[int(request.record.partition(" ")[0])] = end
                end += out.write(line + b"\n")
                advance(result)

        def write_golds(file: Path) -> None:
            write_jsonl(file, _in_order(pairs, spool, offsets, report, folder / MISSING))
            file.touch()  # there may be none

        write_atomically(folder / GOLDS, write_golds)
        spool.unlink()


def _in_order(
    pairs: Pairs, spool: Path, offsets: Sequence[int], report: GoldReport, missing: Path
) -> Iterator[Row]:
    """The rows of the golds; what is missing goes to its own file on the way."""
    with spool.open("rb") as lines, missing.open("w", encoding="utf-8") as misses:
        for (task, person), offset in zip(pairs, offsets, strict=True):
            lines.seek(offset)
            status, text, detail = json.loads(lines.readline())
            gold = tidy(text)
            if status == AnswerStatus.OK and gold:
                report.golds[task.split] += 1
                yield gold_row(task.id, person.id, gold)
                continue
            # Characters that no text may have were all there was: that is an empty answer.
            status = AnswerStatus.EMPTY if status == AnswerStatus.OK else status
            reason = f"oracle_{status}"
            report.missing.add(reason, f"{task.id}:{person.id}", detail)
            row = {"task_id": task.id, "persona_id": person.id, "reason": reason}
            misses.write(json.dumps({**row, "detail": detail}, ensure_ascii=False) + "\n")
    if not report.missing.counts:
        missing.unlink()
