"""Simulations of the intervals of stargate/evaluation/statistics.py, of plain means and of the
contrast (contrast.py): too long for a unit test."""

import math

import numpy as np
import pytest

from stargate.evaluation.contrast import GoldAfter, contrasts, sampled_others
from stargate.evaluation.skill import skill
from stargate.evaluation.statistics import (
    BootstrapConfig,
    CellTable,
    Measure,
    Observation,
    clustered_interval,
)
from stargate.evaluation.two_way import Floats
from stargate.types import Pair, Persona, Task
from tests.unit.evaluation.test_statistics import as_table, clustered, two_way_variance

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1.0, 0.1, 0.5), (0.1, 1.0, 0.5)])
def test_standard_errors_are_of_statsmodels_size(scales: tuple[float, float, float]) -> None:
    import statsmodels.api as sm

    values = clustered((50, 10), scales, seed=8)
    tasks, personas = np.indices(values.shape).reshape(2, -1)
    model = sm.OLS(values.ravel(), np.ones(values.size))

    def theirs(groups: Floats) -> float:
        fitted = model.fit(cov_type="cluster", cov_kwds={"groups": groups})
        return float(fitted.bse[0])

    found = two_way_variance(as_table(values))
    # One way the formulas are the same; two ways statsmodels leaves task and persona effects in
    # the cells' part, which makes it up to 5 % smaller with ten personas.
    assert math.sqrt(found.tasks[0]) == pytest.approx(theirs(tasks), rel=1e-9)
    assert math.sqrt(found.personas[0]) == pytest.approx(theirs(personas), rel=1e-9)
    both = theirs(np.column_stack([tasks, personas]))
    assert both * 0.99 < math.sqrt(found.total[0]) < both * 1.08


# Standard deviations of task, persona and cell effects.
COVERAGE_CASES = {
    "tasks dominate": (1.0, 0.1, 0.3),
    "personas dominate": (0.1, 1.0, 0.3),
    "cells dominate": (0.0, 0.0, 1.0),
    "equal effects": (1.0, 1.0, 1.0),
    "equal shares of the variance": (math.sqrt(50), math.sqrt(10), math.sqrt(500)),
}


@pytest.mark.parametrize("name", COVERAGE_CASES)
def test_intervals_cover_93_to_97_percent(name: str) -> None:
    """50 x 10 with a true mean of 0: how many 95 % intervals contain it."""
    scales = COVERAGE_CASES[name]
    num_sets, hits = 2500, 0
    for seed in range(num_sets):
        values = clustered((50, 10), scales, seed)
        config = BootstrapConfig(num_resamples=300, seed=1_000_000 + seed)
        table = CellTable(
            tuple(map(str, range(50))),
            tuple(map(str, range(10))),
            values,
            np.ones_like(values),
            values.ravel(),
        )
        interval = clustered_interval(table, config)
        assert interval is not None
        hits += interval[0] <= 0.0 <= interval[1]
    assert 0.93 <= hits / num_sets <= 0.97


NESTED_CASES = {
    "tasks dominate": (1.0, 0.0, 0.3),
    "persons dominate": (0.0, 0.0, 1.0),
    "equal effects": (1.0, 0.0, 1.0),
}


@pytest.mark.parametrize("shape", [(12, 4), (50, 3)])
@pytest.mark.parametrize("name", NESTED_CASES)
def test_intervals_of_nested_personas_cover_93_to_97_percent(
    name: str, shape: tuple[int, int]
) -> None:
    """Every persona is of one task, so each column of the table has one row's values."""
    num_tasks, num_persons = shape
    row, column = np.repeat(np.arange(num_tasks), num_persons), np.arange(math.prod(shape))
    num_sets, hits = 2500, 0
    for seed in range(num_sets):
        values = clustered(shape, NESTED_CASES[name], seed).ravel()
        sums = np.zeros((num_tasks, len(values)))
        counts = np.zeros_like(sums)
        sums[row, column], counts[row, column] = values, 1.0
        table = CellTable(
            tuple(map(str, range(num_tasks))), tuple(map(str, column)), sums, counts, values
        )
        assert table.nested
        interval = clustered_interval(table, BootstrapConfig(num_resamples=300, seed=seed))
        assert interval is not None
        hits += interval[0] <= 0.0 <= interval[1]
    assert 0.93 <= hits / num_sets <= 0.97


def contrast_table(effects: Floats, num_others: int, seed: int) -> CellTable:
    """Contrasts (tasks, personas) from log-probs of golds after dialogues, where dialogues and
    golds differ by 3 and by 14 nats anyway and belonging together adds 3 + `effects`.
    """
    generator = np.random.default_rng(seed)
    num_tasks, num_personas = effects.shape
    logprobs = (
        3 * generator.standard_normal((num_tasks, num_personas, 1))
        + 10 * generator.standard_normal((num_tasks, 1, num_personas))
        + 10 * generator.standard_normal((1, 1, num_personas))
        + generator.standard_normal((num_tasks, num_personas, num_personas))
    )
    people = range(num_personas)
    pairs = [
        Pair(Task(str(task), "?", "t"), Persona(str(person), "P", "p", "t"), "gold")
        for task in range(num_tasks)
        for person in people
    ]
    others = sampled_others(pairs, num_others)
    scores = [
        GoldAfter(
            pair.task.id,
            pair.id,
            pair.persona.id,
            of.persona.id,
            float(logprobs[int(pair.task.id), int(pair.persona.id), int(of.persona.id)])
            + (3 + float(effects[int(pair.task.id), int(pair.persona.id)])) * (of is pair),
        )
        for pair in pairs
        for of in (pair, *others[pair.id])
    ]
    found = contrasts(scores)
    return as_table(np.array([found[pair.id] for pair in pairs]).reshape(effects.shape))


@pytest.mark.parametrize(("shape", "num_others"), [((12, 8), 7), ((12, 8), 3), ((25, 5), 4)])
def test_intervals_of_the_contrast_cover_93_to_97_percent(
    shape: tuple[int, int], num_others: int
) -> None:
    """Personas dominate, where plain doubly centred cells of few personas cover too little."""
    num_sets, hits = 500, 0
    for seed in range(num_sets):
        effects = clustered(shape, (0.1, 1.0, 0.3), seed)
        config = BootstrapConfig(num_resamples=300, seed=seed)
        interval = clustered_interval(contrast_table(effects, num_others, 10_000 + seed), config)
        assert interval is not None
        hits += interval[0] <= 3.0 <= interval[1]
    assert 0.93 <= hits / num_sets <= 0.97


def observed(values: Floats) -> list[Observation]:
    return [Observation(str(i), str(j), float(one)) for (i, j), one in np.ndenumerate(values)]


@pytest.mark.parametrize("shape", [(16, 24), (12, 8)])
def test_intervals_of_skill_cover_93_to_97_percent(shape: tuple[int, int]) -> None:
    """A checkpoint a quarter of the way up, where tasks and persons differ in how much told facts
    are worth, and each dialogue by itself.
    """
    num_sets, hits = 400, 0
    for seed in range(num_sets):
        constant, worth, gained = (
            clustered(shape, (1.0, 1.0, 2.0), 3 * seed + number) for number in range(3)
        )
        config = BootstrapConfig(num_resamples=300, seed=seed)
        floor = 3 + constant
        found = skill(
            observed(floor + 5 + gained),
            observed(floor),
            observed(floor + 20 + 3 * worth),
            config,
        )
        assert isinstance(found, Measure) and found.ci_low is not None
        assert found.ci_high is not None
        hits += found.ci_low <= 0.25 <= found.ci_high
    assert 0.93 <= hits / num_sets <= 0.97
