"""How the conditions of an ablation compare, and what is shown of it."""

from typing import Any

from stargate.evaluation.ablation import (
    Outcome,
    ablation_json,
    conditions_of,
)
from stargate.evaluation.catalog import checkpoints_of
from stargate.evaluation.statistics import Observation
from stargate.report.ablation import ablation_lines, render_ablation

# ---------------------------------------------------------------------------------------------
# The comparison


def outcome(name: str, cells: dict[tuple[str, str], list[float]], **changes: Any) -> Outcome:
    [condition] = (c for c in conditions_of(["own_response", name]) if c.name == name)
    entries = [Observation(*cell, value) for cell, values in cells.items() for value in values]
    parts: dict[str, Any] = {
        "condition": condition,
        "folder": name,
        "status": "finished",
        "evaluation": {
            "m0": {"gold_logprob": MEASURE},
            "m2": {"gold_logprob": MEASURE},
            "m10": {"gold_logprob": {**MEASURE, "mean": 3.0}},
            "changes": {"m10": {"gold_logprob": {**MEASURE, "mean": 1.5, "ci_low": 0.5}}},
            "about": {},
        },
        "observed": {"gold_logprob": entries, "no_dialogue": entries},
    }
    return Outcome(**{**parts, **changes})


MEASURE: dict[str, Any] = {
    "mean": 2.0,
    "ci_low": -1.0,
    "ci_high": 4.0,
    "standard_error": 0.5,
    "n": 12,
    "task_clusters": 3,
    "persona_clusters": 4,
}
REFERENCE_CELLS = {("t1", "p"): [1.0, 3.0], ("t2", "q"): [5.0], ("t3", "p"): [0.0]}


def test_differences_are_paired_over_cells() -> None:
    # t1:p 4 - 2 = 2, t2:q (5 + 9) / 2 - 5 = 2, t1:q has no partner, t3:p neither.
    other = {("t1", "p"): [4.0], ("t2", "q"): [5.0, 9.0], ("t1", "q"): [100.0]}
    outcomes = [outcome("own_response", REFERENCE_CELLS), outcome("questions_only", other)]
    values = ablation_json(outcomes, {"seed": 0})
    assert values["about"] == {"seed": 0, "reference": "own_response"}
    found = values["conditions"]["questions_only"]
    difference = found["differences"]["gold_logprob"]
    assert difference["mean"] == 2.0
    assert difference["n"] == 2
    assert (difference["num_only_before"], difference["num_only_after"]) == (1, 1)
    # What no checkpoint can change is no difference between conditions.
    assert set(found["differences"]) == {"gold_logprob"}
    assert found["checkpoint"] == "m10"
    assert found["measures"]["gold_logprob"]["mean"] == 3.0
    assert found["changes"]["gold_logprob"]["mean"] == 1.5


def test_only_equal_checkpoints_of_finished_conditions_are_compared() -> None:
    early = {"m1": {"gold_logprob": MEASURE}, "changes": {}, "about": {}}
    outcomes = [
        outcome("own_response", REFERENCE_CELLS),
        outcome("questions_only", REFERENCE_CELLS, evaluation=early),
        outcome("gold_response", REFERENCE_CELLS, status="failed", problem="diverged"),
        outcome("random", {}, status="not_started", evaluation=None, observed=None),
    ]
    found = ablation_json(outcomes, {})["conditions"]
    assert [found[name]["differences"] for name in list(found)[1:]] == [{}, {}, {}]
    assert found["random"]["measures"] == {}
    assert found["random"]["checkpoint"] is None


def test_without_own_response_the_first_condition_is_the_reference() -> None:
    outcomes = [outcome("gold_response", REFERENCE_CELLS), outcome("random", REFERENCE_CELLS)]
    values = ablation_json(outcomes, {})
    assert values["about"]["reference"] == "gold_response"
    assert values["conditions"]["random"]["differences"]["gold_logprob"]["mean"] == 0.0


def test_checkpoints_are_ordered_by_number() -> None:
    assert checkpoints_of({"m10": {}, "m9": {}, "changes": {}, "matched": {}}) == ["m9", "m10"]


# ---------------------------------------------------------------------------------------------
# The report


def _values() -> dict[str, Any]:
    wide = {**MEASURE, "mean": -1359.8, "ci_low": -1371.1, "ci_high": -1347.5}
    evaluation = {
        "m0": {},
        "m3": {"matched_minus_shuffled": MEASURE, "gold_logprob": wide, "win_rate": MEASURE},
        "changes": {"m3": {"matched_minus_shuffled": MEASURE, "gold_logprob": MEASURE}},
        "about": {},
        "judge": {"fit": False},
    }
    problem = "DivergenceError: <script>alert(1)</script>"
    made = ablation_json(
        [
            outcome("own_response", REFERENCE_CELLS, evaluation=evaluation),
            outcome("weaker_roleplayer", REFERENCE_CELLS, evaluation=evaluation),
            outcome("random", {}, status="failed", problem=problem, evaluation=None, observed=None),
        ],
        {"name": "small", "data": "starter"},
    )
    worse = {**MEASURE, "mean": -2.0, "ci_low": -3.0, "ci_high": -1.0}
    made["conditions"]["weaker_roleplayer"]["differences"] = {"matched_minus_shuffled": worse}
    return made


def test_the_terminal_table_fits_100_columns_and_says_what_failed() -> None:
    lines = ablation_lines(_values())
    assert max(map(len, lines)) <= 100
    assert lines[1] == (
        "Against own_response, matched minus shuffled \u2013 worse: weaker_roleplayer."
    )
    text = "\n".join(lines)
    assert "random: failed: DivergenceError" in text
    assert "own_response: the judge is UNFIT" in text
    assert text.count("UNFIT 200.0") == 2
    [row] = [line for line in lines if "\u22122.0 (\u22123.0 to \u22121.0)" in line]
    assert row.split()[:2] == ["weaker_roleplayer", "m3"]


def test_the_page_escapes_what_it_shows() -> None:
    page = render_ablation(_values())
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert 'class="number down"' in page
    assert page.count("http") == page.count("http-equiv")
