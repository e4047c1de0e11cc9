"""Ablations: which conditions there are, what they change, and what their runs share."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.evaluation.ablation import (
    condition_config,
    conditions_of,
    share,
    training_configs,
    weak_roleplayer,
)
from stargate.records.store import RunStore

FACTS = {"grounding": {"type": "facts"}}


def config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "rollout": {"num_dialogues": 2, "turns": [1]},
            "questioner": {"sampling": {"max_new_tokens": 20}},
            "response": {"sampling": {"max_new_tokens": 20}},
            "evaluation": {
                **{"num_dialogues": 1, "turns": [1], "show_dialogues": 0},
                "references": False,
            },
            "schedule": {"num_iterations": 1},
            "tracking": {"tensorboard": False},
            **changes,
        }
    )


# ---------------------------------------------------------------------------------------------
# Which conditions, and what they change


def test_the_reference_comes_first_whatever_the_order() -> None:
    named = conditions_of(["random", "gold_response", "own_response"])
    assert [condition.name for condition in named] == ["own_response", "gold_response", "random"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["own_response", "golden"], "'golden' is not one of own_response, questions_only"),
        ([""], "'' is not one of"),
        (["weaker_roleplayer"], "tests the checkpoints of own_response: name both"),
    ],
)
def test_bad_condition_names(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        conditions_of(names)


def test_conditions_set_what_they_are_about_and_nothing_else() -> None:
    base = config(algorithm={"target": "questions_only"}, seed=7)
    made = training_configs(base, conditions_of(["own_response", "gold_response", "random"]))
    assert {name: (c.algorithm.target, c.algorithm.selection) for name, c in made.items()} == {
        "own_response": ("own_response", "gold"),
        "gold_response": ("gold_response", "gold"),
        "random": ("own_response", "random"),
    }
    algorithm = base.algorithm.model_copy(update={"target": "gold_response"})
    assert made["gold_response"] == base.model_copy(update={"algorithm": algorithm})


def test_two_conditions_that_are_the_same_are_refused() -> None:
    base = config(algorithm={"selection": "contrastive"})
    with pytest.raises(ConfigError, match="contrastive and own_response are the same"):
        training_configs(base, conditions_of(["own_response", "contrastive"]))


def test_the_weaker_roleplayer_is_the_ungrounded_one() -> None:
    base = config(roleplayer=FACTS)
    overrides = weak_roleplayer(base, [])
    assert condition_config(base, "w", overrides).roleplayer.grounding.type == "persona"
    assert weak_roleplayer(base, ["roleplayer.model=tiny"]) == ("roleplayer.model=tiny",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "is not grounded in facts, so say what a weaker one is"),
        (["seed=3"], r"expected roleplayer.KEY=VALUE, got 'seed=3'"),
        (["roleplayer.grounding={type: persona}"], "that is the Roleplayer of training"),
        (["roleplayer.modle=x"], "unknown key roleplayer.modle"),
    ],
)
def test_what_is_no_weaker_roleplayer(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weak_roleplayer(config(), given)


# ---------------------------------------------------------------------------------------------
# What is shared


def _score(dialogue_id: str, other: float | None) -> dict[str, Any]:
    return {
        "dialogue_id": dialogue_id,
        "pair_id": "t1:p",
        "gold_logprob": -1.0,
        "num_gold_tokens": 4,
        "other_gold_logprob": other,
        "num_other_golds": None if other is None else 1,
    }


@pytest.mark.parametrize(
    ("selection", "expected"),
    [("gold", ["a", "b"]), ("random", ["a", "b"]), ("contrastive", ["b"])],
)
def test_scores_are_shared_where_they_hold_what_selection_needs(
    tmp_path: Path, selection: str, expected: list[str]
) -> None:
    empty, first = RunStore(tmp_path / "empty"), RunStore(tmp_path / "first")
    target = RunStore(tmp_path / "target")

    async def copy() -> dict[str, dict[str, Any]]:
        await first.append("t0", "scores", [_score("a", None), _score("b", -2.0)])
        await first.append("t1", "scores", [_score("later", None)])
        await first.append("t0", "selections", [{"pair_id": "t1:p", "dialogue_id": "a"}])
        return await share([empty, first], target, selection)

    copied = asyncio.run(copy())
    assert copied == {"t0/scores": {"from": "first", "rows": len(expected)}}
    assert [row["dialogue_id"] for row in target.read("t0", "scores")] == expected
    assert sorted(place.name for place in (tmp_path / "target").iterdir()) == ["t0"]
    assert not list(target.read("t0", "selections"))
