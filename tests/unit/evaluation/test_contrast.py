"""The doubly centred contrast against its definition, and on tables with holes."""

import numpy as np
import pytest

from stargate.evaluation.contrast import GoldAfter, contrasts, sampled_others
from stargate.types import Pair, Persona, Task


def pairs_of(num_personas: int, task: str = "t") -> list[Pair]:
    return [
        Pair(Task(task, "?", "test"), Persona(f"p{j:02}", f"P{j}", "text", "test"), f"gold {j}")
        for j in range(num_personas)
    ]


def scored(table: np.ndarray, steps: list[int] | None = None) -> list[GoldAfter]:
    """Dialogues (rows) x golds (columns), the diagonal and the golds at these distances."""
    size = len(table)
    kept = {0, *(range(size) if steps is None else steps)}
    return [
        GoldAfter("t", f"d{j:02}", f"p{j:02}", f"p{k:02}", float(table[j, k]))
        for j in range(size)
        for k in range(size)
        if (k - j) % size in kept
    ]


def test_by_hand() -> None:
    # Dialogue effects 0, 1, 2, gold effects 0, 10, 20, and 3, 6, 9 where they belong together.
    table = np.array([[3.0, 10, 20], [1, 17, 21], [2, 12, 31]])
    assert contrasts(scored(table)) == pytest.approx({"d00": 3.0, "d01": 6.0, "d02": 9.0})


def test_mean_is_the_doubly_centred_one_of_a_whole_table() -> None:
    table = np.random.default_rng(0).normal(-300, 10, (7, 7))
    cells = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    expected = np.diag(cells).mean() * 7 / 6
    assert np.mean(list(contrasts(scored(table)).values())) == pytest.approx(expected)


def test_values_are_the_jackknifes_pseudo_values() -> None:
    table = np.random.default_rng(1).normal(-300, 10, (6, 6))

    def estimate(kept: list[int]) -> float:
        part = table[np.ix_(kept, kept)]
        off = part[~np.eye(len(kept), dtype=bool)].mean()
        return float(np.diag(part).mean() - off)

    whole = estimate(list(range(6)))
    for j in range(6):
        left = estimate([k for k in range(6) if k != j])
        assert contrasts(scored(table))[f"d{j:02}"] == pytest.approx(6 * whole - 5 * left)


@pytest.mark.parametrize("num_others", [2, 3, 4])
def test_a_sample_takes_out_all_of_both_effects(num_others: int) -> None:
    generator = np.random.default_rng(2)
    own = generator.normal(5, 2, 12)
    table = generator.normal(0, 30, (12, 1)) + generator.normal(-300, 30, (1, 12))
    table[np.arange(12), np.arange(12)] += own
    pairs = pairs_of(12)
    others = sampled_others(pairs, num_others)
    steps = [(int(o.persona.id[1:])) % 12 for o in others["t:p00"]]
    assert len(set(steps)) == num_others
    found = contrasts(scored(table, steps))
    assert [found[f"d{j:02}"] for j in range(12)] == pytest.approx(own.tolist())


@pytest.mark.parametrize(
    ("size", "num_others"), [(1, 4), (2, 4), (5, 4), (8, 3), (24, 4), (24, 23)]
)
def test_every_gold_serves_equally_often(size: int, num_others: int) -> None:
    pairs = [*pairs_of(size), *pairs_of(size, "other")]
    found = sampled_others(pairs, num_others)
    expected = min(num_others, size - 1)
    served = [other.id for others in found.values() for other in others]
    assert {served.count(pair.id) for pair in pairs} == {expected}
    for pair in pairs:
        assert pair not in found[pair.id]
        assert {other.task.id for other in found[pair.id]} <= {pair.task.id}


def test_several_dialogues_of_a_pair_each_have_a_value() -> None:
    table = np.array([[3.0, 10, 20], [1, 17, 21], [2, 12, 31]])
    again = [
        GoldAfter("t", "d00b", "p00", f"p{k:02}", value) for k, value in enumerate([9.0, 15, 25])
    ]
    found = contrasts([*scored(table), *again])
    assert found["d00b"] == pytest.approx(9.0 - 5.0)
    assert found["d00"] == pytest.approx(3.0)


def test_what_nothing_ties_together_has_no_contrast() -> None:
    two = np.array([[3.0, 10], [1, 17]])
    assert contrasts(scored(two)) == {}  # p00's gold was seen after p01 only, and the reverse
    table = np.array([[3.0, 10, 20], [1, 17, 21], [2, 12, 31]])
    no_own = [entry for entry in scored(table) if entry.dialogue_id != "d01" or not entry.is_own]
    assert set(contrasts(no_own)) == {"d00", "d02"}
    assert contrasts([]) == {}
