"""How every figure of the report is drawn: size, colours, points with intervals, legend.

Colours are Okabe and Ito's, darkened where they are too pale on white; series differ by marker and
line style too. Sizes are for a phone: at 360 px a width of 3.7 in shows 9 pt as 12 px.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.typing import RcKeyType

from stargate.evaluation.statistics import Measure

INK, MUTED, GRID = "#1c1d20", "#62656b", "#e6e3de"
SERIES = ("#0072b2", "#d55e00", "#00805d", "#9c4f86", "#8a6d00", "#62656c")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
# Inches.
WIDTH, HEIGHT = 3.7, 2.6
LEGEND_ROW = 0.2  # inches per row of the legend, added to the height
STYLE: dict[RcKeyType, Any] = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "axes.unicode_minus": True,
    "text.parse_math": False,
}


def new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def finish(figure: Figure, axes: Axes, label: str, *, rows: int = 0, percent: bool = False) -> None:
    """The y label, percent signs, and a legend of two columns below."""
    axes.set_ylabel(label)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if rows:
        figure.legend(loc="outside lower center", ncols=2, handlelength=2.0, columnspacing=1.2)


def points(
    axes: Axes,
    values: Sequence[tuple[float, Measure]],
    place: int,
    label: str,
    *,
    joined: bool,
) -> None:
    """Means with their intervals; a mean without an interval is a point alone."""
    style = place % len(SERIES)
    means = [value.mean or 0.0 for _, value in values]
    lows = [_reach(value.mean, value.ci_low) for _, value in values]
    highs = [_reach(value.mean, value.ci_high) for _, value in values]
    axes.errorbar(
        [x for x, _ in values],
        means,
        yerr=[lows, highs],
        color=SERIES[style],
        marker=MARKERS[style],
        linestyle=DASHES[style] if joined else "none",
        elinewidth=1.0,
        capsize=2.0,
        label=label,
    )


def _reach(mean: float | None, end: float | None) -> float:
    """Length of an error bar. Bounds of rates may cut an interval short of its mean: never < 0."""
    return 0.0 if mean is None or end is None else abs(mean - end)
