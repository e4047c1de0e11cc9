"""Everything that is checked before a command can play: models, data, prompts, and room for all.

RunConfig -> Prepared; nothing is started yet (launch/system.py)
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stargate.config.judge import ApiBackend
from stargate.config.roleplayer import ApiRoleplayerConfig, FactsGrounding
from stargate.config.run import RunConfig
from stargate.data.dataset import Dataset, load_dataset
from stargate.data.held_out import training_pairs, validation_pairs
from stargate.errors import ConfigError, MachineError, ModelError
from stargate.evaluation.evaluator import Evaluator
from stargate.evaluation.playing import EvaluationPairs
from stargate.launch.provenance import Inputs, inputs_of
from stargate.monitoring.tracking import check_installed
from stargate.oracle.api_key import read_api_key
from stargate.resources.gpus import gpu_problem
from stargate.resources.machine import Machine, core_numbers, describe_machine
from stargate.resources.model_shape import folder_shape
from stargate.resources.models import (
    pinned,
    resolve_embedder,
    resolve_model,
    resolve_roleplayer,
)
from stargate.resources.placement import Placement, place
from stargate.resources.preflight import build_problem, shared_memory_problem
from stargate.resources.run_plan import check_plan, on_cpus, plan_processes
from stargate.resources.submission import cluster_address
from stargate.rollout.roleplayer import require_facts
from stargate.text.chat import ChatFormat
from stargate.text.formats import check_formats, load_chat_formats
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import Pair

# Said on the screen before a model is opened, and in the run's log.
REMOTE_CODE = (
    "trust_remote_code is true: Python files that come with the models run on this machine, as you"
)


@dataclass(frozen=True)
class Prepared:
    """Everything that was checked before the first actor starts."""

    config: RunConfig
    dataset: Dataset
    test_pairs: EvaluationPairs
    base_model_dir: Path
    roleplayer_dir: Path | None  # None: it is an API
    embedder_dir: Path | None
    views: Views
    roleplayer_views: Views
    chat: ChatFormat
    roleplayer_chat: ChatFormat | None
    placement: Placement
    num_gpus: int
    # actors/runtime/discovery.py: Discovery of the cluster that the run attaches to; None: own Ray.
    discovery: Any = None
    inputs: Inputs = field(default_factory=dict)  # digests of what the config names

    def train_pairs(self, iteration: int) -> list[Pair]:
        """The pairs of iteration t: the splits take turns (A for even t, B for odd t)."""
        splits = self.config.data.train_splits
        return training_pairs(self.dataset, self.config, splits[iteration % len(splits)])

    def validation_pairs(self) -> list[Pair]:
        """The pairs that training stops by; none where nothing is held out."""
        return validation_pairs(self.dataset, self.config)

    def evaluator(self, config: RunConfig, trained: RunConfig) -> Evaluator:
        """Measures checkpoints of a run that was trained with `trained` as `config` says."""
        return Evaluator(
            config=config,
            trained=trained,
            pairs=self.test_pairs,
            base_model_dir=self.base_model_dir,
            chat=self.chat,
            voice_chat=self.roleplayer_chat,
            voice_dir=self.roleplayer_dir,
            train_pairs=[
                pair
                for split in config.data.train_splits
                for pair in self.dataset.pairs_with_gold(split, config.data.train)
            ],
        )


def prepare(config: RunConfig, say: Callable[[str], None], training: bool = True) -> Prepared:
    """Resolves models, data and prompts, and checks that they fit together.

    Without `training` the data need no train splits. Raises StargateError.
    """
    if config.trust_remote_code:
        say(REMOTE_CODE)
    _check_config(config, training)
    grounded = isinstance(config.roleplayer.grounding, FactsGrounding)
    dataset = load_dataset(config.data)
    for record in dataset.dropped:
        say(f"dropped: {record.reason}: {record.where}")
    machine = describe_machine()
    # On a cluster each node sees to the weights that it needs; here texts are only rendered.
    weights, trust = cluster_address(config, os.environ) is None, config.trust_remote_code
    here = _place_here(config, machine, say, training) if weights else None
    views = Views(load_prompts(config.prompts))
    roleplayer_views = Views(load_prompts(config.roleplayer.prompts or config.prompts))
    base = resolve_model(config.model, trust_remote_code=trust, weights=weights)
    other = resolve_roleplayer(config, weights=weights)
    config = pinned(config, base, other)
    discovery = _discovery(config, say, training)
    placement = here or discovery.placement
    chat, roleplayer_chat = load_chat_formats(config, base, other)
    check_formats(config, chat, views, roleplayer_chat, roleplayer_views)
    test = config.data.test_split, config.data.test
    prepared = Prepared(
        config=config,
        dataset=dataset,
        test_pairs=EvaluationPairs(dataset.pairs(*test), dataset.plain_pairs(*test)),
        base_model_dir=base,
        roleplayer_dir=other,
        embedder_dir=resolve_embedder() if grounded else None,
        views=views,
        roleplayer_views=roleplayer_views,
        chat=chat,
        roleplayer_chat=roleplayer_chat,
        placement=placement,
        # Of several GPUs Ray would give out the others, too, where all actors must share one.
        num_gpus=1 if placement.gpu_share else len(machine.gpus),
        discovery=discovery,
        inputs=inputs_of(config, base, other),
    )
    for part in on_cpus(placement):
        say(part)
    if discovery is None:
        _check_memory(prepared, machine, say)
    if training:
        say(placement.schedule)
    _check_pairs(prepared, training, grounded)
    return prepared


def _check_pairs(prepared: Prepared, training: bool, grounded: bool) -> None:
    """Raises DataError for a train split without pairs, and for a persona without facts where
    answers are grounded in them.
    """
    config, splits = prepared.config, [prepared.test_pairs.all]
    if training:
        num_splits = min(config.schedule.num_iterations, len(config.data.train_splits))
        splits += map(prepared.train_pairs, range(num_splits))
        splits.append(prepared.validation_pairs())
    for pairs in splits if grounded else ():
        require_facts(pairs)


def _check_config(config: RunConfig, training: bool) -> None:
    """Raises ConfigError for what would fail after hours: a tracker that is not installed, an API
    whose key is not there.
    """
    if training:
        check_installed(config.tracking)
        grounded = isinstance(config.roleplayer.grounding, FactsGrounding)
        if config.algorithm.facts_for is not None and not grounded:
            raise ConfigError(
                f"{config.algorithm.facts_for} needs roleplayer.grounding.type=facts: otherwise it "
                "is not known which questions were answered"
            )
    judge = config.evaluation.judge
    for api in (config.roleplayer, judge and judge.backend):
        if isinstance(api, ApiRoleplayerConfig | ApiBackend):
            read_api_key(api.oracle.api_key_env)


def _place_here(
    config: RunConfig, machine: Machine, say: Callable[[str], None], training: bool
) -> Placement:
    """Who gets what of this machine. Raises MachineError where it is too small for
    the run, or vLLM is built for another device.
    """
    gpu_gib = machine.gpus[0].memory_gb if machine.gpus else None
    unusable = None if config.device == "cpu" else gpu_problem()
    if unusable is not None:
        say(f"note: {unusable}")
    if (small := shared_memory_problem()) is not None and len(machine.gpus) > 1:
        say(f"note: {small}")
    num_gpus = len(machine.gpus)
    placement = place(config, core_numbers(), num_gpus, gpu_gib=gpu_gib, training=training)
    if (wrong := build_problem(placement.device)) is not None:
        raise MachineError(wrong)
    return placement


def _check_memory(prepared: Prepared, machine: Machine, say: Callable[[str], None]) -> None:
    """Raises MachineError naming the first process that can't fit, and what to change."""
    config, placement = prepared.config, prepared.placement
    try:
        base = folder_shape(prepared.base_model_dir)
        shapes = {"questioner": base, "scorer": base, "trainer": base}
        if prepared.roleplayer_dir is not None:
            shapes["roleplayer"] = folder_shape(prepared.roleplayer_dir)
    except ModelError as error:  # a kind of model that nobody has computed yet; it may well fit
        say(f"note: memory is not checked: {error}")
        return
    gpu_gib = min((gpu.memory_gb for gpu in machine.gpus), default=0.0)
    sizes = {"gpu_gib": gpu_gib, "memory_gib": machine.memory_total_gb}
    processes = plan_processes(config, placement, shapes, **sizes)
    check_plan(config, processes, shapes)


def _discovery(config: RunConfig, say: Callable[[str], None], training: bool) -> Any:
    """Finds room on the cluster that the config or a submitted job names; None if neither does."""
    address = cluster_address(config, os.environ)
    if address is None:
        return None
    from stargate.actors.runtime.discovery import discover_cluster

    return discover_cluster(config, address, say, training=training)
