"""The importers: what they accept, what they mend, leave out and note; never silent."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stargate.data.dataset import Dataset, open_dataset, read_dataset
from stargate.data.findings import ImportReport
from stargate.data.importers import TaskSource, detect_format, import_dataset, parse_splits
from stargate.errors import DataError
from tests.fakes.data_folder import write_folder

ANNA = "I'm ANNA. I live in Oslo. I fear Dr. No."
BORIS = "Meet BORIS. He bakes bread. He wakes at 3.30 a.m. He sleeps at noon."


def authors_folder(root: Path, **parts: Any) -> Path:
    """The authors' layout; a part is named prompts_A, personas_A, names_A or golds_A."""
    places = {
        "prompts": "prompts/{}.json",
        "personas": "personas/{}.json",
        "names": "personas/{}_NAMES.json",
        "golds": "gold-responses/{}.json",
    }
    for name, content in parts.items():
        kind, split = name.split("_")
        file = root / places[kind].format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def run_import(tmp_path: Path, **parts: Any) -> tuple[Dataset, ImportReport]:
    source = authors_folder(tmp_path / "in", **parts)
    report = import_dataset(source, tmp_path / "out", "star-gate")
    return open_dataset(tmp_path / "out"), report


def listed(report: ImportReport, kind: str) -> list[tuple[str, str]]:
    return list(report.listed.get(kind, []))


GOOD: dict[str, Any] = {
    "prompts_A": ["What to eat?", "What to wear?"],
    "personas_A": [ANNA, BORIS],
    "names_A": ["Anna", "Boris"],
    "golds_A": {f"prompt-{i} persona-{j}": [f"You {i}{j}."] for i in (0, 1) for j in (0, 1)},
}


def test_a_clean_folder_comes_in_whole(tmp_path: Path) -> None:
    dataset, report = run_import(tmp_path, **GOOD)
    assert [(t.id, t.text, t.split) for t in dataset.tasks.values()] == [
        ("A-prompt-0", "What to eat?", "A"),
        ("A-prompt-1", "What to wear?", "A"),
    ]
    assert dataset.golds["A-prompt-1", "A-persona-0"] == ("You 10.", ())
    assert len(dataset.pairs("A")) == 4
    expected = {"facts_from_profile": 2, "introduction_left_out": 2, "facts_in_third_person": 1}
    assert report.counts == expected
    written = json.loads((tmp_path / "out/import-report.json").read_text())["written"]
    assert written == {"A": {"tasks": 2, "personas": 2, "facts": 5, "golds": 4}}


def test_profile_sentences_become_facts_with_their_places(tmp_path: Path) -> None:
    dataset, _ = run_import(tmp_path, **GOOD)
    boris = dataset.personas["A-persona-1"]
    assert boris.facts == ("He bakes bread.", "He wakes at 3.30 a.m.", "He sleeps at noon.")
    origins = dataset.fact_origins["A-persona-1"]
    assert origins == ("sentence:12-27", "sentence:28-49", "sentence:50-68")
    assert boris.text[28:49] == "He wakes at 3.30 a.m."
    assert dataset.personas["A-persona-0"].facts == ("I live in Oslo.", "I fear Dr. No.")


def test_an_origin_that_is_not_true_is_an_error_of_the_folder(tmp_path: Path) -> None:
    run_import(tmp_path, **GOOD)
    file = tmp_path / "out/personas.jsonl"
    file.write_text(file.read_text().replace("sentence:12-27", "sentence:13-27"))
    with pytest.raises(DataError, match=r"personas.jsonl:2: .*origin sentence:13-27 of fact"):
        read_dataset(tmp_path / "out")


def golds(key: str, value: Any) -> dict[str, Any]:
    return {"golds_A": {key: value, "prompt-1 persona-0": ["You."]}}


FIRST, OUTSIDE = "prompt-0 persona-0", "prompt-2 persona-0"
NAMELESS = {"personas_A": [ANNA, "A man who bakes."], "names_A": ["Anna", ""]}
LOOSE_KEY = {"golds_A": {"Prompt-0  persona-0 ": "You.", FIRST: ["Again."]}}
SWAPPED = "'Boris' is not in the text; taken: Anna"
TWICE = {"golds_A": f'{{"{FIRST}": ["a."], "{FIRST}": ["b."]}}'}


@pytest.mark.parametrize(
    ("change", "kind", "where", "numbers"),  # of tasks, personas and golds that stay
    [
        ({"prompts_A": ["What to eat?", " what  to EAT. "]}, "duplicate_task", 1, (1, 2, 2)),
        ({"personas_A": [ANNA, ANNA]}, "duplicate_persona", 1, (2, 1, 2)),
        ({"prompts_A": ["", "What?"]}, "empty_task", 0, (1, 2, 2)),
        ({"prompts_A": [7, "What?"]}, "row_malformed", 0, (1, 2, 2)),
        ({"personas_A": [ANNA, ["x"]]}, "row_malformed", 1, (2, 1, 2)),
        (golds(FIRST, ["  "]), "empty_gold", FIRST, (2, 2, 1)),
        (golds(FIRST, []), "empty_gold", FIRST, (2, 2, 1)),
        (golds(FIRST, {"a": 1}), "row_malformed", FIRST, (2, 2, 1)),
        (
            golds("prompt-2 persona-0", ["You."]),
            "gold_out_of_range",
            "prompt-2 persona-0",
            (2, 2, 1),
        ),
        (golds("prompt-one", ["You."]), "malformed_gold_key", "prompt-one", (2, 2, 1)),
        (LOOSE_KEY, "second_gold", FIRST, (2, 2, 1)),
        (TWICE, "repeated_gold_key", FIRST, (2, 2, 1)),
        (NAMELESS, "persona_without_name", 1, (2, 1, 2)),
    ],
)
def test_what_cannot_be_used_is_left_out_and_named(
    tmp_path: Path,
    change: dict[str, Any],
    kind: str,
    where: int | str,
    numbers: tuple[int, int, int],
) -> None:
    dataset, report = run_import(tmp_path, **(GOOD | change))
    folder = {"prompts_A": "prompts", "personas_A": "personas", "golds_A": "gold-responses"}
    file = f"{folder[next(iter(change))]}/A.json"
    place = f"{file}[{where}]" if isinstance(where, int) else f"{file} {where}"
    assert [found for found, _ in listed(report, kind)] == [place]
    assert (len(dataset.tasks), len(dataset.personas), len(dataset.golds)) == numbers
    assert not dataset.dropped  # the loader has nothing left to drop


@pytest.mark.parametrize(
    ("change", "kind", "detail"),
    [
        ({"prompts_A": ["a  b?", "c?"]}, "odd_spacing", "'a  b?'"),
        ({"prompts_A": ["a\x1b[2Jb?", "c?"]}, "control_characters", ""),
        ({"names_A": ["Anna"]}, "name_missing", "taken: Boris"),
        ({"names_A": ["Boris", "Anna"]}, "name_not_in_text", SWAPPED),
        ({"names_A": ["Anna"]}, "names_count_differs", "1 for 2 personas"),
        ({"names_A": {"0": "Anna"}}, "row_malformed", "a dict, not a list: not read"),
        ({"personas_A": [ANNA, "A man who bakes."]}, "name_unconfirmed", "Boris"),
        ({"golds_A": {"prompt-0 persona-0": ["You.", "Or."]}}, "several_gold_texts", "2 texts"),
        ({"golds_A": {"prompt-0 persona-0": ["It\u00e2\u20ac\u2122s."]}}, "broken_encoding", None),
        ({"prompts_A": ["What to eat.", "Sit."]}, "question_without_mark", "What to eat."),
        ({"golds_A": [1]}, "row_malformed", "a list, not an object: no gold read"),
    ],
)
def test_what_is_mended_or_noted_is_named(
    tmp_path: Path, change: dict[str, Any], kind: str, detail: str | None
) -> None:
    dataset, report = run_import(tmp_path, **(GOOD | change))
    [(_, found), *_] = listed(report, kind)
    assert detail is None or found == detail
    assert (len(dataset.tasks), len(dataset.personas)) == (2, 2)
    assert "\x1b" not in "".join(task.text for task in dataset.tasks.values())
    assert {p.name for p in dataset.personas.values()} == {"Anna", "Boris"}


def test_golds_of_what_was_left_out_are_counted_as_such(tmp_path: Path) -> None:
    _, report = run_import(tmp_path, **(GOOD | {"prompts_A": ["", "What?"]}))
    assert [w for w, _ in listed(report, "gold_of_left_out_task")] == [
        "gold-responses/A.json prompt-0 persona-0",
        "gold-responses/A.json prompt-0 persona-1",
    ]


def test_a_gold_of_nobody_is_not_one_of_what_was_left_out_without_an_id(tmp_path: Path) -> None:
    tasks = [{"id": "", "text": "", "split": "A"}, {"id": "t", "text": "Eat?", "split": "A"}]
    golds = [{"task_id": "nobody", "persona_id": "p", "text": "You."}]
    folder = write_folder(tmp_path / "in", tasks=tasks, golds=golds)
    report = import_dataset(folder, tmp_path / "out")
    assert listed(report, "gold_out_of_range") == [("golds.jsonl:1", "task nobody")]


def test_missing_golds_of_a_split_with_golds_are_listed(tmp_path: Path) -> None:
    golds = {"prompt-0 persona-0": ["You."]}
    _, report = run_import(tmp_path, **(GOOD | {"golds_A": golds, "prompts_B": ["Else?"]}))
    assert [where for where, _ in listed(report, "pair_without_gold")] == [
        "A-prompt-0:A-persona-1",
        "A-prompt-1:A-persona-0",
        "A-prompt-1:A-persona-1",
    ]
    assert ("gold-responses/B.json", "") in listed(report, "missing_part")


def test_a_text_in_two_splits_stays_in_the_test_split(tmp_path: Path) -> None:
    source = authors_folder(
        tmp_path / "in",
        prompts_A=["Same?", "Only A?"],
        prompts_B=["Both trained?", "only a"],
        prompts_test=["same"],
        personas_A=[ANNA],
        personas_test=[ANNA],
    )
    report = import_dataset(source, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert list(dataset.tasks) == ["A-prompt-1", "B-prompt-0", "test-prompt-0"]
    assert list(dataset.personas) == ["test-persona-0"]
    assert (report.counts["task_in_two_splits"], report.counts["persona_in_two_splits"]) == (2, 1)

    import_dataset(source, tmp_path / "kept", keep_split="A")
    assert list(open_dataset(tmp_path / "kept").tasks) == ["A-prompt-0", "A-prompt-1", "B-prompt-0"]


def test_a_file_that_is_no_json_stops_the_import_and_leaves_nothing(tmp_path: Path) -> None:
    source = authors_folder(tmp_path / "in", **(GOOD | {"golds_A": '{"prompt-0 '}))
    with pytest.raises(DataError, match=r"gold-responses/A.json:1: not valid JSON"):
        import_dataset(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_names_of_files_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    source = authors_folder(tmp_path / "in", **GOOD)
    (source / "prompts/..x.json").write_text('["Evil?"]')
    rows = [
        {"id": "../../evil", "text": "One?", "split": "A"},
        {"id": "fine", "text": "Two?", "split": "../A"},
        {"id": "-", "text": "Three?", "split": "A"},
    ]
    write_folder(tmp_path, tasks=rows)
    report = import_dataset(source, tmp_path / "out")
    assert listed(report, "unread_file") == [("prompts/..x.json", "not a name of a split")]
    report = import_dataset(tmp_path / "tasks.jsonl", tmp_path / "evil")
    assert list(open_dataset(tmp_path / "evil").tasks) == ["evil", "A-task-1"]
    assert (report.counts["bad_id"], report.counts["no_split"]) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil", "in", "out", "tasks.jsonl"]


# --- other formats


def test_tasks_of_a_csv_are_shared_out_in_order(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        '\ufeffprompt,source\n"Eat, what?",x\nWear?,x\nGo?,x\nbroken\nDo?,x\nMore?,x\n'
    )
    splits = parse_splits("A=2,B=1,test=1")
    report = import_dataset(tmp_path / "t.csv", tmp_path / "out", tasks=TaskSource(splits=splits))
    tasks = open_dataset(tmp_path / "out").tasks.values()
    assert [(t.text, t.split) for t in tasks] == [
        ("Eat, what?", "A"),
        ("Wear?", "A"),
        ("Go?", "B"),
        ("Do?", "test"),
    ]
    assert dict(report.counts) == dict.fromkeys(
        ("row_malformed", "row_beyond_splits", "unknown_column"), 1
    )


def test_tasks_of_a_jsonl_may_be_plain_texts_and_lines_may_be_broken(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('"Eat?"\n{"question": "Wear?"}\n{oops\n3\n\n')
    source = TaskSource(splits=parse_splits("A"))
    report = import_dataset(tmp_path / "t.jsonl", tmp_path / "out", tasks=source)
    assert [t.text for t in open_dataset(tmp_path / "out").tasks.values()] == ["Eat?", "Wear?"]
    assert [where for where, _ in listed(report, "row_malformed")] == ["t.jsonl:3", "t.jsonl:4"]


def test_rows_without_a_split_or_a_text_column_say_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "Eat?"}\n')
    with pytest.raises(DataError, match=r"t.jsonl:1: no split; share the rows out, e.g. --splits"):
        import_dataset(tmp_path / "t.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match=r"no column with the task's text; got \['prompt'\]"):
        import_dataset(tmp_path / "t.jsonl", tmp_path / "out", tasks=TaskSource(column="body"))
    assert not (tmp_path / "out").exists()


def test_our_own_folders_are_mended_too(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {
        "tasks": [{"id": "t", "text": "Eat?", "split": "A", "needs_question": "maybe", "x": 1}],
        "personas": [
            {"id": "p", "name": "P", "text": "She bakes.", "split": "A", "facts": [3]},
            {"id": "p", "name": "Q", "text": "Is Q.", "split": "A"},
        ],
        "golds": [{"task_id": "t", "persona_id": "p", "text": "You.", "facts_used": [9]}],
    }
    report = import_dataset(write_folder(tmp_path / "in", **rows), tmp_path / "out")
    assert dict(report.counts) == {
        "bad_value": 2,
        "unknown_column": 1,
        "repeated_id": 1,
        "facts_from_profile": 1,
        "facts_in_third_person": 1,
        "facts_used_unusable": 1,
        "name_unconfirmed": 1,
    }
    [pair] = read_dataset(tmp_path / "out").pairs("A")
    assert (pair.gold, pair.gold_facts, pair.persona.facts) == ("You.", (), ("She bakes.",))


def test_the_format_is_recognised_or_asked_for(tmp_path: Path) -> None:
    assert detect_format(authors_folder(tmp_path / "in", **GOOD)) == "star-gate"
    with pytest.raises(DataError, match=r"not recognised; give --format"):
        detect_format(tmp_path)
    with pytest.raises(DataError, match=r"no such file or folder"):
        detect_format(tmp_path / "nope")


@pytest.mark.parametrize("text", ["A=1,A=2", "A,B=2", "A=x", "../A=1", ""])
def test_bad_splits_are_one_line(text: str) -> None:
    with pytest.raises(DataError, match=r"--splits"):
        parse_splits(text)


# --- the target folder


def test_an_existing_folder_is_replaced_only_when_told_and_only_a_dataset(tmp_path: Path) -> None:
    source = authors_folder(tmp_path / "in", **GOOD)
    import_dataset(source, tmp_path / "out")
    with pytest.raises(DataError, match=r"exists already; .*--force"):
        import_dataset(source, tmp_path / "out")
    import_dataset(source, tmp_path / "out", force=True)
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds thesis.tex, which is no part of a dataset"):
        import_dataset(source, tmp_path / "out", force=True)
    assert (tmp_path / "out/thesis.tex").read_text() == "years of work"
    with pytest.raises(DataError, match=r"--force would delete what is read"):
        import_dataset(tmp_path / "out", tmp_path / "out", force=True)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(DataError, match=r"not a link"):
        import_dataset(source, tmp_path / "link", force=True)


def test_an_import_killed_in_the_middle_leaves_no_folder(tmp_path: Path) -> None:
    authors_folder(tmp_path / "in", **GOOD)
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from stargate.data import importers\n"
        "importers.write_json = lambda *a: os._exit(9)\n"
        "importers.import_dataset(Path('in'), Path('out'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ)
    assert done.returncode == 9
    assert not (tmp_path / "out").exists()
