"""The figures of a report, with titles, captions and what they show in words.

ReportData -> report_figures -> Plot (a matplotlib Figure of figures.py with title and caption)
    -> save_figures   PNG and SVG files for a paper
    -> svg.inline_svg the same drawing inside the HTML page, in the page's colours
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from stargate.errors import DataError
from stargate.report.figures import (
    MAX_PAIRS,
    curve_figure,
    is_known,
    selection_figure,
    stage_figure,
    training_figure,
    turn_gain_figure,
    turns_of,
)
from stargate.report.findings import main_evaluation
from stargate.report.records import Evaluation, ReportData
from stargate.report.wording import confidence

_PNG_DPI = 200


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
        known = [(line.name, line.label) for line in lines if is_known(evaluation, line.name)]
        if not known:
            continue
        figure = curve_figure(evaluation, known, label, percent=percent, zero=zero)
        caption = f"{says} {with_intervals}".strip()
        description = _in_words(evaluation, known, percent=percent)
        plots.append(Plot(name, "curves", title, caption, description, figure))
    if turns := turns_of(evaluation):
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
    shown = f"{MAX_PAIRS} of {len(selections)}" if len(selections) > MAX_PAIRS else "All"
    kind = data.config.algorithm.selection
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
