"""eval.json on the screen."""

from typing import Any

from stargate.evaluation.catalog import CATALOG
from stargate.evaluation.table import evaluation_lines


def measure(mean: float, low: float | None, high: float | None, n: int = 8) -> dict[str, Any]:
    return {
        "mean": mean,
        "ci_low": low,
        "ci_high": high,
        "standard_error": 0.5,
        "n": n,
        "task_clusters": 12,
        "persona_clusters": 8,
        "nested": False,
    }


def values(fit: bool | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "m0": {"matched_minus_shuffled": measure(7.0, 5.0, 9.0)},
        "m1": {"matched_minus_shuffled": measure(8.0, 6.0, 10.0)},
        "m2": {
            "matched_minus_shuffled": measure(9.5, 7.5, 11.5),
            "win_rate": measure(0.7, 0.6, 0.8),
        },
        "changes": {"m1": {}, "m2": {"matched_minus_shuffled": measure(2.5, 0.5, 4.5)}},
        "about": {"confidence": 0.95},
    }
    if fit is not None:
        failures = [] if fit else ["gold_rate: must be 0.6 or more, got 0.50 (n = 20)"]
        found["judge"] = {"fit": fit, "model": "small", "verdict": "", "failures": failures}
    return found


def test_first_last_and_change_stand_side_by_side() -> None:
    lines = evaluation_lines(values(fit=None))
    assert lines[1] == (
        "test pairs, golds scored by m0 in nats: mean [95% interval over 12 tasks and 8 personas]"
    )
    assert lines[2].split() == ["m0", "m2", "m2", "minus", "m0"]
    assert lines[3].split("  ")[0] == "matched minus shuffled"
    assert lines[3].split()[3:] == [
        *("7.00", "[5.00,", "9.00]", "9.50", "[7.50,", "11.50]"),
        *("+2.50", "[0.50,", "4.50]"),
    ]
    assert lines[-1].endswith("independent: 0.50")
    assert max(map(len, lines)) <= 100


def test_the_screen_says_that_persons_belong_to_tasks() -> None:
    found = values(fit=None)
    found["m0"]["matched_minus_shuffled"]["nested"] = True
    lines = evaluation_lines(found)
    assert lines[1].endswith("[95% interval over 12 tasks]")
    assert lines[2] == "each person belongs to one task"


def test_every_label_is_that_of_the_report_and_leaves_room_for_its_numbers() -> None:
    found = values(fit=None)
    long = measure(-1000.25, -1100.25, -900.25)
    for name in ("m0", "m2"):
        found[name] = {info.name: long for info in CATALOG}
    labels = {line[:28].rstrip() for line in evaluation_lines(found)[3:-1]}
    assert labels <= {info.label for info in CATALOG} and len(labels) == 26


def test_an_unfit_judge_is_said_where_its_win_rates_stand() -> None:
    lines = evaluation_lines(values(fit=False))
    [win_rate] = [line for line in lines if line.startswith("win rate")]
    assert win_rate.endswith("(unfit judge)")
    assert "the judge (small) is UNFIT, so its win rates mean nothing:" in lines
    assert "  gold_rate: must be 0.6 or more, got 0.50 (n = 20)" in lines


def test_a_fit_judge_leaves_no_warning() -> None:
    lines = evaluation_lines(values(fit=True))
    assert "the judge is fit" in lines
    assert not any("unfit" in line.lower() for line in lines)
