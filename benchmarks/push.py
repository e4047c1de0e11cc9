"""New weights into a running engine, against restarting it and against copying the bytes.

    two perturbed copies of the model, saved as the trainer saves (timed)
    a Questioner engine in its Ray actor:  [copy the bytes in memory, push A; copy, push B; ...]
    the same engine stopped and started anew on the last folder (timed): same answer, token by token

The engine stands in its actor and the pushes go through the loop's own WeightPusher, Ray calls and
the check of what arrived included.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stargate.actors.engines.spec import EngineSpec
from stargate.benchmarks.results import Measurement, Ratio, Say
from stargate.config.run import EngineConfig
from stargate.errors import EngineError
from stargate.launch.shared import positive
from stargate.resources.machine import describe_machine
from stargate.resources.models import resolve_model
from stargate.text.chat import Message, load_chat_format
from stargate.types import GenerateRequest, Generation, PushResult, Sampling

RATIOS: Mapping[str, Ratio] = {
    "vs_restart": Ratio(
        "numerator: saving the model folder + starting a new engine process on it until it is "
        "ready, as the authors do (stopping the old one is not counted); denominator: our push "
        "into the running engine (median). The same save precedes our push: figures has the ratio "
        "with it on both sides, too",
        goal=50.0,
    ),
    "vs_memcpy": Ratio(
        "numerator: our push (median); denominator: copying the bytes of the model's safetensors "
        "files from memory into freshly allocated memory by one thread, page faults included "
        "(median, alternating with the pushes)",
        goal=3.0,
        higher_is_better=False,
    ),
}
_PROMPT = "I would like to cook something tonight. What should I make for the two of us?"
_NEW_TOKENS = 32
_NOISE = 0.05  # of each tensor's own standard deviation: enough to change every answer


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    add = parser.add_argument
    add("--model", default="embedded", help="model to push")
    add("--pushes", type=positive, default=9, help="pushes to measure")
    add("--max-model-len", type=int, default=2048, help="context of the engine")


def measure(args: argparse.Namespace, say: Say) -> Measurement:
    """Measures everything in this run."""
    num_gpus = len(describe_machine().gpus)
    with TemporaryDirectory(prefix="stargate-bench-") as folder:
        say("saving two changed copies of the model")
        copies, saves = save_copies(resolve_model(args.model), Path(folder))
        spec = EngineSpec(
            role="questioner",
            model_dir=str(copies[1]),
            config=EngineConfig(max_model_len=args.max_model_len, cpu_kv_cache_gb=0.6),
            device="cuda" if num_gpus else "cpu",
            cpu_cores=None if num_gpus else str(min(os.sched_getaffinity(0))),
            log_file=str(Path(folder) / "engine.log"),
        )
        return asyncio.run(_measure(spec, copies, saves, args.pushes, num_gpus, say))


def save_copies(model_dir: Path, folder: Path) -> tuple[list[Path], list[float]]:
    """Two copies with seeded noise on every weight, saved as the trainer saves; seconds of each."""
    import torch

    from stargate.actors.modeling.model import load_model, save_model

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = load_model(str(model_dir), None, "cpu", False)
    copies, seconds = [], []
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight += (_NOISE * weight.float().std() * noise).to(weight.dtype)
        started = time.perf_counter()
        save_model(model, dict(model.named_parameters()), str(model_dir), str(folder / name))
        seconds.append(time.perf_counter() - started)
        copies.append(folder / name)
    return copies, seconds


async def _measure(
    spec: EngineSpec,
    copies: list[Path],
    saves: list[float],
    num_pushes: int,
    num_gpus: int,
    say: Say,
) -> Measurement:
    import numpy as np
    import ray
    import torch

    from stargate.actors.runtime.actor_slots import HeldWeights
    from stargate.actors.runtime.spawn import start_ray
    from stargate.actors.runtime.supervisor import Supervisor
    from stargate.actors.runtime.weight_pusher import WeightPusher
    from stargate.records.model_folder import weight_files

    start_ray(num_gpus)
    try:
        say("starting the engine")
        engine, first_start = await _start(spec)
        held = HeldWeights(spec.model_dir)
        pusher = WeightPusher([engine], Supervisor([], held, 0, ray.kill, say))
        files = [np.fromfile(file, np.uint8) for file in weight_files(copies[0])]
        source = torch.from_numpy(np.concatenate(files))
        copy_seconds(source)
        # The engine's first push goes vLLM's own way and shows where each tensor belongs.
        first = await pusher(str(copies[0]), 1)
        copying, pushed = [], []
        for number in range(num_pushes):
            copying.append(copy_seconds(source))
            pushed.append(await pusher(str(copies[number % 2]), number + 2))
        say(f"pushed {num_pushes} times; restarting the engine on what was pushed last")
        answer = await _answer(engine, spec)
        stopping = await _stop(engine)
        last = replace(spec, model_dir=str(copies[(num_pushes - 1) % 2]))
        fresh, restart = await _start(last)
        same = answer == await _answer(fresh, last)
        await _stop(fresh)
    finally:
        ray.shutdown()
    times = Times(saves, first_start, stopping, restart, copying, first, pushed)
    return summarise(times, len(source), same)


@dataclass(frozen=True)
class Times:
    """All that was timed, in seconds."""

    saves: list[float]
    first_start: float
    stopping: float
    restart: float
    copying: list[float]
    first_push: PushResult
    pushed: list[PushResult]


def summarise(times: Times, num_bytes: int, same: bool) -> Measurement:
    """The ratios and figures. Raises EngineError if push and restart did not do the same work."""
    if not same:
        raise EngineError("the engine answers otherwise after a push than after a restart")
    push = statistics.median(result.seconds for result in times.pushed)
    copy, save = statistics.median(times.copying), statistics.median(times.saves)
    phases = {
        name: statistics.median(result.phases[name] for result in times.pushed)
        for name in times.pushed[0].phases
    }
    return Measurement(
        {"vs_restart": (save + times.restart) / push, "vs_memcpy": push / copy},
        {
            "bytes": num_bytes,
            "push_s": push,
            "first_push_s": times.first_push.seconds,
            "push_min_s": min(result.seconds for result in times.pushed),
            "push_max_s": max(result.seconds for result in times.pushed),
            "phases_s": {**phases, "ray_and_versions": push - sum(phases.values())},
            "memcpy_s": copy,
            "save_s": save,
            "restart_s": times.restart,
            "first_start_s": times.first_start,
            "stop_s": times.stopping,
            "vs_restart_save_on_both_sides": (save + times.restart) / (save + push),
            "same_answer_as_restarted": same,
        },
    )


def copy_seconds(source: Any) -> float:
    """Copies a byte tensor into fresh memory, as one thread does."""
    import torch

    torch.set_num_threads(1)
    started = time.perf_counter()
    copied = source.clone()
    seconds = time.perf_counter() - started
    if copied.data_ptr() == source.data_ptr():
        raise RuntimeError("nothing was copied")
    return seconds


async def _start(spec: EngineSpec) -> tuple[Any, float]:
    """An engine in its Ray actor, as spawn.py makes it; seconds until it was ready."""
    from stargate.actors.engines.engine import Engine
    from stargate.actors.engines.spec import engine_environment
    from stargate.actors.rpc.remote import remote
    from stargate.actors.runtime.spawn import actor_class

    started = time.perf_counter()
    num_gpus = spec.config.tensor_parallel_size if spec.device == "cuda" else 0
    engine = actor_class(Engine, num_gpus, engine_environment(spec)).remote(spec)
    await remote(engine.start.remote())
    return engine, time.perf_counter() - started


async def _answer(engine: Any, spec: EngineSpec) -> tuple[int, ...]:
    """A greedy text: the same for the same weights."""
    from stargate.actors.rpc.remote import remote

    prompt_ids = load_chat_format(spec.model_dir, False).prompt_ids([Message("user", _PROMPT)])
    sampling = Sampling(0.0, 1.0, _NEW_TOKENS, 0)
    request = GenerateRequest("answer", "answer", prompt_ids, sampling)
    generation: Generation = await remote(engine.generate.remote(request))
    return generation.token_ids


async def _stop(engine: Any) -> float:
    """Ends the engine in order; seconds that it took."""
    from stargate.actors.runtime.spawn import end_actors

    started = time.perf_counter()
    await end_actors([engine])
    return time.perf_counter() - started
