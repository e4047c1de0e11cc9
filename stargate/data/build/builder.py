"""The order of a build.

    lock OUT -> finished? -> OUT.partial -> tasks, personas (once) -> golds -> report -> OUT

Raises BudgetError, OracleError, DataError, ... at any point; the same call goes on from there.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from stargate.data.blemishes import ImportReport
from stargate.data.build.config import (
    BuildConfig,
    FilePersonas,
    GeneratedPersonas,
    identity_of,
)
from stargate.data.build.folder import BuildFolder
from stargate.data.build.golds import GoldWriter, Pairs
from stargate.data.build.personas import Cast, PersonaWriter
from stargate.data.build.prompts import BuildPrompts
from stargate.data.build.rehearsal import RehearsalOracle
from stargate.data.build.report import GoldReport, SourceReport, meter_json
from stargate.data.build.sources import read_build_personas, read_build_tasks
from stargate.data.cleaning import Cleaner
from stargate.errors import DataError
from stargate.monitoring.progress import Progress, Stage
from stargate.oracle.base import CachedOracle
from stargate.oracle.cost import Estimate
from stargate.oracle.errors import OracleError
from stargate.oracle.records import ChatResult, Complete
from stargate.types import Persona, Task

# The money paid is read from the disk so often, for the progress line (s).
_METER_EVERY_S = 1.0


@dataclass(frozen=True)
class Sources:
    """Tasks and personas, complete, and how they came about."""

    tasks: list[Task]
    personas: list[Persona]
    report: Mapping[str, Any]
    origins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


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
        self._model = model
        self.folder = BuildFolder(config.out, identity_of(config, prompts.content))

    async def run(self, oracle: CachedOracle, *, accept_failed: bool = False) -> GoldReport:
        """Builds OUT; call it inside `folder.locked()`, when it is not finished.

        Raises OracleError if some pairs were never answered, unless `accept_failed`.
        """
        started = time.monotonic()
        resumed = self.folder.begin()
        sources = self._kept_sources()
        if sources is None:
            sources = await self._make_sources(oracle, oracle)
            self.folder.keep_sources(
                sources.tasks, sources.personas, sources.origins, sources.report
            )
        else:
            self._progress.say(f"going on with {self.folder.partial}: {_summary(sources)}")
        pairs = self._pairs(sources)
        with self._progress.stage("golds", len(pairs), "pairs") as stage:
            meter = _Meter(oracle, stage)
            writer = self._gold_writer(meter.advance)
            golds = await writer.write(oracle, pairs, self.folder.partial, self._config.width)
        self.folder.write_report(
            {
                "config": self._config.model_dump(mode="json"),
                "model": self._model,
                "tasks": _per_split(sources.tasks),
                "personas": _per_split(sources.personas),
                **golds.to_json(),
                "sources": sources.report,
                "cost": meter_json(oracle.meter()),
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
        sources = self._kept_sources() or await self._make_sources(stand_in, None)
        pairs = self._pairs(sources)
        requests = self._gold_writer(lambda result: None).requests(pairs)
        return Rehearsal(
            stand_in.estimate(requests),
            _per_split(sources.tasks),
            _per_split(sources.personas),
            len(pairs),
            stand_in.num_standins,
        )

    def _kept_sources(self) -> Sources | None:
        kept = self.folder.sources()
        return None if kept is None else Sources(*kept)

    async def _make_sources(self, oracle: Complete, metered: CachedOracle | None) -> Sources:
        """Reads and writes tasks and personas. `metered` None: nothing is shown."""
        config = self._config
        cleaner = Cleaner(ImportReport("build", config.tasks.type), config.keep_split)
        report = SourceReport()
        tasks = list(read_build_tasks(config.tasks, cleaner).values())
        if isinstance(config.personas, GeneratedPersonas):
            total = sum(config.personas.count.values())
        else:
            given = list(read_build_personas(config.personas, cleaner).values())
            total = sum(not _has_given_facts(p, cleaner) for p in given)
        with self._progress.stage("personas", total, "personas") as stage:
            shown = stage if metered is not None else None
            meter = None if metered is None else _Meter(metered, stage)

            def advance(count: int) -> None:
                if shown is not None and meter is not None:
                    meter.show()
                    shown.advance(count)

            writer = PersonaWriter(oracle, self._prompts, self._model, config.seed, report, advance)
            if isinstance(config.personas, GeneratedPersonas):
                personas = await writer.write(config.personas)
                origins = {p.id: ("extracted",) * len(p.facts) for p in personas}
            else:
                personas, origins = await _complete_personas(
                    given, config.personas, writer, cleaner, report, config.keep_split
                )
        report.import_report = cleaner.report.to_json()
        _check_splits(tasks, personas)
        return Sources(tasks, personas, report.to_json(), origins)

    def _gold_writer(self, advance: Callable[[ChatResult], None]) -> GoldWriter:
        config = self._config
        return GoldWriter(self._prompts, self._model, config.golds, config.seed, advance)

    def _pairs(self, sources: Sources) -> Pairs:
        return Pairs(sources.tasks, sources.personas)

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

    def advance(self, result: ChatResult) -> None:
        """One more answer."""
        self._counts["done"] += 1
        self._counts["cached"] += result.cached
        self._counts["missing"] += not result.ok
        self.show()
        self._stage.advance()

    def show(self) -> None:
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


async def _complete_personas(
    given: Sequence[Persona],
    config: FilePersonas,
    writer: PersonaWriter,
    cleaner: Cleaner,
    report: SourceReport,
    keep_split: str,
) -> tuple[list[Persona], dict[str, tuple[str, ...]]]:
    """Personas of a file: without those that another split nearly has, all with facts."""
    kept = _without_twins(given, config.max_similarity, keep_split, report)
    origins = dict(cleaner.fact_origins)
    bare = [p for p in kept if not _has_given_facts(p, cleaner)]
    if config.without_facts == "sentences" or not bare:
        return kept, {p.id: origins.get(p.id, ()) for p in kept}
    extracted = await writer.extract(bare, config)
    personas = []
    for person in kept:
        if person.id in extracted:
            person = replace(person, facts=extracted[person.id])
            origins[person.id] = ("extracted",) * len(person.facts)
        elif person in bare:
            report.personas.add("facts_from_sentences", person.id, "kept, with its sentences")
        personas.append(person)
    return personas, {p.id: origins.get(p.id, ()) for p in personas}


def _has_given_facts(person: Persona, cleaner: Cleaner) -> bool:
    """Whether the facts came with the persona; else the Cleaner took its sentences."""
    origins = cleaner.fact_origins.get(person.id, ())
    return not any(origin.startswith("sentence:") for origin in origins) and bool(person.facts)


def _without_twins(
    given: Sequence[Persona], max_similarity: float, keep_split: str, report: SourceReport
) -> list[Persona]:
    """Leaves out who is nearly the same as a persona of another split."""
    casts: dict[str, Cast] = {}
    kept = set()
    for person in sorted(given, key=lambda p: p.split != keep_split):  # stable
        others = (cast.twin(person.text) for split, cast in casts.items() if split != person.split)
        twin = next((other for other in others if other is not None), None)
        if twin is not None:
            detail = f"like {twin} of another split"
            report.personas.add("persona_like_another", person.id, detail)
            continue
        kept.add(person.id)
        casts.setdefault(person.split, Cast(max_similarity)).add(
            person.id, person.name, person.text
        )
    return [person for person in given if person.id in kept]


def _check_splits(tasks: Sequence[Task], personas: Sequence[Persona]) -> None:
    """Every split has both. Raises DataError."""
    with_tasks, with_personas = _per_split(tasks), _per_split(personas)
    for split in [*with_tasks, *with_personas]:
        if not (with_tasks.get(split) and with_personas.get(split)):
            raise DataError(
                f"split {split!r} has {with_tasks.get(split, 0)} tasks and "
                f"{with_personas.get(split, 0)} personas: it needs both "
                "(tasks.rows, personas.count or personas.rows)"
            )


def _per_split(records: Sequence[Task] | Sequence[Persona]) -> dict[str, int]:
    return dict(Counter(record.split for record in records))


def _summary(sources: Sources) -> str:
    return f"{len(sources.tasks)} tasks and {len(sources.personas)} personas are there"


def describe(rehearsal: Rehearsal) -> dict[str, Any]:
    """A rehearsal as plain values."""
    return asdict(rehearsal)
