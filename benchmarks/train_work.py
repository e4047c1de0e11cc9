"""What every side of `stargate bench train` trains: examples as long as real ones.

    dialogues.jsonl (texts) + the starter data set's golds + a model's chat template -> examples

The selected dialogue of each of 64 pairs. Like the paper's they have one to three turns: dialogue
number n keeps its first 1 + n % 3 turns, which is what a dialogue of that many turns would have
been.
"""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stargate.actors.training.step_plan import Step
from stargate.algorithm.star_gate import StarGate
from stargate.benchmarks.recorded import RecordedDialogues
from stargate.config.algorithm import StarGateConfig
from stargate.config.run import TrainerConfig
from stargate.types import Dialogue, TrainingExample

DIALOGUES = Path(__file__).parent / "dialogues.jsonl"
_MAX_TURNS = 3


@dataclass(frozen=True)
class Job:
    """What every side trains: `steps` are the packed (or sorted) micro-batches of ours."""

    model_dir: str
    config: TrainerConfig
    device: Literal["cpu", "cuda"]
    num_threads: int
    examples: Sequence[TrainingExample]
    steps: Sequence[Step]
    work_dir: str
    seed: int = 0

    def num_loss_tokens(self, step: Step) -> int:
        return sum(self.examples[i].num_loss_tokens for i in step.examples)

    def now(self) -> float:
        """Seconds, when all that the device was given is done."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def peak_memory_gb(self) -> float:
        """This process's: main memory, or the GPU's if there is one."""
        if self.device == "cuda":
            import torch

            return float(torch.cuda.max_memory_allocated() / 2**30)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass(frozen=True)
class StepTime:
    """One optimizer step: its seconds and its mean loss per loss token, in nats."""

    seconds: float
    loss: float


def load_examples(model_dir: Path, count: int) -> list[TrainingExample]:
    """The first `count` dialogues as examples; raises DataError if there are not so many."""
    recorded = RecordedDialogues(DIALOGUES, model_dir)
    # Long and short ones, as in the paper: they end with the gold.
    config, max_length = StarGateConfig(target="gold_response"), TrainerConfig().max_length
    algorithm = StarGate(config, recorded.views, recorded.chat, max_length)
    examples = []
    for number, row in enumerate(recorded.rows(count, "--dialogues")):
        pair, said = recorded.pair(row), row["turns"][: 1 + number % _MAX_TURNS]
        turns = tuple(recorded.turn(one, ended=True) for one in said)
        dialogue = Dialogue(f"recorded/{pair.id}", pair.id, 0, len(turns), 0, 0, turns)
        examples.append(algorithm.example(pair, dialogue, None))
    return examples
