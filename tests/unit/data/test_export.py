"""Exports: jsonl, parquet and hf come back exactly; sft is what TRL's SFTTrainer takes."""

import json
from pathlib import Path

import pytest

from stargate.data.dataset import Dataset, open_dataset, read_dataset
from stargate.data.exporters import Target, export_dataset, export_sft
from stargate.data.importers import TaskSource, import_dataset, parse_splits
from stargate.errors import DataError
from stargate.text.prompts import load_prompts
from tests.fakes.data_folder import write_folder

GOLD = {"task_id": "t", "persona_id": "p", "text": "Du\n\n- isst: \\n", "facts_used": [1, 0]}


def content(dataset: Dataset) -> tuple[object, ...]:
    """Everything of a dataset, order included."""
    return (
        list(dataset.tasks.items()),
        list(dataset.personas.items()),
        list(dataset.golds.items()),
        dataset.fact_origins,
    )


@pytest.fixture
def awkward(tmp_path: Path) -> Dataset:
    """A dataset with all that could be lost: origins, plain tasks, missing golds, odd letters."""
    rows = {
        "tasks": [
            {"id": "t", "text": 'Was "isst" man,\u2028heute?', "split": "A"},
            {"id": "u", "text": "2+2?", "split": "test", "needs_question": False},
        ],
        "personas": [
            {
                **{"id": "p", "name": "Jos\u00e9", "text": "I bake. I nap.", "split": "A"},
                "facts": ["I bake.", "I swim."],
                "fact_origins": ["sentence:0-7", "extracted"],
            },
            {"id": "q", "name": "Q \U0001f600", "text": "Is Q.", "split": "test"},
        ],
        "golds": [GOLD],
    }
    return read_dataset(write_folder(tmp_path / "awkward", **rows))


@pytest.mark.parametrize("target", ["jsonl", "parquet"])
def test_a_dataset_folder_comes_back_exactly(
    tmp_path: Path, awkward: Dataset, target: Target
) -> None:
    for number, dataset in enumerate((awkward, open_dataset("starter"))):
        out = tmp_path / f"out{number}"
        counts = export_dataset(dataset, out, target)
        assert counts["golds"] == len(dataset.golds)
        assert content(read_dataset(out)) == content(dataset)


@pytest.mark.parametrize("target", ["hf", "jsonl", "parquet"])
def test_the_starter_set_survives_export_and_import(tmp_path: Path, target: Target) -> None:
    starter = open_dataset("starter")
    export_dataset(starter, tmp_path / "out", target)
    report = import_dataset(tmp_path / "out", tmp_path / "back")
    assert content(open_dataset(tmp_path / "back")) == content(starter)
    assert (report.source_format, dict(report.counts)) == (target, {})


def test_a_datasets_folder_holds_the_three_tables(tmp_path: Path, awkward: Dataset) -> None:
    datasets = pytest.importorskip("datasets")
    export_dataset(awkward, tmp_path / "hf", "hf")
    loaded = datasets.load_from_disk(str(tmp_path / "hf"))
    sizes = {name: len(rows) for name, rows in loaded.items()}
    assert sizes == {"tasks": 2, "personas": 2, "golds": 1}
    assert loaded["golds"][0] == GOLD


def test_tasks_come_from_a_datasets_folder_of_somebody_else(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"prompt": ["Eat?", "Wear?", "Go?"]})
    rows.save_to_disk(str(tmp_path / "one"))
    source = TaskSource(splits=parse_splits("A=2,test"))
    import_dataset(tmp_path / "one", tmp_path / "out", tasks=source)
    tasks = open_dataset(tmp_path / "out").tasks.values()
    assert [(t.text, t.split) for t in tasks] == [("Eat?", "A"), ("Wear?", "A"), ("Go?", "test")]

    datasets.DatasetDict({"train": rows, "dev": rows.select([0])}).save_to_disk(tmp_path / "two")
    report = import_dataset(tmp_path / "two", tmp_path / "out2")
    tasks = open_dataset(tmp_path / "out2").tasks.values()
    assert [t.text for t in tasks] == ["Eat?", "Wear?", "Go?"]
    assert {t.split for t in tasks} == {"train"}
    assert report.counts["task_in_two_splits"] == 1


def test_a_folder_that_datasets_cannot_load_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/state.json").write_text("{}")
    with pytest.raises(DataError, match=r"`datasets` can't load it") as error:
        import_dataset(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_sft_is_the_opening_and_the_gold(tmp_path: Path) -> None:
    counts = export_sft(open_dataset("starter"), tmp_path / "sft", load_prompts("paper"))
    assert counts == {"A": 64, "B": 64, "test": 96}
    first = json.loads((tmp_path / "sft/A.jsonl").read_text().splitlines()[0])
    assert list(first) == ["messages"]
    user, assistant = first["messages"]
    assert user == {
        "role": "user",
        "content": "My name is Rosa Delgado.\n\nCan you help me plan my meals for the coming week?",
    }
    assert assistant["role"] == "assistant"
    assert assistant["content"].startswith("Build the week on one big pot of pintos")


def test_sft_with_the_persona_tells_the_profile(tmp_path: Path) -> None:
    dataset = open_dataset("starter")
    export_sft(dataset, tmp_path / "sft", load_prompts("paper"), context="persona")
    first = json.loads((tmp_path / "sft/A.jsonl").read_text().splitlines()[0])
    assert first["messages"][0]["content"].endswith(dataset.personas["rosa"].text)


def test_nothing_to_train_on_is_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", tasks=[{"id": "t", "text": "Eat?", "split": "A"}])
    with pytest.raises(DataError, match="no pair has a gold"):
        export_sft(open_dataset(folder), tmp_path / "out", load_prompts("paper"))
    assert not (tmp_path / "out").exists()


def test_half_characters_are_refused_by_the_loader_and_mended_by_the_importer(
    tmp_path: Path,
) -> None:
    task = {"id": "t", "text": "Eat \ud800?", "split": "A"}
    folder = write_folder(tmp_path / "in", tasks=[task])
    with pytest.raises(DataError, match=r"tasks.jsonl:1: text: .*unicode"):
        open_dataset(folder)
    report = import_dataset(folder, tmp_path / "out")
    assert report.counts["control_characters"] == 1
    export_dataset(open_dataset(tmp_path / "out"), tmp_path / "again", "parquet")
