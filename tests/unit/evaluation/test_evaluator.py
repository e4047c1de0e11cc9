"""What an evaluation says of itself, and measures by."""

from pathlib import Path

import pytest
import yaml

from stargate.config.files import packaged_configs_dir
from stargate.config.run import RunConfig
from stargate.evaluation.ablation import observe_last
from stargate.evaluation.checkpoint_records import CheckpointRecords
from stargate.evaluation.evaluator import Evaluator
from stargate.evaluation.playing import EvaluationPairs
from tests.fakes.measured import PAIRS, TEA, dialogue, stored, tables
from tests.fakes.scripted import byte_chat, make_turn


@pytest.mark.parametrize(("grounding", "rate"), [("facts", 1.0), ("persona", None)])
def test_the_users_own_words_tell_what_was_answered_already(
    tmp_path: Path, grounding: str, rate: float | None
) -> None:
    prompts = yaml.safe_load((packaged_configs_dir() / "prompts" / "paper.yaml").read_text())
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**prompts, "told_already": "You know that."}))
    config = RunConfig.model_validate(
        {
            "rollout": {"num_dialogues": 1, "turns": [1]},
            "questioner": {"sampling": {"max_new_tokens": 20}},
            "response": {"sampling": {"max_new_tokens": 20}},
            "roleplayer": {"grounding": {"type": grounding}, "prompts": str(file)},
        }
    )
    again = dialogue("a:p", 0, 0, [TEA, make_turn("Which drinks?", "You know that.")])
    records = CheckpointRecords(PAIRS, [again], [], {})
    store = stored(tmp_path / "run", {"eval-m0": tables(records)})
    pairs = EvaluationPairs(list(PAIRS.values()))
    chat = byte_chat()
    evaluator = Evaluator(config, config, pairs, tmp_path, chat, chat, tmp_path)
    values = evaluator.write(store)
    measured = values["m0"].get("answered_already_rate")
    assert (measured and measured["mean"]) == rate
    observed = observe_last(store, values, PAIRS, chat.count).get("answered_already_rate", [])
    assert [observation.value for observation in observed] == ([rate] if rate else [])
