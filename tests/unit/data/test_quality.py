"""The quality checks: true problems are found, and the starter set raises few alarms."""

import random
import time
from dataclasses import replace

import pytest

from stargate.data.dataset import Dataset, DroppedRecord, open_dataset
from stargate.data.findings import Finding, parse_limits
from stargate.data.plain_tasks import asks_for_a_fact
from stargate.data.quality import QualityReport, check_dataset
from stargate.data.similarity import features_of, jaccard, near_duplicates
from stargate.errors import DataError
from stargate.types import Persona, Task

GRACE = ("hobby", "grace")


@pytest.fixture
def starter() -> Dataset:
    return open_dataset("starter")


@pytest.fixture
def hobby(starter: Dataset) -> Dataset:
    """The starter set with the golds of one task only: checked in a tenth of the time."""
    golds = {pair: gold for pair, gold in starter.golds.items() if pair[0] == "hobby"}
    return replace(starter, golds=golds)


def where(report: QualityReport, kind: str) -> list[str]:
    return [place for f in report.findings if f.kind == kind for place, _ in f.cases]


def with_gold(dataset: Dataset, pair: tuple[str, str], text: str) -> Dataset:
    return replace(dataset, golds=dataset.golds | {pair: (text, dataset.golds[pair][1])})


def test_the_starter_set_raises_two_alarms(starter: Dataset) -> None:
    report = check_dataset(starter)
    assert report.num_errors == 0
    # Both are known and harmless: a paraphrase that no word gives away, and "before the baby
    # comes", which two facts of Siobhan tell.
    assert {f.kind: [place for place, _ in f.cases] for f in report.findings} == {
        "ignores_persona": ["workout:priya"],
        "unneeded_facts": ["new-friends:siobhan"],
    }
    assert report.counts["test"] == {
        **{"tasks": 16, "tasks needing a question": 12, "personas": 8, "facts": 96},
        **{"pairs": 96, "golds": 96},
    }
    assert report.lengths["golds"]["number"] == 224
    assert report.lengths["tasks"]["max"] == 14


def test_lengths_are_words_and_percentiles() -> None:
    tasks = {f"t{n}": Task(f"t{n}", " ".join(["word"] * n), "A") for n in range(1, 102)}
    lengths = check_dataset(Dataset("d", tasks, {}, {})).lengths["tasks"]
    assert lengths == {"number": 101, "min": 1, "p5": 6, "median": 51, "p95": 96, "max": 101}


def test_swapped_golds_are_found(starter: Dataset) -> None:
    """Golds given to the next persona of their task: most no longer fit."""
    golds = {}
    for task in starter.tasks:
        mine = [persona for t, persona in starter.golds if t == task]
        for persona, other in zip(mine, mine[1:] + mine[:1], strict=True):
            golds[task, persona] = (starter.golds[task, other][0], ())
    report = check_dataset(replace(starter, golds=golds))
    found = next(f for f in report.findings if f.kind == "ignores_persona")
    assert found.share > 0.75


def test_a_fact_that_was_not_to_be_told_is_found(starter: Dataset) -> None:
    text = starter.golds[GRACE][0] + " You ride the painted wooden buses and have no licence."
    report = check_dataset(with_gold(starter, GRACE, text))
    [finding] = [f for f in report.findings if f.kind == "unneeded_facts"]
    details = [detail for _, detail in finding.cases]
    assert "fact 9: I ride the painted wooden buses because I have no licence." in details


def test_a_gold_that_tells_the_whole_profile_back_is_found(starter: Dataset) -> None:
    golds = {pair: (text, ()) for pair, (text, _) in starter.golds.items()}
    assert len(where(check_dataset(replace(starter, golds=golds)), "unneeded_facts")) <= 4
    golds[GRACE] = (golds[GRACE][0] + " " + starter.personas["grace"].text, ())
    assert "hobby:grace" in where(check_dataset(replace(starter, golds=golds)), "unneeded_facts")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("A person rests after {work} and eats beans. Then sleep.", "addressed_to_nobody"),
        ("Hello Samuel, you should rest.", "addressed_to_another"),
        ("I'm sorry, Grace, but I'll need more information from you.", "asks_or_refuses"),
        ("As an AI, I have no hobbies, but you may paddle.", "asks_or_refuses"),
        ("Could you please tell me how much time you have?", "asks_or_refuses"),
        ("You could paddle, and when you are back you", "cut_off"),
        ("Pick something you enjoy, set a weekly date, and stay with it.", "ignores_persona"),
    ],
)
def test_golds_of_a_wrong_form_are_found(hobby: Dataset, text: str, kind: str) -> None:
    report = check_dataset(with_gold(hobby, GRACE, text))
    assert where(report, kind) == ["hobby:grace"]


def test_golds_that_end_in_a_list_or_quote_are_not_cut_off(hobby: Dataset) -> None:
    for text in ("You can:\n- paddle\n- rest", 'You say "aloha."', "You rest (a lot)"):
        assert where(check_dataset(with_gold(hobby, GRACE, text)), "cut_off") == []


def test_golds_that_are_alike_mean_that_the_task_needs_no_question(starter: Dataset) -> None:
    text = "You simmer lentils slowly with garlic, cumin and tomatoes until everything softens."
    golds = {
        pair: ((f"{text} Serve it to {pair[1]}.", ()) if pair[0] == "hobby" else gold)
        for pair, gold in starter.golds.items()
    }
    assert where(check_dataset(replace(starter, golds=golds)), "plain_task") == ["hobby"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("What is the capital of Mongolia?", True),
        ("What's the difference between an IPA and a Pale Ale.", True),
        ("How many planets are there?", True),
        ("Why does the sky turn red at sunset.", True),
        ("Who's the oldest president?", True),
        ("Summarize the Great Gatsby.", True),
        ("What is the best way to learn Spanish.", False),
        ("What is the history of my hometown.", False),
        ("What book should I read next?", False),
        ("How do I know if I\u2019m depressed.", False),
        ("Is there a better way to organize my closet.", False),
    ],
)
def test_requests_for_facts_are_told_from_requests_for_advice(text: str, plain: bool) -> None:
    assert asks_for_a_fact(text) is plain


def test_splits_that_share_a_text_are_errors(starter: Dataset) -> None:
    tasks = starter.tasks | {"x": Task("x", "what book  should I READ next", "test")}
    rosa, gareth = (starter.personas[name] for name in ("rosa", "gareth"))
    owen = gareth.text.replace("Gareth", "Owen")
    personas = starter.personas | {
        "y": replace(rosa, id="y", split="B"),
        "z": replace(gareth, id="z", split="test", text=owen),
    }
    report = check_dataset(Dataset("d", tasks, personas, starter.golds))
    assert where(report, "task_in_two_splits") == ["x"]
    assert where(report, "persona_in_two_splits") == ["y"]
    assert where(report, "persona_nearly_in_two_splits") == ["z"]
    assert report.num_errors == 3
    assert [finding.level for finding in report.findings[:3]] == ["error"] * 3


def test_near_tasks_within_and_between_splits_are_told_apart() -> None:
    texts = {
        "a": ("How do I cook a perfect steak?", "A"),
        "b": ("What is the best way to cook the perfect steak?", "A"),
        "c": ("Can you advise me on how to cook a perfect steak?", "test"),
        "d": ("How do I train a puppy?", "test"),
    }
    tasks = {id: Task(id, text, split) for id, (text, split) in texts.items()}
    report = check_dataset(Dataset("d", tasks, {}, {}))
    assert where(report, "near_duplicate_task") == ["b"]
    assert where(report, "task_nearly_in_two_splits") == ["c"]


def test_repeated_and_nearly_repeated_golds_are_found(starter: Dataset) -> None:
    text, _ = starter.golds[GRACE]
    dataset = with_gold(starter, ("hobby", "marco"), text)
    dataset = with_gold(dataset, ("hobby", "ben"), text.replace("Outrigger", "Kayak"))
    report = check_dataset(dataset)
    pairs = list(starter.golds)
    late = sorted([GRACE, ("hobby", "marco")], key=pairs.index)[1]
    assert where(report, "duplicate_gold") == [":".join(late)]
    assert len(where(report, "near_duplicate_gold")) == 1


def test_what_else_is_reported() -> None:
    tasks = {"t": Task("t", "Eat?", "A"), "u": Task("u", "Wear?", "B")}
    personas = {
        "p": Persona("p", "Ann", "Ann bakes.", "A", ("I bake.",)),
        "q": Persona("q", "ann", "Ann sails.", "A"),
        "r": Persona("r", "Bo", "Bo knits.", "B", ("I knit.",)),
    }
    golds: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {
        ("t", "p"): ("You bake.", ()),
        ("t", "r"): ("You knit.", ()),
    }
    dropped = [DroppedRecord("empty_gold", "golds.jsonl:3")]
    report = check_dataset(Dataset("d", tasks, personas, golds, dropped))
    assert where(report, "same_name") == ["q"]
    assert where(report, "no_facts") == ["q"]
    assert where(report, "unusable_record") == ["golds.jsonl:3"]
    assert where(report, "gold_across_splits") == ["t:r"]
    assert where(report, "pair_without_gold") == ["split B", "t:q"]


def test_other_languages_are_not_judged_by_english_rules() -> None:
    tasks = {"t": Task("t", "Was soll ich heute kochen?", "A")}
    personas = {"p": Persona("p", "Eva", "Eva mag keinen Fisch.", "A", ("Ich mag keinen Fisch.",))}
    golds = {("t", "p"): ("Kartoffelsuppe mit Majoran, und kein Fisch kommt hinein.", ())}
    report = check_dataset(Dataset("d", tasks, personas, golds))
    assert [finding.kind for finding in report.findings] == ["not_english"]


def test_an_empty_set_is_checked() -> None:
    tasks = {"t": Task("t", "Eat?", "A")}
    report = check_dataset(Dataset("d", tasks, {}, {}))
    assert report.counts["A"]["pairs"] == 0
    assert report.to_json()["num_errors"] == 0


@pytest.mark.parametrize(
    ("limit", "count", "of", "exceeded"),
    [(3, 3, 10, False), (3, 4, 10, True), (0.3, 3, 10, False), (0.3, 4, 10, True), (0, 1, 9, True)],
)
def test_a_limit_is_a_count_or_a_share(limit: float, count: int, of: int, exceeded: bool) -> None:
    finding = Finding("plain_task", of, count, limit)
    assert finding.exceeded is exceeded
    assert finding.level == ("error" if exceeded else "warning")


def test_limits_are_parsed_or_refused() -> None:
    assert parse_limits(["plain_task=0.2", "cut_off=0"]) == {"plain_task": 0.2, "cut_off": 0}
    for text in ("plain=1", "plain_task", "plain_task=-1", "plain_task=2.5", "plain_task=x"):
        with pytest.raises(DataError, match=r"--max "):
            parse_limits([text])


# --- near duplicates


def test_matches_are_those_of_comparing_all_pairs() -> None:
    rng = random.Random(1)
    vocabulary = [f"w{n}" for n in range(400)]
    texts = []
    for _ in range(60):
        words = rng.choices(vocabulary, k=80)
        texts.append(" ".join(words))
        for changes in (1, 4, 12, 40):
            copy = list(words)
            for index in rng.sample(range(80), changes):
                copy[index] = rng.choice(vocabulary)
            texts.append(" ".join(copy))
    features = [features_of(text, "golds") for text in texts]
    near = {
        index: [
            (similarity, other)
            for other in range(index)
            if (similarity := jaccard(features[other], features[index])) >= 0.6
        ]
        for index in range(len(texts))
    }
    found = dict(near_duplicates(texts, "golds", 0.6))
    # Every text that is that similar to an earlier one is found, and only with such.
    assert all(set(matches) <= set(near[index]) for index, matches in found.items())
    assert len(found) >= 0.98 * sum(map(bool, near.values())) > 100


def test_order_of_words_counts_for_golds_and_not_for_tasks() -> None:
    texts = ["eat lentils before training", "before training lentils eat"]
    for kind, similarity in (("golds", 0.0), ("tasks", 1.0)):
        assert jaccard(*(features_of(text, kind) for text in texts)) == similarity


def test_empty_and_short_texts_match_nothing_by_accident() -> None:
    assert list(near_duplicates(["", "", "a", "b"], "golds", 0.5)) == []
    assert list(near_duplicates([], "golds", 0.5)) == []
    assert list(near_duplicates(["hello there", "Hello, there!"], "golds", 0.9)) == [
        (1, [(1.0, 0)])
    ]


def test_many_copies_of_one_text_take_no_time() -> None:
    started = time.monotonic()
    copies = ["the same long text about nothing at all"] * 5000
    assert len(list(near_duplicates(copies, "golds", 0.6))) == 4999
    assert time.monotonic() - started < 20
