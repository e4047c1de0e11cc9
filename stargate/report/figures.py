"""The figures of the report: small, readable on a phone and in a paper, safe for colour-blind eyes.

    ReportData -> report_figures -> Plot (a matplotlib Figure with title and caption)
        -> save_figures   PNG and SVG files for a paper
        -> svg.inline_svg the same drawing inside the HTML page, in the page's colours

Points show means, bars their intervals. No pyplot: nothing global is touched.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stargate.errors import DataError
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
from stargate.report.findings import main_evaluation
from stargate.report.records import Evaluation, ReportData, SelectionView
from stargate.report.wording import confidence

_PNG_DPI = 200
# Pairs that one selection figure shows: more columns can't be told apart on a phone.
_MAX_PAIRS = 40


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


@dataclass(frozen=True, slots=True)
class _Line:
    """One measure over the checkpoints."""

    name: str
    label: str


_GOLD_LINES = (
    _Line("gold_logprob", "own dialogue"),
    _Line("shuffled", "another persona's"),
    _Line("gold_logprob_best", "best of N"),
    _Line("no_dialogue", "no dialogue"),
    _Line("persona_given", "persona given"),
    _Line("persona_and_dialogue", "persona + dialogue"),
)
_SHARE_LINES = (
    _Line("question_rate", "turns that ask"),
    _Line("fact_coverage", "gold's facts elicited"),
    _Line("repeated_question_rate", "repeated questions"),
    _Line("needless_question_rate", "needless questions"),
)
_TOKEN_LINES = (
    _Line("tokens_per_dialogue", "all"),
    _Line("tokens_to_read", "to read"),
    _Line("tokens_to_write", "to write"),
)


def report_figures(data: ReportData) -> tuple[Plot, ...]:
    """Every figure for which the run has data, in the order of the report."""
    evaluation = main_evaluation(data)
    plots: list[Plot] = []
    if evaluation is not None:
        plots += _evaluation_figures(evaluation)
    for iteration in sorted({selection.iteration for selection in data.selections}):
        plots.append(_selection_plot(data, iteration))
    if data.iterations:
        plots += _training_figures(data)
    if data.stages:
        text = "; ".join(f"{name} {seconds:.0f} s" for name, seconds in data.stages.items())
        plots.append(
            Plot(
                "stages",
                "time",
                "Wall time by stage",
                "Stages that run side by side overlap, so the bars need not add up to the run.",
                f"Seconds by stage: {text}.",
                stage_figure(data),
            )
        )
    return tuple(plots)


def save_figures(data: ReportData, folder: Path) -> list[Path]:
    """Writes NAME.png (200 dpi) and NAME.svg of every figure; the same data give the same bytes.

    Raises DataError where the folder can't be written.
    """
    files: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for plot in report_figures(data):
            png, svg = folder / f"{plot.name}.png", folder / f"{plot.name}.svg"
            plot.figure.savefig(png, dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
            with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
                plot.figure.savefig(svg, metadata={"Date": None, "Title": plot.title})
            files += [png, svg]
    except OSError as error:
        raise DataError(f"{folder}: can't write figures: {error.strerror or error}") from error
    return files


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
    shown = [(name, text) for name, text in lines if _known(evaluation, name)]
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
    turns = _turns(evaluation)
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
    shown = _evenly(sorted(selections, key=_spread), _MAX_PAIRS)
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


def _evaluation_figures(evaluation: Evaluation) -> list[Plot]:
    """The curves, and what each turn added."""
    with_intervals = f"Bars are {confidence(evaluation)} intervals."
    drawn: tuple[tuple[str, str, str, str, tuple[_Line, ...], bool, bool], ...] = (
        (
            "matched_minus_shuffled",
            "Matched minus shuffled",
            "What the dialogue tells about this person and not about another.",
            "matched \u2212 shuffled (nats)",
            (_Line("matched_minus_shuffled", "matched minus shuffled"),),
            False,
            True,
        ),
        (
            "gold_logprob",
            "Gold log-prob and its controls",
            "All under the frozen m0. Tasks and personas differ much, so levels are uncertain; "
            "changes are paired and their intervals, in the table, are narrower.",
            "gold log-prob (nats)",
            _GOLD_LINES,
            False,
            False,
        ),
        (
            "facts",
            "Facts elicited",
            "Facts about the person that questions brought out.",
            "facts per dialogue",
            (_Line("facts_per_dialogue", "facts per dialogue"),),
            False,
            False,
        ),
        ("questions", "Questions", "", "share", _SHARE_LINES, True, False),
        (
            "tokens",
            "The user's effort",
            "Tokens that the user reads and writes.",
            "tokens per dialogue",
            _TOKEN_LINES,
            False,
            False,
        ),
    )
    plots = []
    for name, title, says, label, lines, percent, zero in drawn:
        known = [(line.name, line.label) for line in lines if _known(evaluation, line.name)]
        if not known:
            continue
        figure = curve_figure(evaluation, known, label, percent=percent, zero=zero)
        caption = f"{says} {with_intervals}".strip()
        description = _in_words(evaluation, known, percent=percent)
        plots.append(Plot(name, "curves", title, caption, description, figure))
    if turns := _turns(evaluation):
        names = [(f"gain_at_turn_{turn}", f"turn {turn}") for turn in turns]
        plots.append(
            Plot(
                "turn_gain",
                "origin",
                "What each turn adds",
                f"Gold log-prob after a turn minus before it. {with_intervals}",
                _in_words(evaluation, names),
                turn_gain_figure(evaluation),
            )
        )
    return plots


def _selection_plot(data: ReportData, iteration: int) -> Plot:
    selections = [entry for entry in data.selections if entry.iteration == iteration]
    shown = f"{_MAX_PAIRS} of {len(selections)}" if len(selections) > _MAX_PAIRS else "All"
    kind = data.config.selection.type
    return Plot(
        f"selection-t{iteration}",
        "selection",
        f"Selection in iteration {iteration}",
        f"{shown} pairs; each column is one pair's dialogues ({kind} selection).",
        f"Scores of the dialogues of {len(selections)} pairs around each pair's mean, with the "
        "chosen dialogue marked.",
        selection_figure(selections),
    )


def _training_figures(data: ReportData) -> list[Plot]:
    ends = "; ".join(
        f"iteration {entry.number} from {entry.losses[0]:.3f} to {entry.losses[-1]:.3f}"
        for entry in data.iterations
        if entry.losses
    )
    return [
        Plot(
            "training_loss",
            "training",
            "Training loss",
            "Per loss token, one value per optimizer step; a cross is the validation loss.",
            f"Training loss: {ends}.",
            training_figure(data),
        ),
        Plot(
            "grad_norm",
            "training",
            "Gradient norm",
            "Before clipping.",
            "Gradient norm by optimizer step for each iteration.",
            training_figure(data, grad_norms=True),
        ),
    ]


def _known(evaluation: Evaluation, name: str) -> bool:
    return any(evaluation.measure(c, name) is not None for c in evaluation.checkpoints)


def _turns(evaluation: Evaluation) -> list[int]:
    """K of every gain_at_turn_K that was measured."""
    names = {name for measures in evaluation.measures.values() for name in measures}
    found = [n.removeprefix("gain_at_turn_") for n in names if n.startswith("gain_at_turn_")]
    return sorted(int(n) for n in found if n.isdigit() and _known(evaluation, f"gain_at_turn_{n}"))


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


def _in_words(
    evaluation: Evaluation, lines: Iterable[tuple[str, str]], *, percent: bool = False
) -> str:
    """Each line's means by checkpoint, for a screen reader."""
    write: Callable[[float], str] = (lambda v: f"{v:.0%}") if percent else (lambda v: f"{v:.2f}")
    parts = []
    for name, label in lines:
        means = [
            f"{checkpoint} {write(value.mean)}"
            for checkpoint in evaluation.checkpoints
            if (value := evaluation.measure(checkpoint, name)) and value.mean is not None
        ]
        parts.append(f"{label}: {', '.join(means)}")
    return "; ".join(parts) + "."
