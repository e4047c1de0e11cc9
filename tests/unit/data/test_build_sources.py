"""A build's config, and the tasks and personas that it reads: no text in two splits."""

import json
from pathlib import Path
from typing import Any

import pytest

from stargate.data.build.config import (
    FilePersonas,
    FileTasks,
    HubTasks,
    load_build_config,
    packaged_build_dir,
)
from stargate.data.build.prompts import load_build_prompts
from stargate.data.build.sources import read_build_personas, read_build_tasks
from stargate.data.cleaning import Cleaner
from stargate.data.findings import ImportReport
from stargate.errors import ConfigError, DataError

TEXTS = [f"How do I do thing {n}?" for n in range(5)]
ROWS: dict[str, Any] = {"A": (0, 2), "test": (3, 5)}


def cleaner() -> Cleaner:
    return Cleaner(ImportReport(source="build", source_format="file"))


FILES = {
    "txt": "\n".join(TEXTS),
    "json": json.dumps(TEXTS),
    "jsonl": "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS),
    "csv": "prompt\n" + "\n".join(TEXTS),
}


def write(folder: Path, ending: str) -> Path:
    file = folder / f"tasks.{ending}"
    if ending in FILES:
        file.write_text(FILES[ending])
    else:
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict({"prompt": TEXTS}).save_to_disk(str(file))
    return file


@pytest.mark.parametrize("ending", [*FILES, "datasets"])
def test_rows_are_shared_out(ending: str, tmp_path: Path) -> None:
    source = FileTasks(type="file", path=write(tmp_path, ending), rows=ROWS)
    clean = cleaner()
    tasks = read_build_tasks(source, clean)
    assert [(t.id, t.split, t.text) for t in tasks.values()] == [
        ("A-task-0", "A", TEXTS[0]),
        ("A-task-1", "A", TEXTS[1]),
        ("test-task-0", "test", TEXTS[3]),
        ("test-task-1", "test", TEXTS[4]),
    ]
    assert clean.report.counts["row_beyond_splits"] == 1


def test_hub_folder_is_loaded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"prompt": TEXTS}).to_parquet(str(tmp_path / "train.parquet"))
    tasks = read_build_tasks(HubTasks(name=str(tmp_path), rows=ROWS), cleaner())
    assert [t.text for t in tasks.values()] == [*TEXTS[:2], *TEXTS[3:]]
    with pytest.raises(DataError, match=r"has 5 rows, but tasks\.rows goes to 550"):
        read_build_tasks(HubTasks(name=str(tmp_path)), cleaner())
    with pytest.raises(DataError, match="can't be loaded by `datasets`"):
        read_build_tasks(HubTasks(name=str(tmp_path / "nothing")), cleaner())


def test_a_task_in_two_splits_stays_in_the_test(tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps(["What now?", "And then?", "what  now"]))
    clean = cleaner()
    source = FileTasks(type="file", path=file, rows={"A": (0, 2), "test": (2, 3)})
    tasks = read_build_tasks(source, clean)
    assert [t.split for t in tasks.values()] == ["A", "test"]
    assert clean.report.counts["task_in_two_splits"] == 1


@pytest.mark.parametrize(
    ("content", "rows", "message"),
    [
        ("[]", {}, "no usable task"),
        ("{}", {}, "expected a JSON list, got dict"),
        ('["a?"]', {}, "no split; share the rows out with tasks.rows"),
        (
            '[{"other": "a?"}]',
            {"A": (0, 1)},
            r"no column with the task's text; got \['other'\]; name it in tasks.column",
        ),
        ('["a?"]', {"A": (0, 1), "B": (1, 2)}, "no usable task for split 'B'"),
        ("[", {}, "not valid JSON"),
    ],
)
def test_unusable_files_are_one_line(
    content: str, rows: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_build_tasks(FileTasks(type="file", path=file, rows=rows), cleaner())


def test_importer_errors_speak_of_the_config(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"text": "a?"}\n')
    expected = r"tasks\.jsonl:1: no split; share the rows out with tasks\.rows"
    with pytest.raises(DataError, match=expected):
        read_build_tasks(FileTasks(type="file", path=file), cleaner())


def test_personas_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "personas.json"
    file.write_text(json.dumps(["I'm ADA. I mend clocks.", "I'm BO. I fly kites."]))
    source = FilePersonas(type="file", path=file, rows={"A": (0, 1), "test": (1, 2)})
    personas = list(read_build_personas(source, cleaner()).values())
    assert [(p.id, p.name, p.split, p.facts) for p in personas] == [
        ("A-persona-0", "Ada", "A", ("I mend clocks.",)),
        ("test-persona-0", "Bo", "test", ("I fly kites.",)),
    ]


@pytest.mark.parametrize("name", ["paper", "local"])
def test_packaged_configs_load(name: str) -> None:
    config = load_build_config(name, ["out=elsewhere/x"])
    assert config.out == Path("elsewhere/x")
    assert config.cache_path == Path("elsewhere/x.oracle.sqlite")
    assert load_build_prompts(config.prompts).version == 1
    assert load_build_config(packaged_build_dir() / f"{name}.yaml").seed == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.rows={A: [0, 3], B: [2, 5]}", "A and B share rows 2 to 2"),
        ("tasks.rows={A: [3, 3]}", "expected .first, end. with first < end"),
        ("personas.count={'../x': 3}", "a split's name has letters"),
        ("personas.count={}", "expected a number of personas per split"),
        ("out=..", "expected the name of a new folder"),
        ("nothing=1", "unknown key nothing"),
        ("personas.max_attempts=0", "personas.*max_attempts"),
    ],
)
def test_wrong_configs_are_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_build_config("paper", [override])
