"""The order of a build.

    lock OUT -> finished? -> OUT.partial -> tasks, personas (once) -> golds -> report -> OUT

Raises BudgetError, OracleError, DataError, ... at any point; the same call goes on from there.
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from stargate.data.build.config import (
    BuildConfig,
    FilePersonas,
    GeneratedPersonas,
    identity_of,
)
from stargate.data.build.folder import BuildFolder
from stargate.data.build.golds import GoldWriter, pairs_of
from stargate.data.build.personas import Cast, PersonaWriter
from stargate.data.build.prompts import BuildPrompts
from stargate.data.build.rehearsal import RehearsalOracle
from stargate.data.build.report import GoldReport, SourceReport
from stargate.data.build.sources import read_build_personas, read_build_tasks
from stargate.data.cleaning import Cleaner
from stargate.data.dataset import Dataset
from stargate.data.findings import ImportReport
from stargate.errors import DataError, OracleError
from stargate.monitoring.progress import Progress, Stage
from stargate.oracle.base import CachedOracle
from stargate.oracle.cost import Estimate
from stargate.oracle.records import ChatResult, Complete
from stargate.types import Persona, Task

# The money paid is read from the disk so often, for the progress line (s).
_METER_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a build would take. `num_standins` personas are not known yet."""

    estimate: Estimate
    num_tasks: dict[str, int]
    num_personas: dict[str, int]
    num_pairs: int
    num_standins: int


class Build:
    """One build of one config. `model` is the name that requests carry (the local engine's own)."""

    def __init__(
        self, config: BuildConfig, prompts: BuildPrompts, progress: Progress, model: str
    ) -> None:
        self._config = config
        self._prompts = prompts
        self._progress = progress
        self.model = model
        self._golds = GoldWriter(prompts, model, config.golds, config.seed)
        self.folder = BuildFolder(config.out, identity_of(config, prompts.model_dump(mode="json")))

    async def run(self, oracle: CachedOracle, *, accept_failed: bool = False) -> GoldReport:
        """Builds OUT; call it inside `folder.locked()`, when it is not finished.

        Raises OracleError if some pairs were never answered, unless `accept_failed`.
        """
        started = time.monotonic()
        resumed = self.folder.begin()
        if kept := self.folder.sources():
            sources, source_report = kept
            there = f"{len(sources.tasks)} tasks and {len(sources.personas)} personas are there"
            self._progress.say(f"going on with {self.folder.partial}: {there}")
        else:
            sources, source_report = await self._make_sources(oracle, oracle)
            self.folder.keep_sources(sources, source_report)
        pairs = pairs_of(sources)
        golds = GoldReport(sum(len(sources.plain_pairs(split)) for split in sources.splits))
        with self._progress.stage("golds", len(pairs), "pairs") as stage:
            advance = _Meter(oracle, stage).answered
            folder, width = self.folder.partial, self._config.width
            await self._golds.write(oracle, pairs, folder, width, golds, advance)
        self.folder.write_report(
            {
                "config": self._config.model_dump(mode="json"),
                "model": self.model,
                "tasks": _per_split(sources.tasks.values()),
                "personas": _per_split(sources.personas.values()),
                **golds.to_json(),
                "sources": source_report,
                "cost": asdict(oracle.meter()),
                "resumed": resumed,
                "seconds": round(time.monotonic() - started, 3),
            }
        )
        self._check(golds, accept_failed)
        self.folder.finish()
        return golds

    async def rehearse(self, oracle: CachedOracle) -> Rehearsal:
        """What `run` would ask now, without asking it. Writes nothing."""
        personas = self._config.personas
        min_words = personas.min_words if isinstance(personas, GeneratedPersonas) else 0
        stand_in = RehearsalOracle(oracle, min_words, personas.facts.minimum)
        sources, _ = self.folder.sources() or await self._make_sources(stand_in, None)
        pairs = pairs_of(sources)
        return Rehearsal(
            stand_in.estimate(self._golds.requests(pairs)),
            _per_split(sources.tasks.values()),
            _per_split(sources.personas.values()),
            len(pairs),
            stand_in.num_standins,
        )

    async def _make_sources(
        self, oracle: Complete, metered: CachedOracle | None
    ) -> tuple[Dataset, dict[str, Any]]:
        """Reads and writes tasks and personas. `metered` None: nothing is shown."""
        config, wanted = self._config, self._config.personas
        found = ImportReport(source="build", source_format=config.tasks.type)
        cleaner = Cleaner(found, config.keep_split)
        report = SourceReport()
        tasks = read_build_tasks(config.tasks, cleaner)
        if isinstance(wanted, GeneratedPersonas):
            total = sum(wanted.count.values())
        else:
            given = list(read_build_personas(wanted, cleaner).values())
            total = sum(not _has_given_facts(p, cleaner) for p in given)
        with self._progress.stage("personas", total, "personas") as stage:
            advance = _Meter(metered, stage).finished if metered else lambda count: None
            writer = PersonaWriter(oracle, self._prompts, self.model, config.seed, report, advance)
            if isinstance(wanted, GeneratedPersonas):
                personas = await writer.write(wanted)
                origins = {p.id: ("extracted",) * len(p.facts) for p in personas}
            else:
                kept = _without_twins(given, wanted.max_similarity, config.keep_split, report)
                personas, origins = await _with_facts(kept, wanted, writer, cleaner, report)
        report.import_report = found.to_json()
        _check_splits(tasks.values(), personas)
        people = {person.id: person for person in personas}
        return Dataset("", tasks, people, fact_origins=origins), report.to_json()

    def _check(self, golds: GoldReport, accept_failed: bool) -> None:
        """What must not become OUT. Raises OracleError or DataError."""
        partial = self.folder.partial
        if golds.num_failed and not accept_failed:
            raise OracleError(
                f"{golds.num_failed} pairs were not answered (see {partial}/build-report.json); "
                "the same command asks for them again, --accept-failed finishes without them"
            )
        if not golds.num_golds:
            reasons = ", ".join(f"{n} x {why}" for why, n in golds.missing.counts.most_common())
            raise DataError(
                f"no pair got a gold ({reasons or 'there is none that needs one'}); "
                f"see {partial}/build-report.json"
            )


class _Meter:
    """Keeps a stage's line up to date: rate, cached and missing answers, money so far."""

    def __init__(self, oracle: CachedOracle, stage: Stage) -> None:
        self._oracle = oracle
        self._stage = stage
        self._counts: Counter[str] = Counter()
        self._started = time.monotonic()
        self._read_at = 0.0

    def answered(self, result: ChatResult) -> None:
        """One more answer."""
        self._counts["done"] += 1
        self._counts["cached"] += result.cached
        self._counts["missing"] += not result.ok
        self.finished(1)

    def finished(self, count: int) -> None:
        """So many more are done."""
        self._show()
        self._stage.advance(count)

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._read_at < _METER_EVERY_S:
            return
        self._read_at = now
        meter = self._oracle.meter()
        paid = f"{meter.money + meter.lost_money:.4f} paid"
        if meter.unpriced_calls:
            paid += f" + {meter.unpriced_calls} calls without a price"
        parts = [paid]
        if done := self._counts["done"]:
            parts.insert(0, f"{done / max(now - self._started, 1e-9):.0f}/s")
            parts += [f"{self._counts[key]} {key}" for key in ("cached", "missing")]
        self._stage.note(", ".join(parts))


async def _with_facts(
    kept: list[Persona],
    config: FilePersonas,
    writer: PersonaWriter,
    cleaner: Cleaner,
    report: SourceReport,
) -> tuple[list[Persona], dict[str, tuple[str, ...]]]:
    """Personas of a file, all with facts, and where these come from."""
    origins = {person.id: cleaner.data.fact_origins.get(person.id, ()) for person in kept}
    bare = [person for person in kept if not _has_given_facts(person, cleaner)]
    if config.without_facts == "sentences" or not bare:
        return kept, origins
    extracted = await writer.extract(bare, config)
    for person in bare:
        if person.id in extracted:
            origins[person.id] = ("extracted",) * len(extracted[person.id])
        else:
            report.personas.add("facts_from_sentences", person.id, "kept, with its sentences")
    return [replace(p, facts=extracted.get(p.id, p.facts)) for p in kept], origins


def _has_given_facts(person: Persona, cleaner: Cleaner) -> bool:
    """Whether the facts came with the persona; else the Cleaner took its sentences."""
    origins = cleaner.data.fact_origins.get(person.id, ())
    return not any(origin.startswith("sentence:") for origin in origins) and bool(person.facts)


def _without_twins(
    given: list[Persona], max_similarity: float, keep_split: str, report: SourceReport
) -> list[Persona]:
    """Leaves out who is nearly the same as a persona of another split."""
    casts: dict[str, Cast] = {}
    kept = set()
    for person in sorted(given, key=lambda p: p.split != keep_split):  # stable
        others = (cast.twin(person.text) for split, cast in casts.items() if split != person.split)
        if twin := next(filter(None, others), None):
            detail = f"like {twin} of another split"
            report.personas.add("persona_like_another", person.id, detail)
        else:
            kept.add(person.id)
            cast = casts.setdefault(person.split, Cast(max_similarity))
            cast.add(person.id, person.name, person.text)
    return [person for person in given if person.id in kept]


def _check_splits(tasks: Iterable[Task], personas: Iterable[Persona]) -> None:
    """Every split has both. Raises DataError."""
    with_tasks, with_personas = _per_split(tasks), _per_split(personas)
    for split in [*with_tasks, *with_personas]:
        if not (with_tasks.get(split) and with_personas.get(split)):
            raise DataError(
                f"split {split!r} has {with_tasks.get(split, 0)} tasks and "
                f"{with_personas.get(split, 0)} personas: it needs both "
                "(tasks.rows, personas.count or personas.rows)"
            )


def _per_split(records: Iterable[Task] | Iterable[Persona]) -> dict[str, int]:
    return dict(Counter(record.split for record in records))
