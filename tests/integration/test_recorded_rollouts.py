"""The same rollouts give the same selections and examples, to the token, as before there was a seam
for algorithms: dialogues of a run of `cpu_demo` (embedded model, small prompts) and what e3d8a66
made of them under every rule, target and choice of questions.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stargate.algorithm.base import ScoredGroup
from stargate.algorithm.star_gate import StarGate
from stargate.config.algorithm import StarGateConfig
from stargate.errors import RecordDropped
from stargate.records.schemas import dialogue_from_row
from stargate.resources.models import resolve_model
from stargate.seeds import derive_seed
from stargate.text.chat import ChatFormat, load_chat_format
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import DialogueScore, Generation, Pair, Persona, StopReason, Task

RECORDED = json.loads(
    (Path(__file__).parent / "data" / "recorded_rollouts.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return load_chat_format(str(resolve_model("embedded")))


def scored_group(recorded: Mapping[str, Any]) -> ScoredGroup:
    task, _, persona = recorded["pair_id"].partition(":")
    facts = tuple(recorded["facts"])
    pair = Pair(
        Task(task, recorded["task"], "A"),
        Persona(persona, recorded["name"], "", "A", facts),
        recorded["gold"],
    )
    dialogues = [dialogue_from_row(row) for row in recorded["dialogues"]]
    return ScoredGroup(pair, dialogues, [DialogueScore(**score) for score in recorded["scores"]])


@pytest.mark.parametrize("questions", ["all", "answered"])
@pytest.mark.parametrize("target", ["own_response", "questions_only", "gold_response"])
@pytest.mark.parametrize("selection", ["gold", "contrastive", "random"])
def test_selections_and_examples_are_what_they_were(
    chat: ChatFormat, selection: str, target: str, questions: str
) -> None:
    config = StarGateConfig.model_validate(
        {"selection": selection, "target": target, "questions": questions}
    )
    views = Views(load_prompts(RECORDED["config"]["prompts"]))
    algorithm = StarGate(config, views, chat, max_length=1024)
    said = RECORDED["response"]
    response = Generation(said["text"], tuple(said["token_ids"]), StopReason.STOP, 0, 10)
    expected = [
        entry
        for entry in RECORDED["expected"]
        if (entry["selection"], entry["target"], entry["questions"])
        == (selection, target, questions)
    ]
    assert len(expected) == len(RECORDED["pairs"]) == 3
    for recorded, wanted in zip(RECORDED["pairs"], expected, strict=True):
        group = scored_group(recorded)
        [chosen] = algorithm.select(group, derive_seed(RECORDED["config"]["seed"], "t0"))
        assert chosen.dialogue_id == wanted["dialogue_id"]
        assert list(chosen.candidate_scores) == wanted["candidate_scores"]
        dialogue = group.dialogue(chosen.dialogue_id)
        if "dropped" in wanted:
            with pytest.raises(RecordDropped, match=wanted["dropped"]):
                algorithm.example(group.pair, dialogue, response)
            continue
        made = algorithm.example(group.pair, dialogue, response)
        ids_and_mask = json.dumps([made.input_ids, [int(w) for w in made.weights]])
        assert hashlib.sha256(ids_and_mask.encode()).hexdigest() == wanted["digest"]
        assert made.response == wanted["response"]
