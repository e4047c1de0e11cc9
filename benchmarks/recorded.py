"""Dialogues that a run of stargate recorded, kept as texts: any model's tokenizer can be used.

They were played by the embedded model with itself (`cpu_learn`, iteration 0).
"""

import json
from pathlib import Path
from typing import Any

from stargate.data.dataset import open_dataset
from stargate.errors import DataError
from stargate.text.chat import load_chat_format
from stargate.text.hf_tokenizer import HfChatTokenizer
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import Pair, StopReason, Turn


class RecordedDialogues:
    """The rows of a file, with the starter set's golds, in the tokens of one model."""

    def __init__(self, file: Path, model_dir: Path) -> None:
        from transformers import AutoTokenizer

        self._rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self._encode, self._end = HfChatTokenizer(tokenizer).encode, tokenizer.eos_token_id
        self.chat = load_chat_format(str(model_dir))
        self.views = Views(load_prompts("small"))
        self.data = open_dataset("starter")

    def rows(self, count: int, option: str) -> list[dict[str, Any]]:
        """The first ones. Raises DataError, naming the option, if there are not so many."""
        if not 1 <= count <= len(self._rows):
            raise DataError(f"{option} must be in 1..{len(self._rows)}, got {count}")
        return self._rows[:count]

    def pair(self, row: dict[str, Any]) -> Pair:
        task, persona = self.data.tasks[row["task_id"]], self.data.personas[row["persona_id"]]
        return Pair(task, persona, *self.data.golds[task.id, persona.id])

    def turn(self, said: dict[str, str], ended: bool) -> Turn:
        """A turn with the ids that a model would have sampled for its question, with its end token
        if it `ended`. The answer is not sampled: the template tokenises it as text.
        """
        asked = (*self._encode(said["question"]), *([self._end] if ended else []))
        stop = StopReason.STOP if ended else StopReason.LENGTH
        return Turn(said["question"], asked, stop, said["answer"], (), StopReason.FIXED)
