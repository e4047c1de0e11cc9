"""Whether the first turn asks where it should, by hand; and IN3 from its file to the measures."""

import asyncio
import json
import math
from pathlib import Path

import pytest

from stargate.config.roleplayer import FactsGrounding
from stargate.config.run import EngineRoleplayerConfig, RolloutConfig, SamplingConfig
from stargate.data.dataset import read_dataset
from stargate.data.importers import TaskSource, import_dataset
from stargate.data.in3 import In3Source
from stargate.evaluation.asking import observe_asking, weighed
from stargate.evaluation.catalog import in_order
from stargate.evaluation.elicitation import observe_elicitation
from stargate.evaluation.measures import changes, measure_checkpoint
from stargate.evaluation.statistics import BootstrapConfig, Measure, Observation, measure
from stargate.rollout.deadline import TurnWatch
from stargate.rollout.dialogue import plan_dialogues, play
from stargate.rollout.questioner import Questioner
from stargate.rollout.roleplayer import EngineCall, build_roleplayer
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import Dialogue, GenerateRequest, Pair
from tests.fakes.keyword_match import KeywordMatch
from tests.fakes.scripted import ASSISTANT, ScriptedGenerate, byte_chat
from tests.unit.data.test_in3 import detail
from tests.unit.evaluation.test_elicitation import FOOD, STATEMENT, pair, played, values

QUICK = BootstrapConfig(num_resamples=200)
# What is asked for in each task's two turns.
SCRIPT = {
    "Plan a trip.": ("What length do you like?", "What money is there?"),
    "Bake a loaf.": ("Here is a loaf.", "Which flour do you like?"),
    "Make some tea.": ("Which cup?", "Which spoon? Which plate?"),
    "Who wrote Faust?": ("Goethe.", "Anything else?"),
    "What is two plus two?": ("Which numbers?", "Four."),
    "How far is the moon?": ("Far.", "Very far."),
}
VAGUE = {
    "Plan a trip.": [
        detail("Money limit", "1", "Low", "High", "Any"),
        detail("Length of stay", "3", "A day", "A week", "A month"),
        detail("Hotel stars", "1", "One", "Two", "Three"),
    ],
    "Bake a loaf.": [detail("Flour kind", "2", "Rye", "Wheat", "Spelt")],
    "Make some tea.": [detail("Leaf colour", "2", "Green", "Black", "Red")],
}


def in3_played(folder: Path) -> list[tuple[Pair, Dialogue]]:
    """The sample as `stargate data import` makes it, three persons per vague task, played."""
    rows = [
        {"task": t, "vague": t in VAGUE, "category": "c", "missing_details": VAGUE.get(t, [])}
        for t in SCRIPT
    ]
    (folder / "in3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = TaskSource(splits=[("test", None)], in3=In3Source(3, 0))
    import_dataset(folder / "in3.jsonl", folder / "data", "in3", tasks=source)
    dataset = read_dataset(folder / "data")
    pairs = [*dataset.pairs("test"), *dataset.plain_pairs("test")]
    views, chat = Views(load_prompts("paper")), byte_chat()

    def asks(request: GenerateRequest) -> str:
        prompt = "".join(map(chr, request.prompt_ids))
        turns = next(turns for task, turns in SCRIPT.items() if task in prompt)
        return turns[request.prompt_ids.count(ASSISTANT) - 1]

    questioner = Questioner(ScriptedGenerate(asks), views, chat, SamplingConfig(), 4096)
    config = EngineRoleplayerConfig(grounding=FactsGrounding(voice="fact"))
    silent = EngineCall(ScriptedGenerate(lambda request: "never called"), chat, config)
    roleplay = build_roleplayer(config, silent, views, KeywordMatch(), 0)
    plans = plan_dialogues(pairs, "eval-m0", 0, RolloutConfig(num_dialogues=1, turns=(2,)))
    return [
        (plan.pair, asyncio.run(play(plan, questioner, roleplay, TurnWatch(60.0))))
        for [plan] in plans
    ]


def measured(found: list[tuple[Pair, Dialogue]]) -> dict[str, Measure]:
    observations = observe_elicitation(found, len) | observe_asking(found)
    return measure_checkpoint(observations, {}, QUICK)


def test_in3_from_its_file_to_the_measures(tmp_path: Path) -> None:
    got = measured(in3_played(tmp_path))
    expected = {
        # By task: 2 of 3 vague ones ask at once, 1 of 3 plain ones. (By dialogue it were 9 vague
        # of 12, so that always asking would have 0.75.)
        "ask_rate": 2 / 3,
        "needless_ask_rate": 1 / 3,
        "ask_balanced_accuracy": 2 / 3,
        "ask_accuracy": 4 / 6,
        "always_ask_accuracy": 3 / 6,
        "never_ask_accuracy": 3 / 6,
        # Of the trip the length is asked for, and one of its two details of importance 1; of the
        # loaf and the tea one of two.
        "coverage_of_importance_3": 1.0,
        "coverage_of_importance_2": 1 / 2,
        "coverage_of_importance_1": 1 / 2,
        "fact_coverage": (2 / 3 + 1 + 0) / 3,
        "questions_per_dialogue": (2 + 1 + 3) / 3,
        "needless_question_rate": (0.5 + 0.5 + 0) / 3,
    }
    assert {name: got[name].mean for name in expected} == pytest.approx(expected)
    assert (got["ask_rate"].n, got["ask_rate"].task_clusters) == (9, 3)
    assert (got["ask_balanced_accuracy"].n, got["ask_balanced_accuracy"].task_clusters) == (12, 6)
    for name in expected:
        assert got[name].nested or got[name].task_clusters == 1, name
    order = [info.name for info in in_order(got) if info.name in expected]
    assert order.index("ask_balanced_accuracy") + 1 == order.index("ask_accuracy")
    assert order.index("ask_accuracy") + 1 == order.index("always_ask_accuracy")


def test_balanced_accuracy_has_the_interval_of_a_mean_of_two_rates() -> None:
    from scipy.stats import t

    found = [played(pair(f"v{n}"), FOOD if n else STATEMENT) for n in range(2)]
    found += [played(pair(f"p{n}", needs=False), FOOD if n else STATEMENT) for n in range(2)]
    of_tasks = [
        Observation(entry.task, entry.task, entry.value)  # a person each
        for entry in observe_asking(found)["ask_balanced_accuracy"]
    ]
    got = measure(of_tasks)
    # Four tasks, each 0.5 from its group's rate: 4/3 x 4 x 0.25 / 16, t with 3 degrees of freedom.
    reach = float(t.ppf(0.975, 3)) * math.sqrt(1 / 12)
    assert got.mean == 0.5
    assert (got.ci_low, got.ci_high) == (pytest.approx(0.5 - reach), pytest.approx(0.5 + reach))


def test_tasks_weigh_the_same_and_groups_too() -> None:
    crowded = [Observation("a", f"p{n}", 1.0) for n in range(5)]
    lonely = [Observation("b", "q", 0.0), Observation("c", "r", 0.0)]
    assert measure(weighed([*crowded, *lonely])).mean == pytest.approx(1 / 3)
    assert measure(weighed(crowded, lonely)).mean == pytest.approx(1 / 2)


@pytest.mark.parametrize(("turn", "accuracy"), [(FOOD, 0.75), (STATEMENT, 0.25)])
def test_constant_policies_have_half_the_balanced_accuracy_and_no_interval(
    turn: object, accuracy: float
) -> None:
    found = [played(pair(f"t{n}", needs=n > 0), turn) for n in range(4)]  # type: ignore[arg-type]
    got = measured(found)
    assert got["ask_balanced_accuracy"].mean == 0.5
    assert got["ask_balanced_accuracy"].ci_low is None
    assert got["ask_accuracy"].mean == accuracy
    assert got["always_ask_accuracy"].mean == 0.75
    assert got["never_ask_accuracy"].mean == 0.25


def test_without_plain_tasks_there_is_a_rate_and_no_accuracy() -> None:
    found = observe_asking([played(pair(), STATEMENT, FOOD)])
    assert values(found, "ask_rate") == [0.0]  # the first turn counts
    assert all(found[name] == [] for name in found if name != "ask_rate")


def test_constant_policies_do_not_change(tmp_path: Path) -> None:
    found = observe_asking([played(pair("v"), FOOD), played(pair("p", needs=False), FOOD)])
    assert set(changes(found, found, QUICK)) == {
        *("ask_rate", "needless_ask_rate", "ask_balanced_accuracy", "ask_accuracy")
    }
