"""What one rank of the trainer is told, and what follows from it alone."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stargate.actors.process.paths import path_with_venv
from stargate.actors.training.step_plan import Layout
from stargate.config.run import TrainerConfig

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class TrainerSpec:
    """All that one rank needs to start; plain values, so that it travels to any node.

    `base_model_dir` gives every saved model its config, tokenizer and chat template. `objective` is
    a name of objectives.py, or "package.module:Class"; `objective_settings` are its coefficients.
    """

    base_model_dir: str
    config: TrainerConfig
    rank: int = 0
    world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    num_threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    log_file: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    objective: str = "weighted_nll"
    objective_settings: Mapping[str, float] = field(default_factory=dict)


def make_layout(spec: TrainerSpec, packed: bool, whole_groups: bool = False) -> Layout:
    """How steps are laid out. A packed row has at most the tokens of a full padded micro-batch."""
    config = spec.config
    row = config.row_tokens or config.micro_batch_size * config.max_length
    return Layout(
        config.batch_size,
        config.micro_batch_size,
        spec.world_size,
        row if packed else None,
        whole_groups,
    )


def rank_environment(spec: TrainerSpec) -> dict[str, str]:
    """What DeepSpeed and torch.distributed read, to be set before either is imported."""
    environment = {
        "DS_ACCELERATOR": spec.device,
        "RANK": str(spec.rank),
        "WORLD_SIZE": str(spec.world_size),
        # Ray shows each actor its own GPU only, under number 0.
        "LOCAL_RANK": str(spec.rank if spec.device == "cpu" else 0),
        "MASTER_ADDR": spec.master_addr,
        "MASTER_PORT": str(spec.master_port),
        "OMP_NUM_THREADS": str(spec.num_threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PATH": path_with_venv(),
    }
    # Otherwise gloo looks up the host's name, which not every container can resolve, and which may
    # stand for an address that other nodes can't reach.
    interface = _interface_towards(spec.master_addr, spec.master_port)
    if interface is not None:
        environment["GLOO_SOCKET_IFNAME"] = interface
        if spec.device == "cuda" and spec.master_addr not in _LOOPBACK:
            environment["NCCL_SOCKET_IFNAME"] = f"={interface}"
    return environment


def _interface_towards(address: str, port: int) -> str | None:
    """The network interface from which this machine reaches an address; None if it does not."""
    if address in _LOOPBACK:
        return next((n for _, n in socket.if_nameindex() if n.startswith("lo")), None)
    import psutil

    try:
        # Nothing is sent: connecting a datagram socket only chooses the route.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in addresses):
            return name
    return None
