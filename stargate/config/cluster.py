"""Where a run's actors live, and how they share the machines."""

from typing import Annotated, Literal

from pydantic import Field

from stargate.config.component import Component, NonNegativeInt, PositiveInt


class ValidationConfig(Component):
    """Pairs of the last train split that nothing is learned from: its last tasks with their last
    personas. Training stops after a checkpoint whose contrast there is not above all before it, or
    whose questions repeat: fewer than `min_distinct` of them differ (evaluation/validation.py).
    """

    tasks: PositiveInt = 4
    personas: Annotated[int, Field(ge=3)] = 4  # with fewer there is no contrast
    min_distinct: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7


class ScheduleConfig(Component):
    """Iterations, and whether rollouts, scoring and responses share the machine.

    With overlap a pair is scored as soon as its dialogues have ended, without it all dialogues of a
    wave are played first: where engines and scorers share cores, two busy OpenMP teams on one core
    run 10 times slower. `auto` decides by the threads of each process (placement.py): it overlaps
    on GPUs, and on a CPU where each thread has a core. Training overlaps with nothing.

    An engine, scorer or trainer that dies is started again, each `max_restarts` times within a run.
    """

    num_iterations: NonNegativeInt = 3  # 0: m_0 is evaluated, nothing is trained
    validation: ValidationConfig | None = None  # null: nothing is held out, all iterations are done
    max_restarts: NonNegativeInt = 3
    overlap: Literal["auto", "always", "never"] = "auto"
    wave_pairs: PositiveInt = 512


class ClusterConfig(Component):
    """The Ray cluster that a run's actors live on.

    `address` null: in a submitted job the job's cluster, else a Ray of the run's own on this
    machine; `local` is that also within a job. `auto` (RAY_ADDRESS, or the cluster that this
    machine belongs to) and HOST:PORT attach to a cluster, which goes on when the run has ended.

    `strategy`: packed, on the fewest nodes; spread, over all of them; colocated, all on one GPU, on
    which they take turns: engines sleep while scorers and the trainer work (gpu_phases.py).

    `shared_storage` auto: a node that sees the run's folder uses it, to the others weights are
    sent through Ray; never: they are sent to every node but the driver's.
    """

    address: Annotated[str, Field(pattern=r"^(local|auto|[A-Za-z0-9._-]+:\d{1,5})$")] | None = None
    strategy: Literal["packed", "spread", "colocated"] = "packed"
    # Seconds that nodes, or what others hold of them, may take to come; 0: they must be there.
    wait_s: Annotated[float, Field(ge=0.0, le=604_800.0)] = 0.0
    shared_storage: Literal["auto", "never"] = "auto"
