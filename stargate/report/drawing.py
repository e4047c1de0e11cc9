"""How every figure of the report is drawn: size, colours, points with intervals, legend.

Small, readable on a phone and in a paper and by colour-blind eyes. No pyplot: nothing global is
touched. Colours are Okabe and Ito's, darkened where they are too pale on white; series differ by
marker and line style too. Sizes are for a phone: at 360 px a width of 3.7 in shows 9 pt as 12 px.

Inside the page a figure is an SVG element that takes the page's colours, fonts and width: ink
becomes currentColor, the other colours `var(--series-1, ...)` and so on, with a fallback for light
and dark. The same figure gives the same text.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import matplotlib
from markupsafe import Markup
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
# On dark paper the series need to be lighter; hue and order stay.
_DARK_SERIES = ("#56b4e9", "#f5935a", "#3fc79c", "#dd9ccb", "#e0c04c", "#a3a6ac")
_COLOURS = {
    INK: "currentColor",
    MUTED: "var(--muted, light-dark(#62656b, #a3a6ac))",
    GRID: "var(--line, light-dark(#e6e3de, #31343a))",
    **{
        light: f"var(--series-{number}, light-dark({light}, {dark}))"
        for number, (light, dark) in enumerate(zip(SERIES, _DARK_SERIES, strict=True), start=1)
    },
}
_COLOUR = re.compile("|".join(_COLOURS))
# What a page has no use for. Ids that something refers to are hashes that differ
# between figures; the others stand in every figure.
_DROPPED = re.compile(r' id="[^"]*_\d+"|font-family: [^;"]*;? ?|xlink:')
_PATH = re.compile(r' d="[^"]*"')
# A hundredth of a point is far below a pixel.
_SHORTER = re.compile(r"(\d\.\d\d)\d+")
_HEAD = Markup(
    '<svg viewBox="{0}" xmlns="http://www.w3.org/2000/svg" role="img" '
    'aria-labelledby="{1}-title {1}-desc" style="stroke-linejoin: round; stroke-linecap: butt">'
    '<title id="{1}-title">{2}</title><desc id="{1}-desc">{3}</desc>'
)


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure. `section` is where it belongs: "curves", "origin", "selection", "training" or
    "time"; `description` says in words what is drawn, for those who can't see it.
    """

    name: str
    section: str
    title: str
    caption: str
    description: str
    figure: Figure

    def save_svg(self, file: Path | IO[str], **metadata: str | None) -> None:
        """The same figure gives the same bytes."""
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(file, format="svg", metadata={"Date": None, **metadata})

    def inline_svg(self) -> Markup:
        """The SVG element, to go into HTML as it is (its texts are escaped)."""
        buffer = io.StringIO()
        self.save_svg(buffer, Creator=None, Format=None, Type=None)
        text = _DROPPED.sub("", " ".join(buffer.getvalue().split()))
        text = _PATH.sub(lambda path: _SHORTER.sub(r"\1", path[0]), text)
        text = _COLOUR.sub(lambda colour: _COLOURS[colour[0]], text)
        view = text.partition('viewBox="')[2].partition('"')[0]
        # The first definition is a style sheet that would apply to the whole page.
        drawing = Markup(text.partition("</defs>")[2])
        return _HEAD.format(view, f"figure-{self.name}", self.title, self.description) + drawing


@contextmanager
def canvas(label: str, *, series: int = 0, percent: bool = False) -> Iterator[tuple[Figure, Axes]]:
    """A figure to draw on, in the report's style.

    `label` is of the y axis; with `series` there is a legend of two columns below.
    """
    rows = (series + 1) // 2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT + rows * LEGEND_ROW), layout="constrained")
        axes = figure.add_subplot()
        yield figure, axes
        axes.set_ylabel(label)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if rows:
            figure.legend(loc="outside lower center", ncols=2, handlelength=2.0, columnspacing=1.2)


def zero_line(axes: Axes) -> None:
    """Where a difference means nothing."""
    axes.axhline(0.0, color=MUTED, linewidth=0.9)


def points(
    axes: Axes, series: Mapping[str, Sequence[tuple[int, Measure | None]]], *, joined: bool
) -> None:
    """Means with their intervals, by label; a mean without an interval is a point alone.

    Series stand side by side by a little, so that intervals at one place can be told apart.
    """
    for place, (label, values) in enumerate(series.items()):
        style = place % len(SERIES)
        shift = (0.07 if joined else 0.12) * (place - (len(series) - 1) / 2)
        known = [(x + shift, value) for x, value in values if value is not None]
        lows = [_reach(value.mean, value.ci_low) for _, value in known]
        highs = [_reach(value.mean, value.ci_high) for _, value in known]
        axes.errorbar(
            [x for x, _ in known],
            [value.mean or 0.0 for _, value in known],
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
