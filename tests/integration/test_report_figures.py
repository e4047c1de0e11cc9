"""The figures: which there are, what they draw, and their SVG inside a page."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from stargate.errors import DataError
from stargate.report.data import load_report
from stargate.report.drawing import SERIES, Plot
from stargate.report.figures import (
    Curves,
    curve_plot,
    report_figures,
    save_figures,
    selection_plot,
)
from stargate.report.records import Evaluation, ReportData, SelectionView
from tests.fakes.report_run import build_halted_run

pytestmark = pytest.mark.integration

SVG = "{http://www.w3.org/2000/svg}"


def plot_of(data: ReportData, name: str) -> Plot:
    [plot] = [plot for plot in report_figures(data) if plot.name == name]
    return plot


def drawn(data: ReportData, name: str) -> Figure:
    return plot_of(data, name).figure


def curves(evaluation: Evaluation, *names: str, zero: bool = False) -> Figure:
    plot = curve_plot(evaluation, Curves("name", "Title", "", "nats", names, zero=zero))
    assert plot is not None
    return plot.figure


def points(figure: Figure) -> list[list[float]]:
    """The y values of every line with a marker, in the order of drawing."""
    [axes] = figure.axes
    return [
        [round(float(y), 6) for y in line.get_ydata()]  # type: ignore[union-attr]
        for line in axes.lines
        if line.get_marker() in ("o", "s", "^", "D", "v", "P", "x")
    ]


def test_every_figure_is_there_in_the_order_of_the_report(data: ReportData) -> None:
    assert [(plot.name, plot.section) for plot in report_figures(data)] == [
        ("matched_minus_shuffled", "curves"),
        ("gold_logprob", "curves"),
        ("facts", "curves"),
        ("questions", "curves"),
        ("diversity", "curves"),
        ("question_fit", "curves"),
        ("tokens", "curves"),
        ("turn_gain", "origin"),
        ("selection-t0", "selection"),
        ("selection-t1", "selection"),
        ("training_loss", "training"),
        ("grad_norm", "training"),
        ("stages", "time"),
    ]


def test_a_halted_run_has_no_figure_but_no_error(tmp_path: Path) -> None:
    assert report_figures(load_report(build_halted_run(tmp_path))) == ()


def test_curves_show_means_and_intervals(data: ReportData) -> None:
    assert data.main is not None
    figure = curves(data.main, "matched_minus_shuffled", "shuffled", "unknown", zero=True)
    assert points(figure) == [[1.25, 2.25, 3.25], [-104.75, -103.75, -102.75]]
    [axes] = figure.axes
    bars = axes.collections[0].get_segments()  # type: ignore[attr-defined]
    ends = [[round(float(y), 6) for y in bar[:, 1]] for bar in bars]
    assert ends == [[0.75, 1.75], [1.75, 2.75], [2.75, 3.75]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["m0", "m1", "m2"]


def test_a_mean_without_an_interval_is_a_point(data: ReportData) -> None:
    assert data.main is not None
    value = data.main.measures["m1"]["facts_per_dialogue"]
    bare = replace(value, ci_low=None, ci_high=None)
    own = replace(data.main, measures={"m0": {}, "m1": {"facts_per_dialogue": bare}, "m2": {}})
    assert points(curves(own, "facts_per_dialogue")) == [[1.25]]


def test_turn_gains_are_by_checkpoint(data: ReportData) -> None:
    assert points(drawn(data, "turn_gain")) == [[3.0, 1.0], [4.0, 2.0], [5.0, 3.0]]


def selection(pair_id: str, chosen: str, **scores: float) -> SelectionView:
    nothing = (None,) * len(scores)
    return SelectionView(0, pair_id, chosen, (*scores,), (*scores.values(),), nothing, nothing)


def test_selection_marks_the_chosen_around_the_mean() -> None:
    two = [selection("p", "b", a=-5.0, b=-2.0, c=-5.0), selection("q", "d", d=-1.0, e=-3.0)]
    others, chosen = points(selection_plot(0, two, "gold").figure)
    # Pair q leads by 1 and stands first, pair p by 2.
    assert others == [-1.0, -1.0, -1.0]
    assert chosen == [1.0, 2.0]


def test_many_pairs_are_thinned_out() -> None:
    many = [selection(f"p{n}", "a", a=float(n), b=0.0) for n in range(100)]
    others, chosen = points(selection_plot(0, many, "gold").figure)
    assert (len(others), len(chosen)) == (40, 40)
    assert (chosen[0], chosen[-1]) == (0.0, 49.5)


def test_training_shows_every_step_and_the_validation_loss(data: ReportData) -> None:
    [axes] = drawn(data, "training_loss").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [  # type: ignore[arg-type]
        [3.0, 2.5],
        [2.0, 1.5],
        [2.25],
    ]


def test_one_training_step_is_a_point(data: ReportData) -> None:
    iteration = replace(data.iterations[0], losses=(3.0,))
    assert points(drawn(replace(data, iterations=(iteration,)), "training_loss")) == [[3.0]]


def test_stages_are_in_minutes_when_long(data: ReportData) -> None:
    figure = drawn(replace(data, stages={"rollout": 1200.0, "push": 60.0}), "stages")
    [axes] = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [20.0, 1.0]  # type: ignore[attr-defined]
    assert axes.get_xlabel() == "minutes"


def test_svg_fits_the_page(data: ReportData) -> None:
    plots = report_figures(data)
    texts = [plot.inline_svg() for plot in plots]
    seen: set[str] = set()
    for plot, text in zip(plots, texts, strict=True):
        root = ElementTree.fromstring(text)
        assert root.get("viewBox") and root.get("width") is None and root.get("height") is None
        assert root.get("role") == "img"
        title, description = root[0], root[1]
        assert (title.tag, title.text) == (f"{SVG}title", plot.title)
        assert description.text == plot.description
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        ids = {element.get("id") for element in root.iter()} - {None}
        assert not ids & seen
        seen |= {str(key) for key in ids}
        used = re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text)
        assert used and set(used) <= ids
        assert not list(root.iter(f"{SVG}style")), "a style sheet would reach the whole page"
        # No fixed colour is left outside the fallbacks of variables.
        bare = re.sub(r"var\(--[\w-]+, light-dark\([^)]*\)\)", "", text)
        assert not re.search(r"#[0-9a-f]{6}", bare)
        assert "currentColor" in text and "font-family" not in text


def test_svg_texts_are_text_and_the_same_every_time(data: ReportData) -> None:
    first, again = (report_figures(data)[0].inline_svg() for _ in range(2))
    assert first == again
    texts = [element.text for element in ElementTree.fromstring(first).iter(f"{SVG}text")]
    assert {"m0", "m1", "m2", "checkpoint"} <= set(texts)
    assert f"light-dark({SERIES[0]}" in first


def test_names_that_look_like_markup_or_formulas_stay_text(data: ReportData) -> None:
    odd = "<script>$x^</script>"
    text = plot_of(replace(data, stages={odd: 3.0, "push": 1.0}), "stages").inline_svg()
    assert "<script" not in text
    texts = [element.text for element in ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert odd in texts


def test_saved_figures_are_png_and_svg_and_repeatable(data: ReportData, tmp_path: Path) -> None:
    small = replace(data, evaluations=(), selections=(), iterations=())
    files = save_figures(small, tmp_path / "a")
    assert [file.name for file in files] == ["stages.png", "stages.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    again = save_figures(small, tmp_path / "b")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]


def test_a_folder_that_cannot_be_written_is_one_clear_error(
    data: ReportData, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't write figures"):
        save_figures(data, tmp_path / "file" / "figures")
