"""Configs: every shipped one loads; a mistake is one line that names file, key and value."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from stargate.config.files import dump_config, load_config, packaged_configs_dir
from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.text.prompts import load_prompts

CONFIGS = sorted(packaged_configs_dir().glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_loads_says_what_it_is_for_and_loads_again(
    file: Path, tmp_path: Path
) -> None:
    config = load_config(file)
    load_prompts(config.prompts)
    header = file.read_text().split("\n\n")[0]
    assert header.startswith("# ")
    assert "Hardware:" in header
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


def test_the_paper_preset_is_the_paper() -> None:
    config = load_config("paper")
    assert config.rollout.num_dialogues == 10
    assert config.rollout.turns == (1, 2, 3)
    sampling = {"temperature": 0.9, "top_p": 0.9, "max_new_tokens": 700}
    assert config.questioner.sampling.model_dump() == sampling
    assert config.roleplayer.sampling.temperature == 0.0
    assert config.algorithm.selection == "gold"
    trainer = config.trainer
    assert (trainer.learning_rate, trainer.warmup_fraction, trainer.num_epochs) == (2e-5, 0.1, 1)
    assert (trainer.batch_size, trainer.max_length, trainer.validation_fraction) == (64, 1024, 0.05)
    assert (config.algorithm.start_from, config.algorithm.target) == ("base", "own_response")
    assert config.data.train_splits == ("A", "B")
    assert config.schedule.num_iterations == 3
    assert RunConfig().rollout.num_dialogues == 10  # and so are the defaults


def test_overrides_reach_nested_keys_and_are_yaml() -> None:
    config = load_config("cpu_demo", ["rollout.turns=[2]", "seed=7", "device=cpu"])
    assert (config.rollout.turns, config.seed, config.device) == ((2,), 7, "cpu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rolout: {}", "unknown key rolout"),
        ("rollout: {num_dialogs: 3}", "unknown key rollout.num_dialogs"),
        ("seed: soon", "seed: Input should be a valid integer.*got 'soon'"),
        (
            "rollout: {num_dialogues: 0}",
            "rollout.num_dialogues: .*greater than or equal to 1, got 0",
        ),
        ("trainer: {batch_size: 6}", "trainer: batch_size must be a multiple .* = 4, got 6"),
        ("data: {test_split: A}", "data: test_split must not be a train split, got 'A' in both"),
        ("roleplayer: {grounding: {type: magic}}", "roleplayer.grounding: .*'magic'"),
        ("roleplayer: {style: rude}", "roleplayer.style.0: .*'terse'.*got 'rude'"),
        ("roleplayer: {style: []}", "roleplayer.style: .*at least 1"),
        ("name: ../up", "name: .*got '../up'"),
        ("selection: {type: gold}", "selection is algorithm.selection .* now"),
        ("trainer: {target: own_response}", "trainer.target is algorithm.target now"),
        (
            "roleplayer: {grounding: {type: facts, max_facts_per_turn: 2}}",
            "max_facts_per_turn is roleplayer.grounding.questions_per_turn now",
        ),
        ("evaluation: {num_turns: 2}", r"evaluation.num_turns is evaluation.turns \(a list.* now"),
        ("evaluation: {turns: []}", "evaluation.turns: .*at least 1 item"),
        (
            "algorithm: {type: magic}",
            "algorithm: type must be star_gate, turn_weighted, dpo or grpo.*'magic'",
        ),
        ("- 1", "expected a mapping of keys, got list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=expected) as error:
        load_config(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed.deep=1", "seed is not a group of keys"),
        ("seed=[", "not valid YAML"),
        ("nothing=1", "unknown key nothing"),
    ],
)
def test_mistakes_in_an_override(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config("cpu_demo", [*([] if "deep" not in override else ["seed=1"]), override])


def test_a_missing_config_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no such config file.*cpu_demo.*paper"):
        load_config("cpu_dem")


def test_a_missing_prompt_set_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no such file.*paper, small"):
        load_prompts("nope")


def test_a_template_with_an_unknown_value_is_a_config_error(tmp_path: Path) -> None:
    text = (packaged_configs_dir() / "prompts" / "paper.yaml").read_text()
    file = tmp_path / "prompts.yaml"
    file.write_text(text.replace("My name is {{ name }}.", "My name is {{ nmae }}."))
    prompts = load_prompts(str(file))
    with pytest.raises(ConfigError, match="'nmae' is undefined"):
        prompts.render(prompts.opening, name="Ann", task="t")


def test_a_scorer_is_not_divided_over_gpus() -> None:
    for share in (None, 0.0, 0.5, 1.0):
        assert RunConfig.model_validate({"scorer": {"num_gpus": share}}).scorer.num_gpus == share
    with pytest.raises(ValidationError, match=r"a scorer computes on one GPU, .* at most 1, got 2"):
        RunConfig.model_validate({"scorer": {"num_gpus": 2}})
