"""The variance of a mean over a table of (task, persona) cells, split by where it comes from.

    sums and counts by cell -> WeightedTable -- weights of tasks and personas --> TwoWayVariance
                            -> NestedTable   -- weights of tasks, every persona is in one of them

statistics.py asks for it once with all weights 1, and once with the weights of all resamples.

Letters: I tasks, J personas, R resamples.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# The additive fit of `WeightedTable` needs most cells; below this share it isn't tried.
_MIN_FILLED = 0.5


@dataclass(frozen=True, slots=True)
class TwoWayVariance:
    """Mean and its variance by source, for each of R (re)samples; all are (R,).

    `tasks` is the variance of the mean if only tasks were clusters, `personas` likewise, and
    `cells` if every cell were independent after task and persona effects are taken out.
    """

    mean: Floats
    tasks: Floats
    personas: Floats
    cells: Floats

    @property
    def total(self) -> Floats:
        """tasks + personas - cells, since both parts contain the noise of the cells; never below
        either part, which a variance can't be but an estimate often is (negative, even). `cells`
        alone where both parts are nothing (rows and columns all balance out).
        """
        total = np.maximum(self.tasks, self.personas)
        total = np.maximum(total, self.tasks + self.personas - self.cells)
        chosen: Floats = np.where(total > 1e-12 * self.cells, total, self.cells)
        return chosen


class WeightedTable:
    """The two-way variance of a table's mean as a function of task and persona weights.

    With u_ij = sum_ij - mean x count_ij, what a cell adds to the mean's deviation:

        tasks     I/(I-1) x sum_i (sum_j u_ij)^2 / n^2           likewise personas
        cells     C/(C-I-J+1) x sum_ij (u_ij - count_ij (a_i + b_j))^2 / n^2

    a_i and b_j are the mean deviations of task i and persona j, C the cells observed. Without
    them `cells` would hold a share of the task and persona effects and `total` be 10 % too small
    with 10 personas. A table with most cells missing can't tell them apart: there `cells` is
    C/(C-1) x sum u_ij^2 / n^2 (Cameron, Gelbach, Miller 2011). All are sums of products of the
    weights with fixed (I, J) arrays, so R resamples take a dozen matrix products.
    """

    def __init__(self, sums: Floats, counts: Floats) -> None:
        self.shape = counts.shape
        self._sums, self._counts = sums, counts
        self._counts2, self._products, self._squares = counts * counts, sums * counts, sums * sums
        self._present = (counts > 0).astype(np.float64)
        self._additive = float(self._present.mean()) >= _MIN_FILLED

    def variance(self, task_weights: Floats, persona_weights: Floats) -> TwoWayVariance:
        """Of R (re)samples at once: weights (R, I) and (R, J)."""
        by_row = _Margin(task_weights, persona_weights, self._sums, self._counts)
        by_column = _Margin(persona_weights, task_weights, self._sums.T, self._counts.T)
        n = (task_weights * by_row.counts).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (task_weights * by_row.sums).sum(1) / n  # NaN where no drawn cell was observed
        centre = np.nan_to_num(mean)[:, None]
        n2 = np.maximum(n, 1.0) ** 2
        return TwoWayVariance(
            mean=mean,
            tasks=by_row.sum_of_squares(centre) / n2,
            personas=by_column.sum_of_squares(centre) / n2,
            cells=self._cells(by_row, by_column, centre) / n2,
        )

    def _cells(self, by_row: "_Margin", by_column: "_Margin", centre: Floats) -> Floats:
        task_weights, persona_weights = by_row.weights, by_column.weights
        row_counts2 = persona_weights @ self._counts2.T
        row_products = persona_weights @ self._products.T - centre * row_counts2
        squares = persona_weights @ self._squares.T - centre * (
            2 * row_products + centre * row_counts2
        )
        rest = (task_weights * squares).sum(1)
        num_cells = (task_weights * (persona_weights @ self._present.T)).sum(1)
        freedom = num_cells - 1
        if self._additive:
            column_counts2 = task_weights @ self._counts2
            column_products = task_weights @ self._products - centre * column_counts2
            a, b = by_row.effects(centre), by_column.effects(centre)
            rest += (task_weights * a * (a * row_counts2 - 2 * row_products)).sum(1)
            rest += (persona_weights * b * (b * column_counts2 - 2 * column_products)).sum(1)
            rest += 2 * (((task_weights * a) @ self._counts2) * persona_weights * b).sum(1)
            freedom = num_cells - by_row.num_drawn - by_column.num_drawn + 1
        corrected: Floats = np.maximum(rest, 0.0) * num_cells / np.maximum(freedom, 1.0)
        return corrected


class NestedTable:
    """The variance of a table's mean where every persona is in one task, as a function of weights.

    Tasks are the only clusters, and with u_i = sum_i - mean x count_i over all of a task's cells
    the variance is I/(I-1) x sum_i u_i^2 / n^2. `cells` is C/(C-1) x sum_ij u_ij^2 / n^2 over the C
    cells observed: what it would be if they were independent.
    """

    def __init__(self, sums: Floats, counts: Floats) -> None:
        self.sums, self.counts = sums.sum(axis=1), counts.sum(axis=1)
        n, num_cells = float(counts.sum()), int((counts > 0).sum())
        deviations = sums - float(sums.sum()) / n * counts
        self.cells = num_cells / (num_cells - 1) * float((deviations**2).sum()) / n**2

    def variance(self, task_weights: Floats) -> tuple[Floats, Floats]:
        """Means and their variances, (R,) each, of R (re)samples: weights (R, I)."""
        n = task_weights @ self.counts
        mean = task_weights @ self.sums / n
        deviations = self.sums - mean[:, None] * self.counts
        num_tasks = len(self.counts)
        squares = (task_weights * deviations**2).sum(axis=1)
        return mean, squares * (num_tasks / (num_tasks - 1)) / n**2


class _Margin:
    """Weighted sums over the columns of a table, by row, for R resamples: arrays are (R, rows)."""

    def __init__(
        self, weights: Floats, column_weights: Floats, sums: Floats, counts: Floats
    ) -> None:
        self.weights = weights
        self.sums = column_weights @ sums.T
        self.counts = column_weights @ counts.T
        self.num_drawn = (weights * (self.counts > 0)).sum(1)

    def sum_of_squares(self, centre: Floats) -> Floats:
        """Of the rows' deviations, with the correction for a mean taken from the same rows."""
        num_rows = self.weights.shape[1]
        squares: Floats = (self.weights * (self.sums - centre * self.counts) ** 2).sum(1)
        corrected: Floats = squares * (num_rows / (num_rows - 1))
        return corrected

    def effects(self, centre: Floats) -> Floats:
        """Mean deviation of each row; 0 for a row without observations."""
        effects: Floats = (self.sums - centre * self.counts) / np.maximum(self.counts, 1.0)
        return effects
