"""The statistics on hand-computed cases, against scipy and statsmodels, and by simulation."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stargate.errors import DataError
from stargate.evaluation.statistics import (
    BootstrapConfig,
    CellTable,
    Measure,
    Observation,
    cell_table,
    measure,
    paired_difference,
    resampling_weights,
)
from stargate.evaluation.two_way import Floats, TwoWayVariance, WeightedTable


def observed(values: list[list[float | list[float]]]) -> list[Observation]:
    """A table of values or lists of values by task (row) and persona (column)."""
    return [
        Observation(f"t{i:02}", f"p{j:02}", value)
        for i, row in enumerate(values)
        for j, cell in enumerate(row)
        for value in (cell if isinstance(cell, list) else [cell])
    ]


def clustered(shape: tuple[int, int], scales: tuple[float, float, float], seed: int) -> Floats:
    """Values with normal task, persona and cell effects of these standard deviations."""
    generator = np.random.default_rng(seed)
    task, persona, cell = scales
    return (
        task * generator.standard_normal((shape[0], 1))
        + persona * generator.standard_normal((1, shape[1]))
        + cell * generator.standard_normal(shape)
    )


def as_table(values: Floats) -> CellTable:
    return cell_table(observed(values.tolist()))


def two_way_variance(table: CellTable) -> TwoWayVariance:
    """The variance of a table's mean by source (R = 1)."""
    ones = np.ones((1, len(table.tasks))), np.ones((1, len(table.personas)))
    return WeightedTable(table.sums, table.counts).variance(*ones)


def test_variance_by_hand() -> None:
    # Mean 3; u = [[-2, -1], [0, 3]]; row sums -3, 3; column sums -2, 2; what is left after row
    # and column means: [[.5, -.5], [-.5, .5]].
    found = two_way_variance(cell_table(observed([[1, 2], [3, 6]])))
    assert found.mean.tolist() == [3.0]
    assert found.tasks.tolist() == [2 * 18 / 16]
    assert found.personas.tolist() == [2 * 8 / 16]
    assert found.cells.tolist() == [4 * 1 / 16]
    assert found.total.tolist() == [2.25 + 1.0 - 0.25]


def test_interval_of_few_clusters_by_hand() -> None:
    from scipy.stats import t

    got = measure(observed([[1, 2], [3, 6]]))
    # Satterthwaite: 3^2 / (2.25^2 + 1^2 + 0.25^2) = 1.469 degrees of freedom.
    reach = float(t.ppf(0.975, 9 / 6.125)) * math.sqrt(3)
    assert got.mean == 3.0
    assert got.ci_low == pytest.approx(3 - reach)
    assert got.ci_high == pytest.approx(3 + reach)
    # Plain: deviations -2, -1, 0, 3; sum of squares 14; sqrt(14 / 3) / sqrt(4).
    assert got.standard_error == pytest.approx(math.sqrt(14 / 3) / 2)
    assert (got.n, got.task_clusters, got.persona_clusters) == (4, 2, 2)


def test_several_dialogues_weigh_by_their_number() -> None:
    table = cell_table(observed([[[1, 3], 2], [[], 8]]))
    assert table.sums.tolist() == [[4, 2], [0, 8]]
    assert table.counts.tolist() == [[2, 1], [0, 1]]
    found = two_way_variance(table)
    assert found.mean.tolist() == [3.5]
    # u = [[-3, -1.5], [0, 4.5]]
    assert found.tasks.tolist() == [2 * (4.5**2 + 4.5**2) / 16]
    assert found.personas.tolist() == [2 * (3**2 + 3**2) / 16]


def test_weights_are_copies_of_rows_and_columns() -> None:
    """R weighted variances at once, against each table written out in full with plain loops."""
    generator = np.random.default_rng(5)
    counts = generator.integers(0, 4, (7, 6)).astype(float)
    counts[0] = counts[:, 0] = 1.0
    sums = np.where(counts > 0, generator.normal(2.0, 1.0, (7, 6)) * counts, 0.0)
    weighted = WeightedTable(sums, counts)
    tasks, personas = next(resampling_weights(7, 6, BootstrapConfig(num_resamples=200, seed=1)))
    found = weighted.variance(tasks, personas)
    for index in range(200):
        rows = np.repeat(np.arange(7), tasks[index].astype(int))
        columns = np.repeat(np.arange(6), personas[index].astype(int))
        expected = written_out(sums[rows][:, columns], counts[rows][:, columns])
        got = [part[index] for part in (found.mean, found.tasks, found.personas, found.cells)]
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)


def written_out(sums: Floats, counts: Floats) -> list[float]:
    num_tasks, num_personas = counts.shape
    n = counts.sum()
    mean = sums.sum() / n
    u = sums - mean * counts
    tasks = sum(row.sum() ** 2 for row in u) * num_tasks / (num_tasks - 1) / n**2
    personas = sum(col.sum() ** 2 for col in u.T) * num_personas / (num_personas - 1) / n**2
    rest, cells = 0.0, 0
    for i in range(num_tasks):
        for j in range(num_personas):
            a = u[i].sum() / max(counts[i].sum(), 1)
            b = u[:, j].sum() / max(counts[:, j].sum(), 1)
            rest += (u[i, j] - counts[i, j] * (a + b)) ** 2
            cells += counts[i, j] > 0
    drawn = (counts.sum(1) > 0).sum() + (counts.sum(0) > 0).sum()
    return [mean, tasks, personas, rest / n**2 * cells / max(cells - drawn + 1, 1)]


def test_resampling_one_way_is_scipys_bootstrap() -> None:
    """With every persona drawn once, only tasks are resampled: the mean of the task means."""
    from scipy.stats import bootstrap

    values = clustered((30, 4), (1.0, 0.5, 1.0), seed=3)
    weighted = WeightedTable(values, np.ones_like(values))
    means = np.concatenate(
        [
            weighted.variance(tasks, np.ones((len(tasks), 4))).mean
            for tasks, _ in resampling_weights(30, 4, BootstrapConfig(num_resamples=20_000))
        ]
    )
    theirs = bootstrap(
        (values.mean(axis=1),), np.mean, n_resamples=20_000, method="percentile", rng=0
    )
    low, high = np.quantile(means, [0.025, 0.975])
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)
    assert means.std() == pytest.approx(theirs.standard_error, rel=0.03)
    by_formula = math.sqrt(two_way_variance(as_table(values)).tasks[0] * 29 / 30)
    assert means.std() == pytest.approx(by_formula, rel=0.03)


def test_clusters_widen_the_interval() -> None:
    values = clustered((50, 10), (0.1, 1.0, 0.3), seed=2)
    got = measure(observed(values.tolist()))
    assert got.ci_low is not None and got.ci_high is not None and got.standard_error is not None
    # As if independent it would be +- 0.09; ten personas with standard deviation 1 say +- 0.7.
    assert got.ci_high - got.ci_low > 5 * 2 * 1.96 * got.standard_error


@pytest.mark.parametrize(
    ("values", "clusters", "reason"),
    [
        ([[1, 2, 3]], (1, 3), "1 task(s) and 3 persona(s)"),
        ([[1], [2]], (2, 1), "2 task(s) and 1 persona(s)"),
        ([[5]], (1, 1), "1 task(s) and 1 persona(s)"),
        ([[1, 1], [1, 1]], (2, 2), "no spread"),
    ],
)
def test_no_interval_is_made_up(
    values: list[list[float | list[float]]], clusters: tuple[int, int], reason: str
) -> None:
    got = measure(observed(values))
    assert (got.ci_low, got.ci_high) == (None, None)
    assert (got.task_clusters, got.persona_clusters) == clusters
    assert reason in (got.why_no_interval or "")


def test_nothing_observed_is_none() -> None:
    got = measure([])
    assert got == Measure(None, None, None, None, 0, 0, 0)
    assert got.why_no_interval == "nothing was observed"
    assert measure(observed([[5]])).standard_error is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_named(value: float) -> None:
    with pytest.raises(DataError, match="task 't', persona 'p': a measure must be finite, got"):
        measure([Observation("t", "p", 1.0), Observation("t", "p", value)])


def test_bounds_cut_the_interval_only() -> None:
    values = [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
    free, cut = measure(observed(values)), measure(observed(values), bounds=(0.0, 1.0))
    assert free.ci_high is not None and free.ci_high > 1.0
    assert cut.ci_high == 1.0
    assert cut.mean == free.mean


def test_rare_events_of_few_personas_keep_a_finite_interval() -> None:
    """All events are one persona's: many resamples don't hold it and have no spread at all."""
    got = measure(observed([[1, 0, 0, 0, 0]] * 20 + [[0, 1, 0, 0, 0]]))
    assert got.ci_low is not None and got.ci_high is not None and got.mean is not None
    assert got.ci_high - got.mean < 1.0


def test_sparse_and_nested_tables_have_intervals() -> None:
    nested = [Observation(f"t{i}", f"p{i % 6}", float(i % 5)) for i in range(30)]
    diagonal = [Observation(f"t{i}", f"p{i}", float(i % 5)) for i in range(30)]
    for observations in (nested, diagonal):
        got = measure(observations)
        assert got.ci_low is not None and got.ci_high is not None and got.mean is not None
        assert got.ci_low < got.mean < got.ci_high


def of_one_task(values: list[list[float]]) -> list[Observation]:
    """A table of values by task (row) and the task's own persons."""
    return [
        Observation(f"t{i:02}", f"t{i:02}-p{j}", value)
        for i, row in enumerate(values)
        for j, value in enumerate(row)
    ]


def test_nested_personas_cluster_by_task_alone_by_hand() -> None:
    from scipy.stats import t

    got = measure(of_one_task([[1, 2], [3, 6], [4, 2]]))
    # Mean 3; the tasks' sums of deviations -3, 3, 0; 3/2 x 18 / 36; t with 2 degrees of freedom.
    reach = float(t.ppf(0.975, 2)) * math.sqrt(0.75)
    assert (got.ci_low, got.ci_high) == (pytest.approx(3 - reach), pytest.approx(3 + reach))
    assert (got.nested, got.task_clusters, got.persona_clusters) == (True, 3, 6)
    assert got.clusters == "3 tasks; each person belongs to one task"
    assert got.fewest_clusters == 3
    assert got.kinds == "tasks (each person belongs to one)"


def test_nested_and_crossed_personas_are_told_apart_by_what_was_observed() -> None:
    several = of_one_task([[1, 2], [3, 6], [4, 2]])
    assert measure(several).nested
    assert measure(of_one_task([[1], [3], [4]])).nested  # plain tasks: a person each
    assert paired_difference(several, of_one_task([[2, 2], [9, 9], [1, 2]])).nested
    shared = [*several, Observation("t01", "t00-p0", 1.0)]
    assert not measure(shared).nested
    one_task = measure(of_one_task([[1, 2, 3]]))
    assert not one_task.nested and "1 task(s) and 3 persona(s)" in str(one_task.why_no_interval)


def test_many_persons_of_few_tasks_do_not_narrow_an_interval() -> None:
    """20 persons of each task say the same: 12 tasks are all there is, not 240 persons."""
    effects = clustered((12, 1), (1.0, 0.0, 0.0), seed=7)
    once, often = (measure(of_one_task(np.repeat(effects, n, axis=1).tolist())) for n in (1, 20))
    assert (often.ci_low, often.ci_high) == pytest.approx((once.ci_low, once.ci_high))


def test_tasks_that_balance_out_leave_the_spread_of_their_persons() -> None:
    got = measure(of_one_task([[1.0, -1.0], [-1.0, 1.0], [2.0, -2.0]]))
    assert got.ci_low is not None and got.ci_low < 0.0


def test_checkerboard_has_spread_though_rows_and_columns_have_none() -> None:
    got = measure(observed([[1.0, -1.0], [-1.0, 1.0]]))
    assert got.ci_low is not None and got.ci_low < 0.0


def test_a_paired_difference_is_sharper_than_its_parts() -> None:
    before = clustered((20, 8), (5.0, 5.0, 0.1), seed=4) - 350
    after = before + 2.0 + clustered((20, 8), (0.1, 0.1, 0.1), seed=5)
    got = paired_difference(observed(before.tolist()), observed(after.tolist()))
    change = got
    assert change.mean == pytest.approx((after - before).mean())
    assert change.ci_low is not None and change.ci_low > 1.5
    assert (got.num_only_before, got.num_only_after) == (0, 0)
    alone = measure(observed(before.tolist()))
    assert alone.ci_low is not None and alone.mean is not None
    assert alone.mean - alone.ci_low > 2.0


def test_a_paired_difference_by_hand() -> None:
    before = observed([[[1, 3], 2], [5, []]])
    after = observed([[4, [2, 4]], [[], 9]])
    got = paired_difference(before, after)
    # Cells of both: (0, 0): 4 - 2 and (0, 1): 3 - 2. One cell on either side has no partner.
    assert got.mean == 1.5
    assert got.n == 2
    assert (got.num_only_before, got.num_only_after) == (1, 1)


def test_the_seed_decides() -> None:
    observations = observed(clustered((12, 8), (1.0, 1.0, 1.0), seed=6).tolist())
    assert measure(observations) == measure(observations)
    other = measure(observations, BootstrapConfig(seed=1))
    assert other.ci_low != measure(observations).ci_low
    assert other.ci_low == pytest.approx(measure(observations).ci_low, abs=0.1)


def test_every_draw_has_as_many_clusters_as_there_are() -> None:
    blocks = list(resampling_weights(400, 300, BootstrapConfig(num_resamples=2000)))
    assert len(blocks) > 1
    assert sum(len(tasks) for tasks, _ in blocks) == 2000
    for tasks, personas in blocks:
        assert (tasks.sum(1) == 400).all()
        assert (personas.sum(1) == 300).all()


def test_eval_json_has_the_names_of_the_issue() -> None:
    assert json.loads(json.dumps(asdict(measure(observed([[1]]))))) == {
        "mean": 1.0,
        "ci_low": None,
        "ci_high": None,
        "standard_error": None,
        "n": 1,
        "task_clusters": 1,
        "persona_clusters": 1,
        "nested": False,
    }


cells = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(-100, 100)), min_size=1, max_size=60
)


@settings(max_examples=60)
@given(cells, st.randoms(use_true_random=False), st.integers(-1000, 1000))
def test_order_names_and_offset_are_without_effect(
    entries: list[tuple[int, int, int]], random: object, offset: int
) -> None:
    config = BootstrapConfig(num_resamples=200)
    plain = [Observation(f"t{i}", f"p{j}", float(v)) for i, j, v in entries]
    moved = [Observation(f"a{i}", f"b{j}", float(v + offset)) for i, j, v in entries]
    random.shuffle(moved)  # type: ignore[attr-defined]
    got, other = measure(plain, config), measure(moved, config)
    assert other.mean == pytest.approx((got.mean or 0.0) + offset)
    assert (got.ci_low is None) == (other.ci_low is None)
    if got.ci_low is not None and got.ci_high is not None and got.mean is not None:
        assert got.ci_low < got.mean < got.ci_high
        assert math.isfinite(got.ci_high)
        assert other.ci_low == pytest.approx(got.ci_low + offset, rel=1e-6, abs=1e-6)
