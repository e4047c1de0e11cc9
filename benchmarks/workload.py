"""The dialogues that benchmarks play: pairs, prompts and sampling as a run with a preset has them.

preset + overrides -> Prepared (models, data, prompts: nothing is started) -> plans of dialogues
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stargate.benchmarks.card import Say
from stargate.config.files import load_config
from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.launch.setup import Prepared, prepare
from stargate.protocols import Generate, Roleplay
from stargate.rollout.dialogue import Questioner, plan_dialogues
from stargate.rollout.roleplayer import build_roleplayer
from stargate.types import DialoguePlan


@dataclass(frozen=True)
class Workload:
    """What is played, and the parts that play it. Nothing is started yet."""

    prepared: Prepared
    plans: tuple[DialoguePlan, ...]

    @property
    def config(self) -> RunConfig:
        return self.prepared.config

    def questioner(self, generate: Generate) -> Questioner:
        settings, prepared = self.config.questioner, self.prepared
        length = settings.engine.max_model_len
        return Questioner(generate, prepared.views, prepared.chat, settings.sampling, length)

    def roleplayer(self, generate: Generate, matcher: Any) -> Roleplay:
        prepared = self.prepared
        chat, views = prepared.roleplayer_chat, prepared.roleplayer_views
        return build_roleplayer(self.config.roleplayer, generate, chat, views, matcher)


def workload_overrides(grounding: str, num_turns: int, max_new_tokens: int | None) -> list[str]:
    """A benchmark's options as overrides of its preset. `grounding`: "persona", "facts"."""
    overrides = [f"rollout.turns=[{num_turns}]"]
    if grounding == "persona":
        # Both roles' engines write in every turn; with facts, a turn may need no call at all.
        overrides.append("roleplayer.grounding={type: persona}")
    if max_new_tokens is not None:
        overrides += [
            f"questioner.sampling.max_new_tokens={max_new_tokens}",
            f"roleplayer.sampling.max_new_tokens={max_new_tokens}",
        ]
    return overrides


def make_workload(preset: str, overrides: Sequence[str], num_dialogues: int, say: Say) -> Workload:
    """The first `num_dialogues` dialogues of a run's first iteration, then of its test pairs.

    N dialogues of a pair follow each other, as in a run. Raises ConfigError if there are too few.
    """
    config = load_config(preset, overrides)
    prepared = prepare(config, say, training=False)
    pairs = [*prepared.train_pairs(0), *prepared.test_pairs.scored]
    planned = plan_dialogues(pairs, "bench", config.seed, config.rollout)
    plans = [plan for of_pair in planned for plan in of_pair]
    if len(plans) < num_dialogues:
        raise ConfigError(
            f"--dialogues {num_dialogues}: {preset} has {len(pairs)} pairs with "
            f"{config.rollout.num_dialogues} dialogues each, {len(plans)} in all"
        )
    return Workload(prepared, tuple(plans[:num_dialogues]))
