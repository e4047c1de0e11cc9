"""The figures of a report, with titles, captions and what they show in words.

ReportData -> report_figures -> Plot (a matplotlib Figure with title and caption)
    -> save_figures   PNG and SVG files for a paper
    -> inline_svg     the same drawing inside the HTML page, in the page's colours
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stargate.errors import DataError
from stargate.evaluation.catalog import in_order, measure_info
from stargate.report.drawing import (
    DASHES,
    INK,
    MARKERS,
    SERIES,
    STYLE,
    WIDTH,
    Plot,
    canvas,
    points,
    zero_line,
)
from stargate.report.records import Evaluation, Iteration, ReportData, SelectionView
from stargate.report.wording import confidence

# Pairs that one selection figure shows: more columns can't be told apart on a phone.
_MAX_PAIRS = 40
_PNG_DPI = 200


@dataclass(frozen=True, slots=True)
class Curves:
    """Measures over the checkpoints in one figure. `label` is of the y axis; `zero` draws a line at
    0. `by_turn`: a measure per turn, over the turns.
    """

    name: str
    title: str
    caption: str
    label: str
    names: tuple[str, ...]
    percent: bool = False
    zero: bool = False
    by_turn: bool = False


_CURVES = (
    Curves(
        "matched_minus_shuffled",
        "Matched minus shuffled",
        "What the dialogue tells about this person and not about another.",
        "matched \u2212 shuffled (nats)",
        ("matched_minus_shuffled",),
        zero=True,
    ),
    Curves(
        "gold_logprob",
        "Gold log-prob and its controls",
        "All under the frozen m0. Tasks and personas differ much, so levels are uncertain; "
        "changes are paired and their intervals, in the table, are narrower.",
        "gold log-prob (nats)",
        (
            *("gold_logprob", "shuffled", "gold_logprob_best", "no_dialogue"),
            *("persona_given", "persona_and_dialogue"),
        ),
    ),
    Curves(
        "facts",
        "Facts elicited",
        "Facts about the person that questions brought out.",
        "facts per dialogue",
        ("facts_per_dialogue",),
    ),
    Curves(
        "questions",
        "Questions",
        "",
        "share",
        ("question_rate", "fact_coverage", "repeated_question_rate", "needless_question_rate"),
        percent=True,
    ),
    Curves(
        "diversity",
        "Diversity and fit of questions",
        "A questionnaire that is the same for every task has no coverage due to the task, few "
        "distinct questions and many generic ones.",
        "share",
        (
            *("task_gain", "distinct_question_rate", "generic_question_rate"),
            "answered_already_rate",
        ),
        percent=True,
        zero=True,
    ),
    Curves(
        "question_fit",
        "Fit of the first question",
        "How much likelier a checkpoint asks its question at this task than at others.",
        "nats per question",
        ("question_fit",),
        zero=True,
    ),
    Curves(
        "tokens",
        "The user's effort",
        "Tokens that the user reads and writes.",
        "tokens per dialogue",
        ("tokens_per_dialogue", "tokens_to_read", "tokens_to_write"),
    ),
)
_TURNS = Curves(
    "turn_gain",
    "What each turn adds",
    "Gold log-prob after a turn minus before it.",
    "added gold log-prob (nats)",
    (),  # turns differ between evaluations
    zero=True,
    by_turn=True,
)


def report_figures(data: ReportData) -> tuple[Plot, ...]:
    """Every figure for which the run has data, in the order of the report."""
    plots: list[Plot | None] = []
    if evaluation := data.main:
        plots += [curve_plot(evaluation, curves) for curves in _CURVES]
        known = (info.name for info in in_order(evaluation.names))
        of_turns = tuple(name for name in known if name.startswith("gain_at_turn_"))
        plots.append(curve_plot(evaluation, replace(_TURNS, names=of_turns)))
    for iteration in sorted({selection.iteration for selection in data.selections}):
        selections = [entry for entry in data.selections if entry.iteration == iteration]
        plots.append(selection_plot(iteration, selections, data.config.algorithm.label))
    if data.iterations:
        plots += _training_plots(data.iterations)
    if data.stages:
        plots.append(_stage_plot(data.stages))
    return tuple(plot for plot in plots if plot is not None)


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
            plot.save_svg(svg, Title=plot.title)
            files += [png, svg]
    except OSError as error:
        raise DataError(f"{folder}: can't write figures: {error.strerror or error}") from error
    return files


def curve_plot(evaluation: Evaluation, curves: Curves) -> Plot | None:
    """None where no checkpoint has any of the measures."""
    shown = {
        name: info.label
        for name in curves.names
        if (info := measure_info(name))
        and any(evaluation.measure(c, name) for c in evaluation.checkpoints)
    }
    if not shown:
        return None
    checkpoints = evaluation.checkpoints
    if curves.by_turn:
        # More than four checkpoints would crowd a turn.
        few = checkpoints if len(checkpoints) <= 4 else (checkpoints[0], checkpoints[-1])
        at = {name: int(name.rpartition("_")[2]) for name in shown}
        series = {c: [(at[name], evaluation.measure(c, name)) for name in shown] for c in few}
        ticks = {turn: str(turn) for turn in at.values()}
    else:
        ticks = dict(enumerate(checkpoints))
        series = {
            label: [(x, evaluation.measure(c, name)) for x, c in ticks.items()]
            for name, label in shown.items()
        }
    legend = len(series) if curves.by_turn or len(series) > 1 else 0
    with canvas(curves.label, series=legend, percent=curves.percent) as (figure, axes):
        points(axes, series, joined=not curves.by_turn)
        if curves.zero:
            zero_line(axes)
        axes.set_xticks(list(ticks), list(ticks.values()))
        margin = 0.5 if curves.by_turn else 0.4
        axes.set_xlim(min(ticks) - margin, max(ticks) + margin)
        axes.set_xlabel("turn" if curves.by_turn else "checkpoint")
    caption = f"{curves.caption} Bars are {confidence(evaluation)} intervals.".strip()
    section = "origin" if curves.by_turn else "curves"
    words = []  # each line's means by checkpoint, for a screen reader
    for name, label in shown.items():
        means = [
            f"{checkpoint} {value.mean:{'.0%' if curves.percent else '.2f'}}"
            for checkpoint in checkpoints
            if (value := evaluation.measure(checkpoint, name))
        ]
        words.append(f"{label}: {', '.join(means)}")
    return Plot(curves.name, section, curves.title, caption, f"{'; '.join(words)}.", figure)


def selection_plot(iteration: int, selections: Sequence[SelectionView], rule: str) -> Plot:
    """The scores of each pair's N dialogues around their mean, the chosen one marked."""
    shown = sorted(selections, key=lambda s: (s.chosen_score - s.mean_score, s.pair_id))
    if len(shown) > _MAX_PAIRS:  # evenly from all over the list
        shown = [shown[i * (len(shown) - 1) // (_MAX_PAIRS - 1)] for i in range(_MAX_PAIRS)]
    others: list[tuple[int, float]] = []
    chosen: list[tuple[int, float]] = []
    for column, selection in enumerate(shown):
        for candidate, score in zip(selection.candidates, selection.scores, strict=True):
            point = (column, score - selection.mean_score)
            (chosen if candidate == selection.chosen else others).append(point)
    with canvas("score minus pair's mean (nats)", series=2) as (figure, axes):
        zero_line(axes)
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
    number = len(selections)
    counted = f"{_MAX_PAIRS} of {number}" if number > _MAX_PAIRS else "All"
    return Plot(
        f"selection-t{iteration}",
        "selection",
        f"Selection in iteration {iteration}",
        f"{counted} pairs; each column is one pair's dialogues ({rule} selection).",
        f"Scores of the dialogues of {number} pairs around each pair's mean, with the chosen "
        "dialogue marked.",
        figure,
    )


def _training_plots(iterations: Sequence[Iteration]) -> list[Plot]:
    ends = "; ".join(
        f"iteration {entry.number} from {entry.losses[0]:.3f} to {entry.losses[-1]:.3f}"
        for entry in iterations
        if entry.losses
    )
    return [
        Plot(
            "training_loss",
            "training",
            "Training loss",
            "Per loss token, one value per optimizer step; a cross is the validation loss.",
            f"Training loss: {ends}.",
            _steps_figure(
                "loss (nats per token)",
                [(one.number, one.losses, one.validation_loss) for one in iterations],
            ),
        ),
        Plot(
            "grad_norm",
            "training",
            "Gradient norm",
            "Before clipping.",
            "Gradient norm by optimizer step for each iteration.",
            _steps_figure("gradient norm", [(i.number, i.grad_norms, None) for i in iterations]),
        ),
    ]


def _steps_figure(label: str, lines: Sequence[tuple[int, Sequence[float], float | None]]) -> Figure:
    """Values by optimizer step, a line per iteration; a cross at its end where one is given."""
    with canvas(label, series=len(lines)) as (figure, axes):
        for place, (number, values, end) in enumerate(lines):
            colour = SERIES[place % len(SERIES)]
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=colour,
                linestyle=DASHES[place % len(DASHES)],
                # One step has no line to be seen.
                marker=MARKERS[place % len(MARKERS)] if len(values) < 2 else "",
                label=f"iteration {number} (m{number + 1})",
            )
            if end is not None:
                axes.plot([len(values)], [end], marker="x", color=colour)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.set_xlabel("optimizer step")
    return figure


def _stage_plot(stages: Mapping[str, float]) -> Plot:
    """Wall time by stage as bars, in the order of the run."""
    names, seconds = list(stages), list(stages.values())
    in_minutes = max(seconds) >= 600
    values = [value / 60 if in_minutes else value for value in seconds]
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(WIDTH, 0.7 + 0.22 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh(range(len(names)), values, color=SERIES[0], height=0.7)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8, color=INK)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.14, y=0.02)
        axes.set_xlabel("minutes" if in_minutes else "seconds")
    text = "; ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items())
    return Plot(
        "stages",
        "time",
        "Wall time by stage",
        "Stages that run side by side overlap, so the bars need not add up to the run.",
        f"Seconds by stage: {text}.",
        figure,
    )
