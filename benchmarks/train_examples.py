"""Training examples as long as real ones: from dialogues that a run of stargate recorded.

    dialogues.jsonl (texts) + the starter data set's golds + a model's chat template -> examples

The dialogues were played by the embedded model with itself (`cpu_learn`, iteration 0: the selected
dialogue of each of 64 pairs). They are kept as texts, so that any model's tokenizer can be used.
Like the paper's they have one to three turns: dialogue number n keeps its first 1 + n % 3 turns,
which is what a dialogue of that many turns would have been.
"""

import json
from pathlib import Path
from typing import Any, Literal

from stargate.types import Pair, StopReason, TrainingExample, Turn

DIALOGUES = Path(__file__).parent / "dialogues.jsonl"
Target = Literal["gold_response", "questions_only"]
_MAX_TURNS = 3


def load_examples(
    model_dir: Path, target: Target, count: int, trust_remote_code: bool
) -> list[TrainingExample]:
    """The first `count` dialogues as examples; raises DataError if there are not so many."""
    from stargate.algorithm.star_gate import StarGate
    from stargate.config.algorithm import StarGateConfig
    from stargate.config.run import TrainerConfig
    from stargate.data.dataset import open_dataset
    from stargate.errors import DataError
    from stargate.text.chat import load_chat_format
    from stargate.text.prompts import load_prompts
    from stargate.text.views import Views
    from stargate.types import Dialogue

    rows = [json.loads(line) for line in DIALOGUES.read_text(encoding="utf-8").splitlines()]
    if not 1 <= count <= len(rows):
        raise DataError(f"--dialogues must be in 1..{len(rows)}, got {count}")
    data = open_dataset("starter")
    chat = load_chat_format(str(model_dir), trust_remote_code)
    encode = _encoder(model_dir, trust_remote_code)
    views = Views(load_prompts("small"))
    algorithm = StarGate(StarGateConfig(target=target), views, chat, TrainerConfig().max_length)
    examples = []
    for number, row in enumerate(rows[:count]):
        task, persona = data.tasks[row["task_id"]], data.personas[row["persona_id"]]
        pair = Pair(task, persona, *data.golds[task.id, persona.id])
        said = row["turns"][: 1 + number % _MAX_TURNS]
        turns = tuple(_turn(turn["question"], turn["answer"], encode) for turn in said)
        dialogue = Dialogue(f"recorded/{pair.id}", pair.id, 0, len(turns), 0, 0, turns)
        examples.append(algorithm.example(pair, dialogue, None))
    return examples


def _encoder(model_dir: Path, trust_remote_code: bool) -> Any:
    """Text -> the ids that a model would have sampled for it, with its end token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)

    def encode(text: str) -> tuple[int, ...]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*ids, tokenizer.eos_token_id)

    return encode


def _turn(question: str, answer: str, encode: Any) -> Turn:
    return Turn(question, encode(question), StopReason.STOP, answer, (), StopReason.FIXED)
