"""The report as one list of sections; page.py and text.py show it, each in its way."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from stargate.config.files import dump_config
from stargate.monitoring.tracking import leaves
from stargate.report.breakdown import Choice, SelectionGain, compare_selections, selection_gains
from stargate.report.drawing import Plot
from stargate.report.evaluated import (
    example_section,
    measures_section,
    opening_section,
    origin_section,
    other_sections,
    where_section,
)
from stargate.report.findings import HEADLINE, answer
from stargate.report.judge import judge_section
from stargate.report.parts import Cell, Column, Part, Row, Section, Table, Wrapped
from stargate.report.records import Iteration, ReportData, Throughput
from stargate.report.references import reference_section
from stargate.report.wording import DASH, format_value


def report_sections(data: ReportData, plots: Sequence[Plot] = ()) -> list[Section]:
    """All for which the run has something to show. Figures are for the page alone."""
    main, found = data.main, answer(data, data.main)
    drawn: dict[str, list[Plot]] = {}
    for plot in plots:
        drawn.setdefault(plot.section, []).append(plot)
    curves = [Part("figures", drawn["curves"])] if "curves" in drawn else []
    measured = main.measure(main.last, HEADLINE) if main else None
    kinds = measured.kinds if measured else "tasks and personas"
    lede = f"m\u2080 is the model before training; bars are 95 % intervals over {kinds}."
    sections = [
        opening_section(data, found),
        *([reference_section(main)] if main else []),
        Section("curves", "Over the checkpoints", curves, lede=lede),
    ]
    origin = origin_section(found, drawn.get("origin", ()))
    if main is None:
        sections.append(origin)
    else:
        said, others = other_sections(data, main)
        sections.append(measures_section(main))
        if main.judge:
            sections.append(judge_section(main, main.judge))
        sections += [
            origin,
            *said,
            where_section(data, main),
            *others,
            example_section(data, main),
        ]
    sections += [
        _selection_section(data, drawn.get("selection", ())),
        _training_section(data.iterations, drawn.get("training", ())),
    ]
    if data.dialogues:
        left_out = data.num_dialogues_left_out
        text = f"{left_out:,} training dialogues are left out here." if left_out else ""
        sections.append(
            Section("browser", "The dialogues", [Part("browser", text)], link="Dialogues")
        )
    sections.append(_run_section(data))
    return [section for section in sections if section.parts]


def _selection_section(data: ReportData, plots: Sequence[Plot]) -> Section:
    gains, compared = selection_gains(data), compare_selections(data)
    if not gains:
        return Section("selection", "", [])
    rule = data.config.algorithm.label
    parts = [
        Part("figures", plots),
        Part("table", _gains_table(gains)),
        Part(
            "lines",
            [
                f"  iteration {gain.iteration}: {gain.num_pairs} pairs, the chosen dialogue scores "
                f"{format_value(gain.gain, 'nats', signed=True)} nats above its pair's mean"
                for gain in gains
            ],
            heading=f"Selection ({rule})",
        ),
    ]
    if compared is not None:
        agreed = format_value(compared.agreement, "share")
        parts += [
            Part(
                "paragraph",
                f"What each rule would choose from the same rollouts, over {compared.num_pairs} "
                f"pairs. They agree on {agreed} of them.",
                title="Gold or contrastive?",
            ),
            Part(
                "lines",
                [
                    Wrapped(
                        "On the same rollouts, gold and contrastive selection choose the same "
                        f"dialogue in {agreed} of {compared.num_pairs} pairs:",
                        "  ",
                    )
                ],
            ),
            Part("table", _choices_table(compared.choices)),
        ]
    lede = (
        f"Of each pair\u2019s {data.config.rollout.num_dialogues} dialogues one is trained on, "
        f"chosen by {rule} score. The browser below shows all candidates of a pair, with the "
        "chosen one marked \u2605."
    )
    return Section("selection", "Selection", parts, lede=lede)


def _gains_table(gains: Sequence[SelectionGain]) -> Table:
    heads = ("pairs", "mean of all", "chosen", "choosing added, nats")
    rows = []
    for gain in gains:
        cells = (
            Cell(str(gain.num_pairs)),
            Cell(format_value(gain.mean_score, "nats")),
            Cell(format_value(gain.chosen_score, "nats")),
            Cell(format_value(gain.gain, "nats", signed=True)),
        )
        rows.append(Row(f"t{gain.iteration}, played by m{gain.iteration}", cells))
    return Table("iteration", [Column(head) for head in heads], rows)


def _choices_table(choices: Sequence[Choice]) -> Table:
    columns = {
        "gold log-prob": "gold",
        "minus others\u2019 golds": "contrast",
        "facts": "facts",
        "coverage": "coverage",
        "questions": "questions",
    }
    rows = []
    for choice in choices:
        contrast = format_value(choice.contrast, "nats")
        cells = (
            Cell(format_value(choice.gold_logprob, "nats")),
            Cell(format_value(choice.contrast, "nats", signed=True), brief=(contrast, "")),
            Cell(format_value(choice.facts, "count")),
            Cell(format_value(choice.coverage, "share")),
            Cell(format_value(choice.question_rate, "share")),
        )
        rows.append(Row(choice.rule, cells))
    heads = [Column(title, 12, brief) for title, brief in columns.items()]
    return Table("the dialogues chosen by", heads, rows, label_width=16)


def _training_section(iterations: Sequence[Iteration], plots: Sequence[Plot]) -> Section:
    if not iterations:
        return Section("training", "", [])
    heads = ("examples", "steps", "first loss", "last loss", "validation", "training")
    columns = [Column(head) for head in (*heads, "weight push")]
    lines, rows = [], []
    for entry in iterations:
        name, steps = f"m{entry.number + 1}", len(entry.losses)
        first, last = (entry.losses[0], entry.losses[-1]) if entry.losses else (None, None)
        ends = "no step" if first is None else f"loss {first:.3f} -> {last:.3f}"
        if entry.validation_loss is not None:
            ends += f", validation {entry.validation_loss:.3f}"
        if entry.engine_gap_mean:
            mean, most = fmean(entry.engine_gap_mean), max(entry.engine_gap_max)
            ends += f", engine's log-probs off by {mean:.4f} nats (at most {most:.3f})"
        if entry.push_seconds is not None:
            ends += f", weight push {entry.push_seconds:.2f} s"
        lines.append(
            f"  iteration {entry.number} ({name}): {entry.num_examples} examples, {steps} steps, "
            f"{ends}"
        )
        texts = (
            f"{entry.num_examples:,}",
            str(steps),
            *(format_value(v, "nats_per_token") for v in (first, last, entry.validation_loss)),
            duration(entry.train_seconds),
            duration(entry.push_seconds),
        )
        rows.append(Row(f"t{entry.number} makes {name}", [Cell(text) for text in texts]))
    parts = [
        Part("figures", plots),
        Part("table", Table("iteration", columns, rows)),
        Part("lines", lines, heading="Training"),
    ]
    lede = (
        "Every m\u209c\u208a\u2081 is trained on the dialogues that m\u209c played and selection "
        "chose. Losses are means per loss token, in nats."
    )
    return Section("training", "Training", parts, lede=lede, link="Training")


def _run_section(data: ReportData) -> Section:
    title = "Time and throughput"
    times = [Part("amounts", _amounts(data.throughput), title="" if data.stages else title)]
    if data.stages:
        longest = max(data.stages.values()) or 1.0
        rows = [
            Row(name, [_seconds_cell(seconds)], meter=100 * seconds / longest)
            for name, seconds in data.stages.items()
        ]
        if data.throughput.seconds is not None:
            rows.append(Row("whole run", [_seconds_cell(data.throughput.seconds)], tone="total"))
        label = "stage (stages that run side by side overlap)"
        stages = Table(label, [Column("wall time", 11)], rows, style="stages", bare=True)
        table = Part("table", stages, title=title, heading="Wall time by stage")
        times = [table, Part("lines", [*_speed_lines(data.throughput)]), *times]
    machine = Part("amounts", [*_environment(data)], title="Machine and versions")
    config = Part("pre", dump_config(data.config))
    parts = [
        Part("beside", (times, [*_drops(data), machine])),
        Part("fold", ("Settings (config.yaml, every key)", [config])),
    ]
    return Section("run", "The run", parts, link="Run")


def _seconds_cell(seconds: float) -> Cell:
    return Cell(duration(seconds), brief=(f"{seconds:.1f} s", ""))


def _speed_lines(speed: Throughput) -> Iterator[str]:
    if speed.generated_tokens_per_s is not None:
        yield (
            f"  rollouts: {speed.num_dialogues} dialogues, {speed.generated_tokens} tokens, "
            f"{speed.generated_tokens_per_s:.1f} tokens/s"
        )
    if speed.train_tokens_per_s is not None:
        yield f"  training: {speed.train_tokens_per_s:.1f} tokens/s"
    if speed.peak_rss_gb is not None:
        yield f"  peak memory of all processes: {speed.peak_rss_gb:.1f} GiB"
    if speed.api_calls is not None:
        yield f"  the Roleplayer's API: {speed.api_calls} calls, cost {speed.api_cost:.6g}"


def _amounts(speed: Throughput) -> list[tuple[str, str]]:
    """What is known of it, in words."""
    push = None if speed.push_seconds is None else duration(speed.push_seconds)
    entries = {
        "rollout dialogues": (speed.num_dialogues, "{:,}"),
        "generated tokens": (speed.generated_tokens, "{:,}"),
        "generation": (speed.generated_tokens_per_s, "{:,.0f} tokens/s"),
        "training": (speed.train_tokens_per_s, "{:,.0f} tokens/s"),
        "training examples, last iteration": (speed.train_examples, "{:,}"),
        "optimizer steps, last iteration": (speed.train_steps, "{:,}"),
        "weight push": (push, "{}"),
        "engines pushed to": (speed.num_engines, "{:,}"),
        "peak memory": (speed.peak_rss_gb, "{:.1f} GiB"),
        "calls of the Roleplayer's API": (speed.api_calls, "{:,}"),
        "cost of the Roleplayer's API": (speed.api_cost, "{:.6g}"),
    }
    return [
        (name, text.format(value)) for name, (value, text) in entries.items() if value is not None
    ]


def _drops(data: ReportData) -> Iterator[Part]:
    """A table by reason and place, and the same as lines."""
    drops, title = data.drops, "Dropped records"
    lines: list[str | Wrapped] = []
    for reason, count in drops.counts.items():
        lines.append(f"  {count} {reason}")
        lines += [Wrapped(example, "    ") for example in drops.examples.get(reason, ())]
    if not lines:
        lines.append("  none" if data.stages else "  not known")
    rows = [
        Row(reason, [Cell(str(n))], note=f"({where})", examples=drops.examples.get(reason, ()))
        for where, counts in (("data", drops.data), ("run", drops.run))
        for reason, n in counts.items()
    ]
    known = data.throughput.seconds is not None
    none = "None." if known else "Not known: the run has no summary."
    if drops.total:
        yield Part("table", Table("reason", [Column("records")], rows), title=title)
    else:
        yield Part("paragraph", none, title=title)
    yield Part("lines", lines, heading=title)


def _environment(data: ReportData) -> Iterator[tuple[str, str]]:
    """Nested values as "machine cpu: ..." lines."""
    for key, value in leaves(data.environment):
        name = key.replace("_", " ").replace(".", " ")
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield name, DASH if value is None else text or DASH


def duration(seconds: float | None) -> str:
    """Two parts at most: "2 h 05 min", "3 min 20 s", "4.5 s"."""
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
