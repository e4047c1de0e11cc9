"""Which cores and threads each actor gets on one machine. Pure: plain numbers in, plain numbers
out.

On a machine without a GPU the stages take turns (`overlap` off): engines share out all cores among
themselves, then scorer and trainer get all cores. Two thread teams on one core would make each
other 10 times slower, so every thread count here is explicit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stargate.config import RunConfig
from stargate.errors import MachineError


@dataclass(frozen=True, slots=True)
class Placement:
    """Cores of each engine (None:

    not pinned), threads of the others, and whether stages overlap.
    """

    device: Literal["cpu", "cuda"]
    questioner_cores: tuple[str | None, ...]
    roleplayer_cores: tuple[str | None, ...]
    scorer_threads: int
    trainer_threads: int
    overlap: bool


def place(config: RunConfig, cores: Sequence[int], num_gpus: int) -> Placement:
    """Shares a machine out. Raises MachineError when it is too small, naming the key to lower."""
    device = _device(config, num_gpus)
    scorer_threads = config.scorer.num_threads or max(1, len(cores) // config.scorer.num_scorers)
    trainer_threads = config.trainer.num_threads or max(1, len(cores) // config.trainer.num_ranks)
    num_questioners = config.questioner.engine.num_engines
    num_roleplayers = config.roleplayer.engine.num_engines
    if device == "cuda":
        _require_gpus(config, num_gpus)
        return Placement(
            device=device,
            questioner_cores=(None,) * num_questioners,
            roleplayer_cores=(None,) * num_roleplayers,
            scorer_threads=scorer_threads,
            trainer_threads=trainer_threads,
            overlap=config.schedule.overlap != "never",
        )
    shares = _share_cores(config, cores)
    return Placement(
        device=device,
        questioner_cores=tuple(shares[:num_questioners]),
        roleplayer_cores=tuple(shares[num_questioners:]),
        scorer_threads=scorer_threads,
        trainer_threads=trainer_threads,
        overlap=config.schedule.overlap == "always",
    )


def _device(config: RunConfig, num_gpus: int) -> Literal["cpu", "cuda"]:
    if config.device == "cuda" and num_gpus == 0:
        raise MachineError("device is 'cuda', but this machine has no usable GPU: set device=cpu")
    if config.device == "auto":
        return "cuda" if num_gpus else "cpu"
    return config.device


def _share_cores(config: RunConfig, cores: Sequence[int]) -> list[str]:
    """Equal shares of the cores for all engines, as vLLM's core lists.

    An engine's own setting wins.
    """
    engines = [config.questioner.engine] * config.questioner.engine.num_engines
    engines += [config.roleplayer.engine] * config.roleplayer.engine.num_engines
    if len(engines) > len(cores):
        raise MachineError(
            f"{len(engines)} engines need a core each, this machine has {len(cores)}: lower "
            "questioner.engine.num_engines or roleplayer.engine.num_engines"
        )
    size, extra = divmod(len(cores), len(engines))
    shares: list[str] = []
    start = 0
    for number, engine in enumerate(engines):
        end = start + size + (1 if number < extra else 0)
        own = ",".join(str(core) for core in cores[start:end])
        shares.append(engine.cpu_cores or own)
        start = end
    return shares


def _require_gpus(config: RunConfig, num_gpus: int) -> None:
    needed = float(config.scorer.num_scorers * config.scorer.num_gpus)
    needed += config.trainer.num_ranks * config.trainer.num_gpus_per_rank
    for role in (config.questioner, config.roleplayer):
        needed += role.engine.num_engines * role.engine.tensor_parallel_size
    if needed > num_gpus:
        raise MachineError(
            f"needs {needed:g} GPUs, this machine has {num_gpus}: lower num_engines, "
            "tensor_parallel_size, scorer.num_gpus or trainer.num_ranks"
        )
