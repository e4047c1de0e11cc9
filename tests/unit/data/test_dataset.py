"""The loader: what it accepts, what it names, what it drops; and the packaged starter set."""

import json
from pathlib import Path
from typing import Any

import pytest

from stargate.config.run import DataConfig, SplitLimit
from stargate.data.dataset import load_dataset, read_dataset
from stargate.errors import DataError
from tests.fakes.data_folder import write_folder

TASKS = [{"id": "t", "text": "Task?", "split": "A"}, {"id": "u", "text": "Other?", "split": "test"}]
PERSONAS = [
    {"id": "p", "name": "P", "text": "Is P.", "split": "A", "facts": ["I am P."]},
    {"id": "q", "name": "Q", "text": "Is Q.", "split": "test"},
]
GOLDS = [
    {"task_id": "t", "persona_id": "p", "text": "Do it.", "facts_used": [0]},
    {"task_id": "u", "persona_id": "q", "text": "Do that."},
]


GOOD: dict[str, Any] = {"tasks": TASKS, "personas": PERSONAS, "golds": GOLDS}


def write(folder: Path, **changed: Any) -> Path:
    return write_folder(folder, **(GOOD | changed))


def test_a_small_set_loads(tmp_path: Path) -> None:
    [pair] = read_dataset(write(tmp_path)).pairs("A")
    assert (pair.id, pair.gold, pair.gold_facts) == ("t:p", "Do it.", (0,))
    assert pair.persona.facts == ("I am P.",)


def test_parquet_is_read_like_jsonl(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path)
    expected = read_dataset(tmp_path).pairs("test")
    for name, rows in GOOD.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.jsonl").unlink()
    assert read_dataset(tmp_path).pairs("test") == expected


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ({"task_id": "u", "persona_id": "q", "text": "  "}, "empty_gold"),
        ({"task_id": "x", "persona_id": "q", "text": "a"}, "gold_of_unknown_task"),
        ({"task_id": "u", "persona_id": "x", "text": "a"}, "gold_of_unknown_persona"),
        ({"task_id": "t", "persona_id": "p", "text": "again"}, "second_gold_of_pair"),
        ({**GOLDS[1], "facts_used": [3]}, "gold_with_unknown_fact"),
    ],
)
def test_a_bad_gold_is_dropped_counted_and_named(
    tmp_path: Path, gold: dict[str, Any], reason: str
) -> None:
    dataset = read_dataset(write(tmp_path, golds=[GOLDS[0], gold]))
    assert dataset.drop_counts == {reason: 1}
    assert dataset.dropped[0].where.startswith(f"{tmp_path}/golds.jsonl:2 (pair ")
    assert len(dataset.pairs("A")) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": [{"id": "t", "split": "A"}]}, r"tasks.jsonl:1: text: Field required"),
        ({"tasks": [{"id": "t", "text": " ", "split": "A"}]}, r"tasks.jsonl:1: text: .*got ' '"),
        ({"tasks": [*TASKS, TASKS[0]]}, r"tasks.jsonl:3: id 't' was used before at .*:1"),
        ({"tasks": [{**TASKS[0], "id": "../x"}]}, r"tasks.jsonl:1: id: .*got '../x'"),
        ({"personas": [{**PERSONAS[0], "facts": "one"}]}, "personas.jsonl:1: facts"),
        ({"personas": [{**PERSONAS[0], "age": 3}]}, "personas.jsonl:1: age: Extra inputs"),
    ],
)
def test_a_malformed_row_is_one_line(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected) as error:
        read_dataset(write(tmp_path, **change))
    assert "\n" not in str(error.value)


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    (write(tmp_path) / "tasks.jsonl").write_text(json.dumps(TASKS[0]) + "\n{oops\n")
    with pytest.raises(DataError, match=r"tasks.jsonl:2: not valid JSON"):
        read_dataset(tmp_path)


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such dataset folder"):
        read_dataset(tmp_path / "nope")
    (write(tmp_path) / "golds.jsonl").unlink()
    with pytest.raises(DataError, match=r"neither golds.jsonl nor golds.parquet"):
        read_dataset(tmp_path)


def test_a_split_without_pairs_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split 'B' has no pair.*\['A', 'test'\]"):
        read_dataset(write(tmp_path)).pairs("B")


def test_one_text_in_two_splits_is_refused(tmp_path: Path) -> None:
    tasks = [TASKS[0], {**TASKS[1], "text": " task? "}]
    write(tmp_path, tasks=tasks)
    with pytest.raises(DataError, match=r"task 'u' of split 'test' has the same text as 't'"):
        load_dataset(DataConfig(source=str(tmp_path), train_splits=("A",)))


def test_the_starter_set_is_what_it_promises() -> None:
    dataset = load_dataset(DataConfig())
    train, test = [*dataset.pairs("A"), *dataset.pairs("B")], dataset.pairs("test")
    assert (len(train), len(test)) == (128, 96)
    assert dataset.dropped == []
    needing = [task for task in dataset.tasks.values() if task.needs_question]
    assert len(needing) >= 28
    assert len(dataset.tasks) - len(needing) == 4
    assert len(dataset.plain_pairs("test")) == 4 * 8
    assert len(dataset.personas) >= 16
    for persona in dataset.personas.values():
        assert len(persona.facts) >= 8
        assert len(set(persona.facts)) == len(persona.facts)
    for pair in [*train, *test]:
        assert pair.gold is not None
        assert 60 <= len(pair.gold.split()) <= 120, pair.id
        assert 2 <= len(pair.gold_facts) <= 5, pair.id
        assert " you" in f" {pair.gold.lower()}" or "your" in pair.gold.lower(), pair.id


def test_no_two_starter_golds_share_a_long_run_of_words() -> None:
    """Each gold is a text of its own, not a template with words swapped."""
    seen: dict[tuple[str, ...], str] = {}
    for pair_id, (text, _) in load_dataset(DataConfig()).golds.items():
        words = text.lower().split()
        for run in {tuple(words[i : i + 11]) for i in range(len(words) - 10)}:
            assert run not in seen, f"{pair_id} and {seen[run]}: {' '.join(run)}"
            seen[run] = str(pair_id)


def test_limits_take_the_first_tasks_and_personas() -> None:
    dataset = load_dataset(DataConfig())
    pairs = dataset.pairs("A", SplitLimit(tasks=2, personas=3))
    assert len(pairs) == 6
    assert len({pair.task.id for pair in pairs}) == 2
