"""The authors' own files (not part of the repository): what is found in them, counted by hand."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from stargate.data.dataset import open_dataset
from stargate.data.importers import import_dataset
from stargate.data.quality import check_dataset

_SHARED = Path(__file__).resolve().parents[3].parent / "shared/data"
_BASE = Path(os.environ.get("STARGATE_OFFICIAL_DATA", _SHARED))
OFFICIAL = _BASE if (_BASE / "prompts").is_dir() else _BASE / "star_gate_official"

pytestmark = pytest.mark.skipif(
    not (OFFICIAL / "prompts/A.json").is_file(),
    reason="the authors' files are not here: set STARGATE_OFFICIAL_DATA to their folder",
)


def test_every_blemish_of_the_authors_files_is_counted(tmp_path: Path) -> None:
    report = import_dataset(OFFICIAL, tmp_path / "out", "star-gate")
    assert dict(report.counts) == {
        # A: learn Spanish, smoothie, meaning of life, hurricane and typhoon; B: cook a steak
        "duplicate_task": 5,
        # B repeats of A: public speaking, learn Spanish, used car
        "task_in_two_splits": 3,
        # 1 prompt, 10 personas that end with a line break, 11 golds with a blank before one
        "odd_spacing": 22,
        "facts_from_profile": 105,
        # all but JASMINE, ISADORA, LENNON, DAWN and JOSEPHINE, who are introduced in a sentence
        "introduction_left_out": 100,
        # the profiles that begin with "Meet": 12 in A, 15 in B, 3 in test
        "facts_in_third_person": 30,
        # Lucia, Lydia, Theo; Isabella, Lucas
        "repeated_name": 5,
        "question_without_mark": 451,
        "missing_part": 2,
    }
    assert {split: dict(counts) for split, counts in report.written.items()} == {
        "A": {"tasks": 246, "personas": 50, "facts": 360},
        "B": {"tasks": 246, "personas": 50, "facts": 356},
        "test": {"tasks": 25, "personas": 5, "facts": 31, "golds": 125},
    }


def test_the_imported_texts_are_those_of_the_files(tmp_path: Path) -> None:
    import_dataset(OFFICIAL, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    golds = json.loads((OFFICIAL / "gold-responses/test.json").read_text("utf-8"))
    for (task, persona), (text, _) in dataset.golds.items():
        number, other = task.rsplit("-", 1)[1], persona.rsplit("-", 1)[1]
        [found] = golds[f"prompt-{number} persona-{other}"]
        assert text.split() == found.split()
    prompts = json.loads((OFFICIAL / "prompts/B.json").read_text("utf-8"))
    assert dataset.tasks["B-prompt-249"].text == prompts[249]
    assert not {"B-prompt-12", "B-prompt-155", "B-prompt-158", "B-prompt-216"} & set(dataset.tasks)
    lennox = dataset.personas["A-persona-0"]
    assert (lennox.name, len(lennox.facts)) == ("Lennox", 8)
    assert lennox.facts[0].startswith("A dapper New Orleans gentleman")


def test_the_check_says_what_is_wrong_with_them(tmp_path: Path) -> None:
    import_dataset(OFFICIAL, tmp_path / "out")
    report = check_dataset(open_dataset(tmp_path / "out"))
    found = {finding.kind: finding for finding in report.findings}
    assert report.num_errors == 0  # the import has removed what stood in two splits
    # "What is the best route for my road trip": all five golds ask for the destination.
    assert [where for where, _ in found["asks_or_refuses"].cases] == [
        f"test-prompt-6:test-persona-{number}" for number in range(5)
    ]
    # "How do I get ahold of my Congressman" is answered alike for Reece and Isabel.
    assert {"test-prompt-13:test-persona-0", "test-prompt-13:test-persona-2"} <= {
        where for where, _ in found["ignores_persona"].cases
    }
    plain = Counter(where.split("-")[0] for where, _ in found["plain_task"].cases)
    assert plain["A"] > 25 and plain["B"] > 25
    assert "near_duplicate_gold" not in found and "near_duplicate_persona" not in found
    assert found["pair_without_gold"].count == 24600
