"""(torch) What trains: the library that holds the model on each rank and makes the optimizer steps.

    join: the ranks of this process meet, once -> Backend(spec, folder): one training stage
    forward, backward for each micro-batch -> update -> ... -> settle -> save -> close

To add one: a class in a file of its own and a line in `_BACKENDS`, or one from outside, named
"package.module:Class". What is done with it is stage.py's, checkpoints.py's and rank.py's.
"""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from stargate.actors.training.batches import Batch
from stargate.actors.training.spec import TrainerSpec
from stargate.errors import ConfigError


class Backend(Protocol):
    """A model folder that is trained, as one rank holds it; `close` it whatever happens.

    All ranks call every method but `close` at once, and wait for each other in it.
    """

    name: str  # with its version: checkpoints are its own
    packed: bool  # whether the model takes packed rows
    max_positions: int  # tokens that the model takes
    # Of what a checkpoint holds: by kind and name. Kinds are the float32 "master" of each weight
    # that learns, what else the optimizer keeps of it ("exp_avg", ...), and at the end this rank's
    # own "random" generators.
    shapes: Mapping[str, Mapping[str, torch.Size]]

    def __init__(self, spec: TrainerSpec, start_model_dir: str) -> None: ...

    @staticmethod
    def join(device: str) -> None:
        """Meets the other ranks, as the environment says. Blocks until all are there."""
        ...

    @staticmethod
    def leave() -> None:
        """Ends this process's membership."""
        ...

    def forward(self, batch: Batch, learning: bool) -> Tensor:
        """log p of the batch's targets (P,), in nats; for `backward` if `learning`."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a micro-batch's gradients, averaged over the ranks; `last`: of this step."""
        ...

    def update(self, rate: float, check: Callable[[float], None]) -> float:
        """One optimizer step. The norm of its gradient before clipping, over all ranks.

        `check` is called with the norm before any weight changes, and may raise.
        """
        ...

    def settle(self) -> None:
        """Makes the weights what will be saved, in the start folder's dtypes; training is over."""
        ...

    def save(self, output_dir: str) -> None:
        """Rank 0 writes what `settle` left; all ranks return when it is there.

        Raises MachineError on every rank if it can't be written.
        """
        ...

    def get(self, kind: str, name: str) -> Tensor:
        """One of `shapes`, whole; maybe the backend's own memory."""
        ...

    def set(self, kind: str, name: str, value: Tensor) -> None:
        """Takes one that `get` gave. With all of them, training goes on from there to the bit."""
        ...

    def exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every rank's message on every rank, in their order. Plain values."""
        ...

    def close(self) -> None:
        """Frees all memory."""
        ...


_BACKENDS = {"deepspeed": "stargate.actors.training.deepspeed_backend:DeepSpeedBackend"}


def backend_class(name: str) -> type[Backend]:
    """The backend of this name, or "package.module:Class". Imports its library.

    Raises ConfigError if there is none.
    """
    try:
        found: type[Backend] = pkgutil.resolve_name(_BACKENDS.get(name, name))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"trainer.backend: {name!r} can't be loaded: {error}") from error
    return found
