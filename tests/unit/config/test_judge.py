"""evaluation.judge in a config."""

from pathlib import Path

import pytest

from stargate.config.files import dump_config, load_config
from stargate.config.judge import ApiBackend, JudgeConfig
from stargate.errors import ConfigError

JUDGE_YAML = """
evaluation:
  judge:
    max_pairs: 50
    thresholds: {min_gold_rate: 0.7}
    backend: {type: api, verdict: json_schema, oracle: {type: openai, model: gpt-4o}}
"""


def test_config(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(JUDGE_YAML)
    config = load_config(file)
    judge = config.evaluation.judge
    assert judge is not None
    assert isinstance(judge.backend, ApiBackend)
    assert judge.backend.oracle.model == "gpt-4o"
    assert (judge.max_pairs, judge.thresholds.min_gold_rate) == (50, 0.7)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config
    assert load_config("cpu_demo", ["evaluation.judge={}"]).evaluation.judge == JudgeConfig()


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        ("{backend: {type: engine, verdict: json_schema}}", "unknown key .*verdict"),
        ("{backend: {type: api, oracle: {type: local}}}", "judge.backend.*'local'"),
        ("{backend: {type: magic}}", "judge.backend: .*'magic'"),
        ("{max_pairs: 0}", "judge.max_pairs: .* got 0"),
    ],
)
def test_mistakes_in_a_config(judge: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config("cpu_demo", [f"evaluation.judge={judge}"])
