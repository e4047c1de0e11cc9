"""Backends that the steps' trainers run with, in processes of their own."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stargate.actors.training.deepspeed_backend import DeepSpeedBackend
from stargate.actors.training.spec import TrainerSpec
from tests.gpu.steps.common import DIES_AT


class Measured(DeepSpeedBackend):
    """Writes the peak of a stage's memory and its save's seconds beside the model."""

    def __init__(self, spec: TrainerSpec, start_model_dir: str) -> None:
        if spec.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        super().__init__(spec, start_model_dir)

    def settle(self) -> None:
        self._peak = torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None
        self._settling = time.perf_counter()
        super().settle()

    def save(self, output_dir: str) -> None:
        started = time.perf_counter()
        super().save(output_dir)
        told = {
            "peak": self._peak,
            "settle_seconds": round(started - self._settling, 1),
            "save_seconds": round(time.perf_counter() - started, 1),
        }
        Path(output_dir).with_suffix(".json").write_text(json.dumps(told))


class Mortal(DeepSpeedBackend):
    """Is killed in the step that the environment names."""

    _num_updates = 0

    def update(self, rate: float, check: Callable[[float], None]) -> float:
        self._num_updates += 1
        if str(self._num_updates) == os.environ.get(DIES_AT):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(rate, check)
