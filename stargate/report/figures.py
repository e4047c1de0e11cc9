"""Drawing what a run measured: small, readable on a phone and in a paper and by colour-blind eyes.

Which figures a report has, with their titles and captions, is in plots.py. Points show means, bars
their intervals. No pyplot: nothing global is touched.
"""

from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stargate.report.drawing import (
    DASHES,
    HEIGHT,
    INK,
    LEGEND_ROW,
    MARKERS,
    MUTED,
    SERIES,
    STYLE,
    finish,
    new_figure,
    points,
)
from stargate.report.records import Evaluation, ReportData, SelectionView

# Pairs that one selection figure shows: more columns can't be told apart on a phone.
MAX_PAIRS = 40


def curve_figure(
    evaluation: Evaluation,
    lines: Iterable[tuple[str, str]],
    label: str,
    *,
    percent: bool = False,
    zero: bool = False,
) -> Figure:
    """Measures (name, label) over the checkpoints with their intervals.

    `zero` draws a line at 0, where a difference means nothing.
    """
    shown = [(name, text) for name, text in lines if is_known(evaluation, name)]
    rows = (len(shown) + 1) // 2 if len(shown) > 1 else 0
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(HEIGHT + rows * LEGEND_ROW)
        for place, (name, text) in enumerate(shown):
            # Side by side by a little, so that intervals at one checkpoint can be told apart.
            shift = 0.07 * (place - (len(shown) - 1) / 2)
            values = [
                (x + shift, value)
                for x, checkpoint in enumerate(evaluation.checkpoints)
                if (value := evaluation.measure(checkpoint, name)) is not None
            ]
            points(axes, values, place, text, joined=True)
        if zero:
            axes.axhline(0.0, color=MUTED, linewidth=0.9)
        axes.set_xticks(range(len(evaluation.checkpoints)), evaluation.checkpoints)
        axes.set_xlim(-0.4, len(evaluation.checkpoints) - 0.6)
        axes.set_xlabel("checkpoint")
        finish(figure, axes, label, rows=rows, percent=percent)
    return figure


def turn_gain_figure(evaluation: Evaluation) -> Figure:
    """What each turn added to the gold log-prob, by checkpoint."""
    turns = turns_of(evaluation)
    checkpoints = _few(evaluation.checkpoints)
    rows = (len(checkpoints) + 1) // 2
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(HEIGHT + rows * LEGEND_ROW)
        for place, checkpoint in enumerate(checkpoints):
            shift = 0.12 * (place - (len(checkpoints) - 1) / 2)
            values = [
                (turn + shift, value)
                for turn in turns
                if (value := evaluation.measure(checkpoint, f"gain_at_turn_{turn}")) is not None
            ]
            points(axes, values, place, checkpoint, joined=False)
        axes.axhline(0.0, color=MUTED, linewidth=0.9)
        axes.set_xticks(turns)
        axes.set_xlim(turns[0] - 0.5, turns[-1] + 0.5)
        axes.set_xlabel("turn")
        finish(figure, axes, "added gold log-prob (nats)", rows=rows)
    return figure


def selection_figure(selections: Sequence[SelectionView]) -> Figure:
    """The scores of each pair's N dialogues around their mean, the chosen one marked."""
    shown = _evenly(sorted(selections, key=_spread), MAX_PAIRS)
    others: list[tuple[int, float]] = []
    chosen: list[tuple[int, float]] = []
    for column, selection in enumerate(shown):
        mean = sum(selection.scores) / len(selection.scores)
        for candidate, score in zip(selection.candidates, selection.scores, strict=True):
            point = (column, score - mean)
            (chosen if candidate == selection.chosen else others).append(point)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(HEIGHT + LEGEND_ROW)
        axes.axhline(0.0, color=MUTED, linewidth=0.9)
        for places, marker, colour, text in (
            (others, "o", SERIES[5], "not chosen"),
            (chosen, "D", SERIES[1], "chosen"),
        ):
            axes.plot(
                [x for x, _ in places],
                [y for _, y in places],
                linestyle="none",
                marker=marker,
                color=colour,
                markersize=3.5,
                markeredgewidth=0.0,
                label=text,
            )
        axes.set_xticks([])
        axes.set_xlabel(f"{len(shown)} pairs, by the chosen one's lead")
        finish(figure, axes, "score minus pair's mean (nats)", rows=1)
    return figure


def training_figure(data: ReportData, *, grad_norms: bool = False) -> Figure:
    """Training loss (or gradient norm) by step and iteration; crosses are validation losses."""
    rows = (len(data.iterations) + 1) // 2
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(HEIGHT + rows * LEGEND_ROW)
        for place, iteration in enumerate(data.iterations):
            values = iteration.grad_norms if grad_norms else iteration.losses
            steps = range(1, len(values) + 1)
            colour = SERIES[place % len(SERIES)]
            axes.plot(
                steps,
                values,
                color=colour,
                linestyle=DASHES[place % len(DASHES)],
                # One step has no line to be seen.
                marker=MARKERS[place % len(MARKERS)] if len(values) < 2 else "",
                label=f"iteration {iteration.number} (m{iteration.number + 1})",
            )
            if not grad_norms and iteration.validation_loss is not None:
                axes.plot([len(values)], [iteration.validation_loss], marker="x", color=colour)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.set_xlabel("optimizer step")
        label = "gradient norm" if grad_norms else "loss (nats per token)"
        finish(figure, axes, label, rows=rows)
    return figure


def stage_figure(data: ReportData) -> Figure:
    """Wall time by stage as bars, in the order of the run."""
    names, seconds = list(data.stages), list(data.stages.values())
    in_minutes = max(seconds) >= 600
    values = [value / 60 if in_minutes else value for value in seconds]
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure, axes = new_figure(0.7 + 0.22 * len(names))
        bars = axes.barh(range(len(names)), values, color=SERIES[0], height=0.7)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8, color=INK)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.14, y=0.02)
        axes.set_xlabel("minutes" if in_minutes else "seconds")
    return figure


def is_known(evaluation: Evaluation, name: str) -> bool:
    """Whether any checkpoint has this measure."""
    return any(evaluation.measure(c, name) is not None for c in evaluation.checkpoints)


def turns_of(evaluation: Evaluation) -> list[int]:
    """K of every gain_at_turn_K that was measured."""
    names = {name for measures in evaluation.measures.values() for name in measures}
    found = [n.removeprefix("gain_at_turn_") for n in names if n.startswith("gain_at_turn_")]
    return sorted(
        int(n) for n in found if n.isdigit() and is_known(evaluation, f"gain_at_turn_{n}")
    )


def _few(checkpoints: Sequence[str]) -> list[str]:
    """All checkpoints, or the first and the last where more than four would crowd a turn."""
    return list(checkpoints) if len(checkpoints) <= 4 else [checkpoints[0], checkpoints[-1]]


def _spread(selection: SelectionView) -> tuple[float, str]:
    mean = sum(selection.scores) / len(selection.scores)
    return selection.scores[selection.candidates.index(selection.chosen)] - mean, selection.pair_id


def _evenly(selections: Sequence[SelectionView], count: int) -> list[SelectionView]:
    """At most `count` of them, from all over the list."""
    if len(selections) <= count:
        return list(selections)
    return [selections[i * (len(selections) - 1) // (count - 1)] for i in range(count)]
