"""IN3: vague tasks become persons who each want something, clear ones need no question."""

import json
from pathlib import Path
from typing import Any

import pytest

from stargate.config.run import SplitLimit
from stargate.data.dataset import Dataset, open_dataset, read_dataset
from stargate.data.findings import ACTIONS, IMPORT_KINDS, ImportReport
from stargate.data.importers import TaskSource, import_dataset
from stargate.data.in3 import In3Source
from stargate.errors import DataError
from tests.fakes.data_folder import write_folder


def detail(description: str, importance: str, *options: Any) -> dict[str, Any]:
    return {
        "description": description,
        "importance": importance,
        "inquiry": f"{description}?",
        "options": list(options),
    }


TRIP = {
    "category": "Travel",
    "task": "Plan a trip to Paris.",
    "vague": True,
    "missing_details": [
        detail("Budget", "1", "Low", "High", "No preference"),
        detail("Length of stay", "3", "3-5 days", "1 week", "A month"),
    ],
}
CLEAR = {"category": "Facts", "task": "Who wrote Faust?", "vague": False, "missing_details": []}


def imported(
    tmp_path: Path, rows: list[Any], num_persons: int = 3, seed: int = 0
) -> tuple[Dataset, ImportReport]:
    file = tmp_path / "in3.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = TaskSource(splits=[("A", None)], in3=In3Source(num_persons, seed))
    report = import_dataset(file, tmp_path / f"out{seed}", "in3", tasks=tasks)
    return open_dataset(tmp_path / f"out{seed}"), report


def test_a_vague_task_gets_persons_with_one_option_of_each_detail(tmp_path: Path) -> None:
    dataset, report = imported(tmp_path, [TRIP])
    [task] = dataset.tasks.values()
    assert (task.id, task.text, task.needs_question) == ("in3-0000", "Plan a trip to Paris.", True)
    people = list(dataset.personas.values())
    stays = {"Length of stay: 3-5 days.", "Length of stay: 1 week.", "Length of stay: A month."}
    assert {person.facts[0] for person in people} == stays  # the most important first; all differ
    assert {person.facts[1] for person in people} == {"Budget: Low.", "Budget: High."}
    for person in people:
        assert person.importance == (3, 1)
        assert person.task_id == "in3-0000"
        assert all(fact in person.text for fact in person.facts)
        assert person.name in person.text
    assert len({person.name for person in people}) == 3
    gold, used = dataset.golds["in3-0000", people[0].id]
    expected = "This is what you would like: Plan a trip to Paris. And this is how you want it. "
    assert gold == expected + " ".join(people[0].facts)
    assert used == (0, 1)
    assert report.counts == {"option_unusable": 1}


def test_a_clear_task_needs_no_question(tmp_path: Path) -> None:
    dataset, report = imported(tmp_path, [TRIP, CLEAR])
    [pair] = dataset.plain_pairs("A")
    assert (pair.task.text, pair.persona.task_id) == ("Who wrote Faust?", "in3-0001")
    assert pair.gold is None
    assert len(dataset.pairs("A")) == 3  # nobody asks another's task
    assert dataset.without_gold("A") == []
    assert "pair_without_gold" not in report.counts


def test_persons_are_drawn_by_the_seed(tmp_path: Path) -> None:
    first, again, other = (imported(tmp_path, [TRIP], seed=seed)[0] for seed in (0, 1, 2))
    repeated = tmp_path / "repeated"
    repeated.mkdir()
    assert imported(repeated, [TRIP])[0].personas == first.personas
    assert first.personas != again.personas or first.personas != other.personas


def test_rows_go_to_the_splits_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "in3.jsonl"
    rows = [{**TRIP, "task": f"Plan trip {n}."} for n in range(10)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_dataset(file, tmp_path / "out", "in3")
    dataset = read_dataset(tmp_path / "out")
    splits = [task.split for task in dataset.tasks.values()]
    assert splits == ["A", "B", "A", "B", "test"] * 2


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({**TRIP, "missing_details": []}, "vague_without_details"),
        (
            {**TRIP, "missing_details": [detail("Budget", "1", "Other", "")]},
            "vague_without_details",
        ),
        ({**TRIP, "vague": "yes"}, "row_malformed"),
        ({"vague": True}, "row_malformed"),
        ({**TRIP, "missing_details": [{"importance": "1"}, TRIP["missing_details"][0]]}, None),
    ],
)
def test_what_is_unusable_is_counted(tmp_path: Path, row: Any, kind: str | None) -> None:
    dataset, report = imported(tmp_path, [row, CLEAR])
    if kind is None:
        assert report.counts["detail_malformed"] == 1
        assert len(dataset.tasks) == 2
    else:
        assert report.counts[kind] == 1
        assert [task.text for task in dataset.tasks.values()] == ["Who wrote Faust?"]


def test_a_folder_of_in3_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="IN3 is one file"):
        import_dataset(tmp_path, tmp_path / "out", "in3")


PERSON = {"id": "p", "name": "Ann", "text": "Ann has a cat.", "split": "A", "facts": ["A cat."]}
TASK = {"id": "t", "text": "Eat?", "split": "A"}


def test_personas_of_one_task_stand_beside_those_who_ask_everything(tmp_path: Path) -> None:
    tasks = [TASK, {"id": "u", "text": "Wear?", "split": "A"}]
    people = [PERSON, {**PERSON, "id": "q", "text": "Ann has a dog.", "task_id": "u"}]
    golds = [
        {"task_id": t, "persona_id": p, "text": f"{t}{p}"} for t in ("t", "u") for p in ("p", "q")
    ]
    dataset = read_dataset(write_folder(tmp_path / "d", tasks=tasks, personas=people, golds=golds))
    assert [pair.id for pair in dataset.pairs("A")] == ["t:p", "u:p", "u:q"]
    assert [pair.id for pair in dataset.pairs("A", SplitLimit(personas=1))] == ["t:p", "u:p"]


def test_a_plain_task_may_have_a_gold_for_everybody(tmp_path: Path) -> None:
    plain = {"id": "u", "text": "Why is it blue?", "split": "A", "needs_question": False}
    plain["gold"] = "Short waves are scattered."
    gold = {"task_id": "t", "persona_id": "p", "text": "Fish."}
    folder = write_folder(tmp_path / "d", tasks=[TASK, plain], personas=[PERSON], golds=[gold])
    [pair] = read_dataset(folder).plain_pairs("A")
    assert pair.gold == "Short waves are scattered."
    import_dataset(folder, tmp_path / "out")
    [again] = read_dataset(tmp_path / "out").plain_pairs("A")
    assert again == pair


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("tasks", {**TASK, "gold": "All."}, "only a task with needs_question false"),
        ("personas", {**PERSON, "importance": [1, 2]}, "1 facts but 2 values of importance"),
        ("personas", {**PERSON, "importance": [4]}, "less than or equal to 3"),
    ],
)
def test_what_contradicts_itself_is_an_error(
    tmp_path: Path, kind: str, wrong: Any, message: str
) -> None:
    rows = {"tasks": [TASK], "personas": [PERSON], "golds": [], kind: [wrong]}
    with pytest.raises(DataError, match=message):
        read_dataset(write_folder(tmp_path / "d", **rows))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_new_columns_survive_import_and_export(tmp_path: Path, ending: str) -> None:
    from stargate.data.exporters import export_dataset

    dataset, _ = imported(tmp_path, [TRIP, CLEAR])
    export_dataset(dataset, tmp_path / "copy", ending)
    copy = read_dataset(tmp_path / "copy")
    assert copy.personas == dataset.personas
    assert copy.tasks == dataset.tasks
    import_dataset(tmp_path / "copy", tmp_path / "again")
    assert read_dataset(tmp_path / "again").personas == dataset.personas


def test_what_is_left_out_is_listed_before_what_is_noted() -> None:
    actions = [action for action, _ in IMPORT_KINDS.values()]
    assert actions == sorted(actions, key=ACTIONS.index)
