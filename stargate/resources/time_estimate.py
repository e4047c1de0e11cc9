"""Roughly how long a run takes, from a few figures that stand here. Pure.

    RunConfig, Placement, shapes, pairs -> hours of each stage of an iteration, slow and fast end

The lengths of texts and the speeds are those of docs/scaling.md: assumed, public or measured, as
said there. Only their order of magnitude should be relied on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

from stargate.config.run import RunConfig
from stargate.resources.model_shape import ModelShape
from stargate.resources.placement import Placement
from stargate.resources.run_plan import Shapes

# Tokens, assumed: of a question, an answer, a response; of a dialogue before a gold, of a gold.
QUESTION, ANSWER, RESPONSE, CONTEXT, GOLD = 40, 60, 300, 250, 160
# An 8B model on one H100: generated tokens per second at the slow and at the fast end (public).
_GPU_TOKENS, _GPU_PARAMETERS = (5_300.0, 12_500.0), 8.03e9
# A small model is faster, but an engine's own work per step does not shrink with it (assumed).
_MOST_GAIN = 4.0
# What forward and backward passes reach of an H100 (assumed): 40 % of 990 TFLOP/s.
_GPU_FLOPS = 0.4 * 990e12
# A GPU of less than 40 GiB against an H100, in bandwidth and in FLOP (assumed).
_SMALL_GPU_GIB, _SMALL_GPU = 40.0, 1 / 4
# SmolLM2-135M on one core (measured): generated, scored and trained tokens per second.
_CPU_PARAMETERS, _CPU_GENERATED, _CPU_SCORED, _CPU_TRAINED = 134.5e6, (300.0, 600.0), 1_000.0, 300.0
_PIPELINE = 0.9  # of an engine's ceiling that the pipeline reaches (measured)
_FIXED_HOURS = 75 / 3600  # push, save, load of an iteration (assumed)

Range = tuple[float, float]  # hours, at the slow and at the fast end


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Hours of an iteration's stages, of one evaluation, and of the run."""

    stages: Mapping[str, Range]
    evaluation: Range
    run: Range


def estimate_time(
    config: RunConfig,
    placement: Placement,
    shapes: Shapes,
    *,
    gpu_gib: float,
    train_pairs: float,
    test_pairs: int,
) -> TimeEstimate | None:
    """None where the size of a model is not known. An API's answers are taken to need no time."""
    if any(shape is None for shape in shapes.values()):
        return None
    speeds = _Speeds(config, placement, shapes, gpu_gib)
    turns = config.rollout.num_dialogues * mean(config.rollout.turns)
    playing = speeds.playing(train_pairs * turns, responses=train_pairs)
    examples = train_pairs * (1 if config.trainer.examples == "iteration" else 2)
    stages = {
        **playing,
        "scoring": speeds.scoring(train_pairs * config.rollout.num_dialogues),
        "training": speeds.training(examples * config.trainer.num_epochs),
        "push, save, load": (_FIXED_HOURS, _FIXED_HOURS),
    }
    iteration = _combined(stages, placement.overlap)
    evaluation = (0.0, 0.0)
    if config.evaluation.enabled:
        dialogues = test_pairs * config.evaluation.num_dialogues
        tested = speeds.playing(dialogues * mean(config.evaluation.turns), responses=0.0)
        # A gold before and after the dialogue, and another persona's.
        evaluation = _combined(
            tested | {"scoring": speeds.scoring(3 * dialogues)}, placement.overlap
        )
    times = config.schedule.num_iterations
    run = tuple(times * i + (times + 1) * e for i, e in zip(iteration, evaluation, strict=True))
    return TimeEstimate(stages, evaluation, (run[0], run[1]))


def _combined(stages: Mapping[str, Range], overlap: bool) -> Range:
    """Questioner and Roleplayer work beside each other, scorers too if stages overlap."""
    beside = {"questions", "answers", *(["scoring"] if overlap else [])}
    ends = []
    for end in (0, 1):
        longest = max((hours[end] for stage, hours in stages.items() if stage in beside), default=0)
        ends.append(longest + sum(h[end] for stage, h in stages.items() if stage not in beside))
    return ends[0], ends[1]


@dataclass(frozen=True, slots=True)
class _Speeds:
    config: RunConfig
    placement: Placement
    shapes: Shapes
    gpu_gib: float

    def playing(self, turns: float, responses: float) -> dict[str, Range]:
        config, found = self.config, {}
        longest = config.questioner.sampling.max_new_tokens, config.response.sampling.max_new_tokens
        asked = turns * min(QUESTION, longest[0]) + responses * min(RESPONSE, longest[1])
        found["questions"] = self._generating("questioner", asked)
        if "roleplayer" in config.engines:
            told = turns * min(ANSWER, config.roleplayer.sampling.max_new_tokens)
            found["answers"] = self._generating("roleplayer", told)
        return found

    def _generating(self, role: str, tokens: float) -> Range:
        shape, seats = self._shape(role), self.placement.of(role)
        if seats[0].device == "cuda":
            size = self.config.engines[role].tensor_parallel_size
            gain = min(_MOST_GAIN, _GPU_PARAMETERS / (shape.parameters / size)) * self._gpu
            speeds = [one * gain * len(seats) for one in _GPU_TOKENS]
        else:
            gain = _CPU_PARAMETERS / shape.parameters
            speeds = [one * gain * sum(seat.threads for seat in seats) for one in _CPU_GENERATED]
        slow, fast = (tokens / (speed * _PIPELINE) / 3600 for speed in speeds)
        return slow, fast

    def scoring(self, golds: float) -> Range:
        return self._passing("scorer", golds * (CONTEXT + GOLD), 2, _CPU_SCORED)

    def training(self, examples: float) -> Range:
        flops = 8 if self.config.trainer.activation_checkpointing else 6
        return self._passing("trainer", examples * (CONTEXT + RESPONSE), flops, _CPU_TRAINED)

    def _passing(self, role: str, tokens: float, flops: int, on_core: float) -> Range:
        """Forward, or forward and backward passes: FLOP per parameter and token."""
        shape, seats = self._shape(role), self.placement.of(role)
        if seats[0].device == "cuda":
            speed = _GPU_FLOPS * self._gpu / (flops * shape.active) * len(seats)
        else:
            cores = sum(seat.threads for seat in seats)
            speed = on_core * cores * _CPU_PARAMETERS / shape.parameters
        hours = tokens / speed / 3600
        return hours, hours

    def _shape(self, role: str) -> ModelShape:
        shape = self.shapes[role]
        assert shape is not None  # asked before
        return shape

    @property
    def _gpu(self) -> float:
        """This GPU against an H100."""
        return 1.0 if self.gpu_gib >= _SMALL_GPU_GIB else _SMALL_GPU
