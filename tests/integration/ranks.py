"""Trainer ranks in processes of their own, as in a run, but without Ray."""

import asyncio
import contextlib
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stargate.actors.training.rank import TrainerRank
from stargate.actors.training.spec import TrainerSpec
from stargate.config.run import TrainerConfig
from stargate.resources.machine import free_port
from stargate.types import TrainingExample, TrainResult

# Seconds within which a stage of these tests must answer; a hang is a failure, not a wait.
_DEADLINE = 120.0


class Ranks:
    """`world_size` processes that meet over gloo and run one training stage after another."""

    def __init__(self, world_size: int, base_model_dir: Path, log_dir: Path) -> None:
        port = free_port()
        context = multiprocessing.get_context("spawn")
        self._specs = [
            TrainerSpec(
                base_model_dir=str(base_model_dir),
                config=TrainerConfig(),
                rank=rank,
                world_size=world_size,
                master_port=port,
                num_threads=1,
                log_file=str(log_dir / f"rank-{rank}.log"),
            )
            for rank in range(world_size)
        ]
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in self._specs:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def train(
        self,
        config: TrainerConfig,
        examples: Sequence[TrainingExample],
        start_dir: Path,
        output_dir: Path,
        *,
        base_dir: Path | None = None,
        num_threads: int = 1,
        checkpoint_dir: Path | None = None,
        objective: str = "weighted_nll",
        objective_settings: Mapping[str, float] = MappingProxyType({}),
    ) -> list[TrainResult]:
        """Each rank's result, with m_0 from `base_dir` if given.

        Raises the first rank's error, after all have answered.
        """
        for pipe, spec in zip(self._pipes, self._specs, strict=True):
            base = spec.base_model_dir if base_dir is None else str(base_dir)
            own = replace(
                spec,
                base_model_dir=base,
                config=config,
                num_threads=num_threads,
                objective=objective,
                objective_settings=dict(objective_settings),
            )
            kept = None if checkpoint_dir is None else str(checkpoint_dir)
            pipe.send((own, list(examples), str(start_dir), str(output_dir), kept))
        answers: list[Any] = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(_DEADLINE):
                raise TimeoutError(f"rank {rank} has not answered within {_DEADLINE} s")
            answers.append(pipe.recv())
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def kill(self, rank: int) -> None:
        """kill -9 on one rank."""
        self._processes[rank].kill()

    def log(self) -> str:
        """What rank 0 has printed so far."""
        file = self._specs[0].log_file
        assert file is not None
        return Path(file).read_text(encoding="utf-8")

    def close(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # it was killed
                pipe.send(None)
        for process in self._processes:
            process.join(timeout=20)
            if process.is_alive():
                process.kill()


def _serve(pipe: Connection) -> None:
    rank: TrainerRank | None = None
    while (asked := pipe.recv()) is not None:
        spec, examples, start_dir, output_dir, kept = asked
        try:
            rank = TrainerRank(spec)
            rank.start()
            pipe.send(asyncio.run(rank.train(examples, start_dir, output_dir, 1, kept)))
        except Exception as error:  # the test that asked is the one to see it
            pipe.send(error)
    if rank is not None:
        rank.shutdown()
