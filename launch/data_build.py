"""Build a dataset from a config: tasks from a file or the hub, personas and golds from an Oracle.

The subcommand `stargate data build`; data.py lists it.
"""

import argparse
import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stargate.errors import EngineError

if TYPE_CHECKING:
    from stargate.config.oracle import LocalOracleConfig
    from stargate.data.build.builder import Build
    from stargate.data.build.config import BuildConfig
    from stargate.monitoring.progress import Progress
    from stargate.oracle.base import CachedOracle
    from stargate.types import GenerateRequest, Generation

HELP = "build tasks, personas and golds with an Oracle"
DESCRIPTION = """Build a dataset: tasks from a file or the hub, personas and golds from an Oracle.

CONFIG is a YAML file or the name of a packaged one (paper, local); key=value overrides it. The
dataset appears as OUT when it is whole; until then it is OUT.partial. However the command ends, the
same command goes on where it was, and no call is paid twice: the answers are in OUT.oracle.sqlite.

  --dry-run        say how many calls, tokens and how much money it would take, and ask nothing
  --accept-failed  finish although some pairs were never answered

exit codes:
  0  OUT is whole (also when it was before)
  8  the Oracle rejects us or does not answer    9  max_cost is reached

examples:
  stargate data build paper oracle.model=gpt-4o --dry-run
  stargate data build my-build.yaml oracle.cost.max_cost=20
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `data build`."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a packaged build config")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. out=data/mine")
    parser.add_argument("--dry-run", action="store_true", help="only say what it would take")
    parser.add_argument(
        "--accept-failed", action="store_true", help="finish without pairs that nobody answered"
    )


def run(args: argparse.Namespace) -> int:
    """Builds, and returns the exit code."""
    from stargate.data.build.config import load_build_config
    from stargate.monitoring.progress import make_progress

    config = load_build_config(args.config, args.overrides)
    # A local engine sends what is printed into its log: ours goes to a copy of the screen's handle.
    with os.fdopen(os.dup(1), "w", buffering=1) as screen, redirect_stdout(screen):
        progress = make_progress()
        if args.dry_run:
            asyncio.run(_rehearse(config, progress))
        else:
            asyncio.run(_build(config, progress, args.accept_failed))
    return 0


async def _build(config: "BuildConfig", progress: "Progress", accept_failed: bool) -> None:
    from stargate.oracle.open import open_oracle

    build, local = _prepare(config, progress)
    with build.folder.locked():
        if _is_finished(build, config, progress):
            return
        opened = local.open(progress) if local else open_oracle(config.oracle, config.cache_path)
        async with opened as oracle:
            report = await build.run(oracle, accept_failed=accept_failed)
            meter = oracle.meter()
    progress.say(
        f"{config.out}: {report.num_golds} golds; {meter.calls} calls, "
        f"{meter.prompt_tokens:,} + {meter.completion_tokens:,} tokens, {meter.money:.4f} paid"
        + (f" (+ {meter.lost_money:.4f} perhaps)" if meter.lost_calls else "")
    )
    for reason, count in report.missing.counts.most_common():
        progress.say(f"without a gold: {count} x {reason} (missing-golds.jsonl)")
    progress.say(f"all of it: {config.out / 'build-report.json'}")


async def _rehearse(config: "BuildConfig", progress: "Progress") -> None:
    from stargate.oracle.open import open_oracle

    build, _ = _prepare(config, progress)
    if _is_finished(build, config, progress):
        return

    async def generate(request: "GenerateRequest") -> "Generation":
        raise EngineError(f"{request.request_id}: a dry run starts no engine")

    with TemporaryDirectory() as nowhere:
        # Opening a cache makes it: a dry run leaves nothing behind.
        known = config.cache_path.is_file()
        async with open_oracle(
            config.oracle,
            config.cache_path if known else Path(nowhere) / "empty.sqlite",
            generate=generate,
            render=lambda messages: (),
            model=build.model,
        ) as oracle:
            rehearsal, meter = await build.rehearse(oracle), oracle.meter()
    estimate = rehearsal.estimate
    for split, tasks in rehearsal.num_tasks.items():
        people = rehearsal.num_personas.get(split, 0)
        progress.say(f"split {split}: {tasks} tasks, {people} personas")
    progress.say(f"pairs: {rehearsal.num_pairs}")
    progress.say(f"calls to pay: {estimate.calls} ({estimate.cached} answered already)")
    progress.say(
        f"tokens: about {estimate.prompt_tokens:,} in prompts, at most "
        f"{estimate.completion_tokens:,} in answers"
    )
    if estimate.money is None:
        progress.say(f"money: unknown; give oracle.cost.prices.{config.model} a price")
    else:
        progress.say(
            f"money: at most about {estimate.money:.2f} in the price table's currency, "
            f"{meter.money + meter.lost_money:.2f} paid before"
        )
    if rehearsal.num_standins:
        progress.say(
            f"{rehearsal.num_standins} personas are not written yet: each that has to be written "
            "again takes two more calls"
        )
    cost = getattr(config.oracle, "cost", None)
    if cost is not None and cost.max_cost is not None:
        progress.say(f"max_cost: {cost.max_cost:g}; the build stops before it is exceeded")


def _is_finished(build: "Build", config: "BuildConfig", progress: "Progress") -> bool:
    if finished := build.folder.is_finished():
        progress.say(f"{config.out}: finished before by this very build; nothing to do")
    return finished


def _prepare(config: "BuildConfig", progress: "Progress") -> tuple["Build", "_Local | None"]:
    """The build, and the local model if the Oracle is one. Raises StargateError."""
    from stargate.config.oracle import LocalOracleConfig
    from stargate.data.build.builder import Build
    from stargate.data.build.prompts import load_build_prompts

    oracle = config.oracle
    local = _Local(config, oracle) if isinstance(oracle, LocalOracleConfig) else None
    model = local.name if local is not None else config.model
    return Build(config, load_build_prompts(config.prompts), progress, model), local


class _Local:
    """The model folder of a local Oracle. `name` changes with the weights: it is in each key."""

    def __init__(self, config: "BuildConfig", oracle: "LocalOracleConfig") -> None:
        from stargate.resources.models import resolve_model

        self._config = config
        self._oracle = oracle
        self._folder = resolve_model(oracle.model or "embedded")
        weights = sorted(self._folder.glob("*.safetensors"))
        # Names, sizes and times: reading many gigabytes only to name them would take minutes.
        state = [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in weights]
        digest = hashlib.sha256("\n".join([str(self._folder), *state]).encode()).hexdigest()
        self.name = f"{self._folder.name}@{digest[:12]}"

    @asynccontextmanager
    async def open(self, progress: "Progress") -> "AsyncIterator[CachedOracle]":
        """An Oracle that is one vLLM engine of this process, started and ended here."""
        from stargate.actors.engines.core_watch import looked_after
        from stargate.actors.engines.engine import Engine
        from stargate.actors.engines.spec import EngineSpec
        from stargate.oracle.open import open_oracle
        from stargate.resources.machine import describe_machine
        from stargate.text.chat import load_chat_format
        from stargate.text.formats import heard_from

        config, folder = self._config, str(self._folder)
        log = config.cache_path.with_name(f"{config.out.name}.engine.log")
        spec = EngineSpec(
            role="oracle",
            model_dir=folder,
            config=config.engine,
            seed=config.seed,
            device="cuda" if describe_machine().gpus else "cpu",
            cpu_cores=config.engine.cpu_cores,
            log_file=str(log),
        )
        engine = Engine(spec)
        progress.say(f"starting an engine with {self._folder.name} (log: {log})")
        try:
            await engine.start()
            chat = load_chat_format(folder)
            async with (
                looked_after(engine),
                open_oracle(
                    self._oracle,
                    config.cache_path,
                    generate=heard_from(engine.generate, chat),
                    render=chat.prompt_ids,
                    model=self.name,
                ) as oracle,
            ):
                yield oracle
        finally:
            await engine.shutdown()
