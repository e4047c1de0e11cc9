"""What a run directory for the tests of the report says of itself: summary.json and eval.json."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from stargate.evaluation.statistics import Measure

SCRIPT = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"

_STAGES = {
    **{"setup": 20.0, "eval_m0.rollout": 30.0, "eval_m0.score": 10.0, "rollout": 200.0},
    **{"score": 60.0, "respond": 15.0, "train": 60.0, "push": 3.0},
}
SUMMARY: dict[str, Any] = {
    "status": "finished",
    "seconds": 400.0,
    "stages": {name: {"seconds": seconds} for name, seconds in _STAGES.items()},
    "eval": {},
    "dropped": {"prompt_too_long": 2},
    "dropped_examples": {"prompt_too_long": [f"t0/x: prompt_too_long: {SCRIPT}", "t0/y: long"]},
    "data_dropped": {"empty_gold": 1},
    "peak_rss_gb": 4.5,
    "peak_rss_measure": "PSS",
    "rollout": {"num_dialogues": 24, "generated_tokens": 1200, "generated_tokens_per_s": 6.0},
    "train": {"num_examples": 4, "num_steps": 2, "tokens_per_s": 55.0},
    "push": {"seconds": 1.5, "num_engines": 2},
}

# measure -> (mean of m0, added by each checkpoint, half width of the interval)
_MEASURES: dict[str, tuple[float, float, float]] = {
    "gold_logprob": (-103.5, 2.0, 6.0),
    "gold_logprob_per_token": (-5.175, 0.1, 0.3),
    "gold_logprob_best": (-103.0, 2.0, 6.0),
    "no_dialogue": (-108.0, 0.0, 6.0),
    "persona_given": (-94.0, 0.0, 5.0),
    "persona_and_dialogue": (-92.0, 0.0, 5.0),
    "shuffled": (-104.75, 1.0, 6.0),
    "matched_minus_shuffled": (1.25, 1.0, 0.5),
    "matched_minus_shuffled_per_token": (0.0625, 0.05, 0.025),
    "matched_minus_no_dialogue": (4.5, 2.0, 1.0),
    "contrast": (1.5, 1.0, 0.25),
    "gain_at_turn_1": (3.0, 1.0, 0.5),
    "gain_at_turn_2": (1.0, 1.0, 0.75),
    "facts_per_dialogue": (0.5, 0.75, 0.25),
    "facts_per_turn": (0.25, 0.375, 0.125),
    "fact_coverage": (0.25, 0.375, 0.125),
    "question_rate": (0.5, 0.25, 0.1),
    "repeated_question_rate": (0.0, 0.05, 0.02),
    "task_gain": (0.05, 0.1, 0.04),
    "distinct_question_rate": (0.75, 0.0, 0.1),
    "generic_question_rate": (0.25, 0.0, 0.1),
    "answered_already_rate": (0.125, 0.0, 0.05),
    "question_fit": (2.5, 1.5, 0.5),
    "tokens_per_dialogue": (20.0, 4.0, 3.0),
    "tokens_to_read": (10.0, 2.0, 1.5),
    "tokens_to_write": (10.0, 2.0, 1.5),
    "recited_facts_per_dialogue": (0.1, 0.0, 0.05),
    "recital_rate": (0.05, 0.0, 0.02),
    "unasked_facts_per_dialogue": (0.0, 0.0, 0.0),
    "needless_question_rate": (0.5, 0.25, 0.1),
    "needless_tokens_per_dialogue": (20.0, 4.0, 3.0),
}

# Reference rows: facts per dialogue, coverage of the gold's facts, contrast in nats.
_ROWS: dict[str, tuple[float, float, float]] = {
    "gold_facts": (2.0, 1.0, 20.5),
    "constant": (1.75, 0.25, 2.5),
    "none": (0.0, 0.0, 0.5),
    "own_frequent": (1.0, 0.125, 1.25),
    "per_task": (1.75, 0.5, 9.5),
    "random_facts": (2.0, 0.5, 5.5),
}
CONSTANT_LIST = ["Who do you live with?", f"What do you eat {SCRIPT}?"]


def eval_json(versions: Iterable[int], roleplayer: str) -> dict[str, Any]:
    """Handwritten values: the report shows what it is given, it does not compute these."""
    chosen = list(versions)
    tree: dict[str, Any] = {f"m{v}": _checkpoint(v) for v in chosen}
    tree["changes"] = {
        f"m{v}": {
            name: {**measured(step * v, half), "num_only_before": 0, "num_only_after": 0}
            for name, (_, step, half) in _MEASURES.items()
        }
        for v in chosen
        if v > 0
    }
    tree["reference"] = {name: _row(*values) for name, values in _ROWS.items()}
    tree["reference"]["constant"]["questions"] = CONSTANT_LIST
    trained = {"model": "embedded", "prompts": "paper", "grounding": "facts"}
    tree["about"] = {
        "split": "test",
        "data": "tiny",
        "roleplayer": {**trained, "model": roleplayer},
        "trained_with_roleplayer": {**trained, "model": "the-run's-roleplayer"},
        "num_dialogues": 2,
        "turns": [2],
        "seed": 0,
        "confidence": 0.95,
    }
    tree["judge"] = {
        "fit": False,
        "model": "judge-135m",
        "verdict": "the judge is UNFIT: gold_rate: must be >= 0.6, got 0.50 (n = 4)",
        "self_rate": 0.5,
        "gold_rate": 0.5,
        "order_consistency": 0.25,
        "failures": ["gold_rate: must be >= 0.6, got 0.50 (n = 4)"],
        "criteria": {
            "self_rate": _criterion(0.5, "within 0.1 of 0.5", passed=True),
            "gold_rate": _criterion(0.5, ">= 0.6", passed=False),
            "order_consistency": _criterion(0.25, ">= 0.6", passed=False),
        },
    }
    return tree


def _checkpoint(version: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: measured(mean + step * version, half)
        for name, (mean, step, half) in _MEASURES.items()
    }
    if version:
        rate = measured(0.5 + 0.05 * version, 0.2)
        values["win_rate"] = rate
        values["win_rate_details"] = {
            **rate,
            "lower": 0.45,
            "upper": 0.7,
            "wins": 1,
            "ties": 2,
            "losses": 1,
            "num_unparsable_verdicts": 1,
            "order_consistency": 0.25,
            "average": {**rate, "lower": 0.45, "upper": 0.7},
            "length_controlled": {"rate": 0.52, "ci_low": 0.3, "ci_high": 0.74, "reason": None},
        }
    return values


def _row(facts: float, coverage: float, contrast: float) -> dict[str, Any]:
    return {
        "facts_per_dialogue": measured(facts, 0.25),
        "fact_coverage": measured(coverage, 0.125),
        "contrast": measured(contrast, 0.5),
        "questions": [],
    }


def measured(mean: float, half: float) -> dict[str, Any]:
    """A measure as it stands in eval.json: its interval is mean - half to mean + half."""
    return asdict(Measure(mean, mean - half, mean + half, half / 2, 8, 2, 2))


def _criterion(value: float, requirement: str, *, passed: bool) -> dict[str, Any]:
    found = {"value": value, "ci_low": None, "ci_high": None, "n": 4}
    return {**found, "requirement": requirement, "passed": passed}
