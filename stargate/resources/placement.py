"""Which cores and threads each actor gets on one machine. Pure: plain numbers in, plain numbers
out.

On a machine without a GPU all engines share out the cores among themselves, the scorers get all of
them once more, and so does the trainer. Every thread count here is explicit, because what may run
at the same time depends on it: a team of several threads waits for its slowest one at each step,
and two such teams on one core make each other 10 times slower. Single threads only share, and gain
1 % from overlap (`stargate bench iteration`), so they take turns as well.

    auto on CPU:  all teams fit side by side  -> scoring overlaps with the rollouts
                  else                        -> stages take turns
    training comes after all of them in any case: it needs every example, and all cores
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stargate.config.run import RunConfig
from stargate.errors import MachineError
from stargate.resources.colocation import check_engines, gpu_share, is_colocated, require_gpu

# Why stages of a colocated run take turns.
ONE_GPU = "all actors share one GPU, and engines sleep while others use it"


@dataclass(frozen=True, slots=True)
class Placement:
    """Cores of each engine (None:

    not pinned), threads of the others, whether rollouts, scoring and responses overlap, and why.
    """

    device: Literal["cpu", "cuda"]
    questioner_cores: tuple[str | None, ...]
    roleplayer_cores: tuple[str | None, ...]
    scorer_threads: int
    trainer_threads: int
    overlap: bool
    overlap_reason: str
    gpu_share: float = 0.0  # colocated: what each actor has of the one GPU; 0: GPUs of their own

    @property
    def schedule(self) -> str:
        """What was decided, for the screen."""
        how = "overlap" if self.overlap else "take turns"
        return f"schedule: rollouts, scoring and responses {how}: {self.overlap_reason}"


def place(
    config: RunConfig,
    cores: Sequence[int],
    num_gpus: int,
    *,
    gpu_gib: float | None = None,
    training: bool = True,
) -> Placement:
    """Shares a machine out. Raises MachineError when it is too small, naming the key to lower.

    `gpu_gib` is the memory of its first GPU, where it is known.
    """
    device = _device(config, num_gpus)
    require_gpu(config, device)
    scorer_threads = config.scorer.num_threads or max(1, len(cores) // config.scorer.num_scorers)
    trainer_threads = config.trainer.num_threads or max(1, len(cores) // config.trainer.num_ranks)
    num_questioners = config.questioner.engine.num_engines
    num_roleplayers = config.roleplayer.engine.num_engines
    if device == "cuda":
        share = 0.0
        if is_colocated(config):
            check_engines(config, gpu_gib, training=training)
            share = gpu_share(config, training=training)
            overlap, reason = False, ONE_GPU
        else:
            require_gpus(config, num_gpus)
            overlap, reason = _by_config(config) or (True, "the engines run on GPUs")
        return Placement(
            device=device,
            questioner_cores=(None,) * num_questioners,
            roleplayer_cores=(None,) * num_roleplayers,
            scorer_threads=scorer_threads,
            trainer_threads=trainer_threads,
            overlap=overlap,
            overlap_reason=reason,
            gpu_share=share,
        )
    shares = _share_cores(config, cores)
    scorers = [scorer_threads] * config.scorer.num_scorers
    overlap, reason = _by_config(config) or decide_overlap(
        [num_listed(share) for share in shares], scorers, len(cores)
    )
    return Placement(
        device=device,
        questioner_cores=tuple(shares[:num_questioners]),
        roleplayer_cores=tuple(shares[num_questioners:]),
        scorer_threads=scorer_threads,
        trainer_threads=trainer_threads,
        overlap=overlap,
        overlap_reason=reason,
    )


def decide_overlap(
    engine_threads: Sequence[int], scorer_threads: Sequence[int], num_cores: int
) -> tuple[bool, str]:
    """Whether scorers may work while engines do, by the threads of each process; and why."""
    threads = [*engine_threads, *scorer_threads]
    if sum(threads) <= num_cores:
        return True, f"all {sum(threads)} threads have a core of their own"
    return False, f"{sum(threads)} threads would share {num_cores} cores"


def cores_for_more(
    wanted: Sequence[str | None], cores: Sequence[int], held: Sequence[str]
) -> list[str]:
    """Cores for engines that join a machine with these cores, of which others hold some.

    `wanted` has an entry per engine: its `cpu_cores` setting, which all engines of a role share, or
    None: then an equal part of what nobody holds. Raises MachineError when nothing is left.

    Worked example: [None, None] on cores 0 to 5, of which "0,1" and "2" are held -> "3,4", "5".
    """
    used = {core for one in (*held, *filter(None, wanted)) for core in listed_cores(one)}
    left = [core for core in cores if core not in used]
    num_more = sum(setting is None for setting in wanted)
    if num_more > len(left):
        raise MachineError(
            f"{num_more} more engines need a core each that no other engine holds, this machine "
            f"has {len(left)} of {len(cores)} left: take out others first, or begin the run with "
            "questioner.engine.cpu_cores and roleplayer.engine.cpu_cores, which a role's engines "
            "share"
        )
    shares = iter(split_cores(left, num_more))
    return [core_list(next(shares)) if setting is None else setting for setting in wanted]


def split_cores(cores: Sequence[int], count: int) -> list[Sequence[int]]:
    """Equal shares of the cores; the first ones get what is left over."""
    size, extra = divmod(len(cores), max(1, count))
    starts = [number * size + min(number, extra) for number in range(count + 1)]
    return [cores[start:end] for start, end in itertools.pairwise(starts)]


def core_list(cores: Sequence[int]) -> str:
    """Cores as vLLM takes them: "0,2"."""
    return ",".join(map(str, cores))


def listed_cores(cores: str) -> list[int]:
    """The cores of a list such as "0,2-4" or, with one list per rank, "0-1|2-3"."""
    found: list[int] = []
    for part in cores.replace("|", ",").split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def require_gpus(config: RunConfig, num_gpus: int) -> None:
    """Raises MachineError when all actors of a config need more GPUs than a machine has."""
    needed = float(config.scorer.num_scorers * config.scorer.num_gpus)
    needed += config.trainer.num_ranks * config.trainer.num_gpus_per_rank
    for role in (config.questioner, config.roleplayer):
        needed += role.engine.num_engines * role.engine.tensor_parallel_size
    if needed > num_gpus:
        raise MachineError(
            f"needs {needed:g} GPUs, this machine has {num_gpus}: lower num_engines, "
            "tensor_parallel_size, scorer.num_gpus or trainer.num_ranks"
        )


def num_listed(cores: str) -> int:
    """How many cores a core list names: "0,2-4" has 4, "0-1|2-3" (one list per rank) has 4."""
    return len(listed_cores(cores))


def _by_config(config: RunConfig) -> tuple[bool, str] | None:
    """What the config itself decides; None where it leaves that to the machine."""
    if config.schedule.overlap == "auto":
        return None
    return config.schedule.overlap == "always", f"schedule.overlap is {config.schedule.overlap!r}"


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
    shares = split_cores(cores, len(engines))
    return [
        engine.cpu_cores or core_list(share) for engine, share in zip(engines, shares, strict=True)
    ]
