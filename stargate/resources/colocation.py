"""One GPU for all actors (`cluster.strategy: colocated`): does it fit? Pure: numbers in and out.

    play    engines, each with its gpu_memory_utilization    + what the others hold while they sleep
    score   scorers with m_0                                 + the same
    train   weights, gradients, optimizer                    + the same

The phases and who sleeps in them are in gpu_phases.py. Here it is only counted what they take.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stargate.config.run import RunConfig
from stargate.errors import MachineError

# GiB that a process holds on a GPU as long as it lives, asleep or not: CUDA's context, libraries.
PROCESS_GIB = 0.75
# GiB that scoring and training take at least besides weights: activations, logits.
WORK_GIB = 1.0
# The share of a GPU that engines may have where the size of the GPU is not known.
MAX_SHARE = 0.95
# Bytes per parameter in training, in bfloat16 and in float32: weights, gradients, master weights
# and two moments of AdamW.
_TRAINING_BYTES = 16
_SCORING_BYTES = {"bfloat16": 2, "float32": 4}
_GIB = 2**30
# Ray counts shares of a GPU in these parts.
_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class PhaseNeed:
    """What a phase takes of the GPU in GiB, and the keys to lower."""

    phase: str
    gib: float
    keys: str


def is_colocated(config: RunConfig) -> bool:
    """Whether the config asks for one GPU for all."""
    return config.cluster.strategy == "colocated"


def require_gpu(config: RunConfig, device: Literal["cpu", "cuda"]) -> None:
    """Raises MachineError for a colocated run on CPUs: vLLM can't sleep there."""
    if is_colocated(config) and device == "cpu":
        raise MachineError(
            "cluster.strategy is 'colocated': its actors take turns on one GPU by vLLM's sleep "
            "mode, and this run is on CPUs: set cluster.strategy=packed"
        )


def num_actors(config: RunConfig, *, training: bool = True) -> int:
    """Processes that use the GPU."""
    engines = config.questioner.engine.num_engines + config.roleplayer.engine.num_engines
    return engines + config.scorer.num_scorers + (config.trainer.num_ranks if training else 0)


def gpu_share(config: RunConfig, *, training: bool = True) -> float:
    """What each actor asks Ray for. Worked example: 4 actors 0.25, 3 actors 0.3333.

    Ray gives shares of one GPU as long as one has room for them; it does not watch the memory.
    """
    return _PARTS // num_actors(config, training=training) / _PARTS


def check_engines(config: RunConfig, gpu_gib: float | None, *, training: bool = True) -> None:
    """Raises MachineError when the engines, all awake, leave no room for the others' contexts.

    `gpu_gib` is the GPU's memory; None: it is not known yet.
    """
    share = engine_share(config)
    others_gib = _others(config, training) * PROCESS_GIB
    most = MAX_SHARE if gpu_gib is None else 1.0 - others_gib / gpu_gib
    if share > most + 1e-9:
        raise MachineError(
            f"cluster.strategy is 'colocated': the engines take {share:.0%} of the GPU's memory "
            f"when they are awake, {max(0.0, most):.0%} can be had: lower "
            "questioner.engine.gpu_memory_utilization or roleplayer.engine.gpu_memory_utilization"
        )


def engine_share(config: RunConfig) -> float:
    """The part of the GPU's memory that all engines have together when they are awake."""
    engines = (config.questioner.engine, config.roleplayer.engine)
    return sum(engine.num_engines * engine.gpu_memory_utilization for engine in engines)


def phase_needs(
    config: RunConfig, gpu_gib: float, num_parameters: int, *, training: bool = True
) -> list[PhaseNeed]:
    """What each phase takes at least, for an m_0 of so many parameters."""
    actors = num_actors(config, training=training)
    asleep = actors * PROCESS_GIB + WORK_GIB
    scorer, scorers = config.scorer, config.scorer.num_scorers
    m0_gib = num_parameters * _SCORING_BYTES[scorer.dtype] / _GIB
    found = [
        PhaseNeed(
            "play",
            engine_share(config) * gpu_gib + _others(config, training) * PROCESS_GIB,
            "questioner.engine.gpu_memory_utilization",
        ),
        PhaseNeed("score", scorers * m0_gib + asleep, "scorer.num_scorers"),
    ]
    if training:
        # Adapters train few weights; those of the model stay as they are, in two bytes or four.
        per = _SCORING_BYTES[config.trainer.dtype] if config.trainer.lora else _TRAINING_BYTES
        gib = num_parameters * per / _GIB + asleep
        found.append(PhaseNeed("train", gib, "the model, or set trainer.lora"))
    return found


def check_shifts(needs: Sequence[PhaseNeed], gpu_gib: float) -> None:
    """Raises MachineError naming the first phase that can't fit on the GPU."""
    for need in needs:
        if need.gib > gpu_gib + 1e-6:
            raise MachineError(
                f"cluster.strategy is 'colocated': the {need.phase} phase needs at least "
                f"{need.gib:.1f} GiB of the GPU, it has {gpu_gib:.1f}: lower {need.keys}"
            )


def _others(config: RunConfig, training: bool) -> int:
    """Processes that sleep, or hold nothing, while the engines are awake."""
    return config.scorer.num_scorers + (config.trainer.num_ranks if training else 0)
