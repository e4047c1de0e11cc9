"""Skill against sums by hand, and when there is none."""

import numpy as np
import pytest

from stargate.evaluation.skill import skill
from stargate.evaluation.statistics import BootstrapConfig, Measure, Observation

CONFIG = BootstrapConfig(num_resamples=400)


def observed(values: np.ndarray) -> list[Observation]:
    return [Observation(f"t{i}", f"p{j}", float(value)) for (i, j), value in np.ndenumerate(values)]


def drawn(mean: float, seed: int, shape: tuple[int, int] = (12, 8)) -> np.ndarray:
    return mean + np.random.default_rng(seed).normal(size=shape)


def test_it_is_the_ratio_of_the_means_over_the_cells_that_all_have() -> None:
    checkpoint, constant, facts = drawn(4, 1), drawn(2, 2), drawn(10, 3)
    found = skill(observed(checkpoint), observed(constant), observed(facts)[:-1], CONFIG)
    assert isinstance(found, Measure)
    kept = np.ones(96, bool)
    kept[-1] = False
    c, k, g = (values.ravel()[kept] for values in (checkpoint, constant, facts))
    assert found.mean == pytest.approx((c - k).mean() / (g - k).mean(), abs=1e-12)
    assert found.n == 95
    assert found.ci_low is not None and found.ci_high is not None
    assert found.ci_low < found.mean < found.ci_high


def test_cells_weigh_the_same_however_many_dialogues_they_have() -> None:
    checkpoint, constant, facts = drawn(4, 1), drawn(2, 2), drawn(10, 3)
    once = skill(observed(checkpoint), observed(constant), observed(facts), CONFIG)
    twice = skill(observed(checkpoint) * 2, observed(constant), observed(facts), CONFIG)
    assert once == twice


def test_the_ends_are_0_and_1() -> None:
    constant, facts = drawn(2, 2), drawn(10, 3)
    for values, expected in ((constant, 0.0), (facts, 1.0)):
        found = skill(observed(values), observed(constant), observed(facts), CONFIG)
        assert isinstance(found, Measure) and found.mean == pytest.approx(expected, abs=1e-12)


def test_there_is_none_where_nothing_can_be_divided_by() -> None:
    same = skill(observed(drawn(4, 1)), observed(drawn(2, 2)), observed(drawn(2.1, 3)), CONFIG)
    assert isinstance(same, str) and "nothing to divide by" in same
    nobody = skill([], observed(drawn(2, 2)), observed(drawn(9, 3)), CONFIG)
    assert isinstance(nobody, str) and nobody.startswith("no pair has")
