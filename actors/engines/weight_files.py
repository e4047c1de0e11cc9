"""Weights on their way into an engine: which files, are they whole, do they fit.

    a saved Hugging Face folder -> Engine.load_weights (check_compatible) -> vLLM's worker
        -> weight_transfer.FileWeightTransfer, known to vLLM by `register`

Only file headers are read here, so neither torch nor vLLM is needed. `register` is the entry point
(group `vllm.general_plugins`) that vLLM calls in every process that it starts.
"""

import ctypes
import multiprocessing
import os
import signal
from dataclasses import dataclass
from math import prod
from pathlib import Path

from stargate.errors import ModelError
from stargate.records.model_folder import read_header, weight_files

BACKEND = "stargate_file"
_PR_SET_PDEATHSIG = 1  # prctl(2)
# Tensors that a checkpoint may leave out because they are tied to the input embeddings.
_TIED = frozenset({"lm_head.weight"})


def register() -> None:
    """Makes `stargate_file` known to vLLM; its processes wait in peace on CPU and end with ours.

    Called in every vLLM process, maybe more than once.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from stargate.actors.engines.patches import sleep_instead_of_spinning
    from stargate.actors.process.log_escaping import escape_output_of_children

    # register_engine refuses a name that it has, and there is no public way to ask for it.
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "stargate.actors.engines.weight_transfer", "FileWeightTransfer"
        )
    sleep_instead_of_spinning()
    escape_output_of_children()
    if multiprocessing.parent_process() is not None:
        _end_with_parent()


def _end_with_parent() -> None:
    """Has the kernel kill this process when the one that started it dies, however it dies.

    vLLM's core does not look after its parent. Ray kills an actor's children, but not if the actor
    and the driver, and with it Ray, are killed at the same moment (found by `stargate bench chaos`:
    a core of 1.9 GB stayed for ever).
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:  # not Linux
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it has died before
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a safetensors file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_headers(location: str | Path) -> dict[str, TensorHeader]:
    """All tensors of a model, by name. Raises ModelError for a torn or foreign file."""
    return {
        name: TensorHeader(str(tensor["dtype"]), tuple(tensor["shape"]))
        for file in weight_files(location)
        for name, tensor in read_header(file).items()
    }


def check_compatible(location: str | Path, served: dict[str, TensorHeader]) -> None:
    """Raises ModelError unless `location` holds the tensors of the model that an engine serves.

    Asked before the engine is touched: in an update vLLM keeps the old values of what is missing.
    """
    pushed = read_headers(location)
    missing = sorted(served.keys() - pushed.keys() - _TIED)
    unknown = sorted(pushed.keys() - served.keys() - _TIED)
    if missing or unknown:
        what, names = ("miss", missing) if missing else ("have the unknown", unknown)
        raise ModelError(
            f"{location}: these weights {what} {names[0]} ({len(names)} such tensors): "
            "they are of another model than the engine's"
        )
    for name in sorted(served.keys() & pushed.keys()):
        if pushed[name].shape != served[name].shape:
            raise ModelError(
                f"{location}: {name} must have shape {list(served[name].shape)}, "
                f"got {list(pushed[name].shape)}"
            )


def num_parameters(tensors: dict[str, TensorHeader]) -> int:
    """How many numbers a model's files hold."""
    return sum(prod(tensor.shape) for tensor in tensors.values())
