"""The report for a terminal: the same content as the HTML file, 100 columns, plain text.

Every line goes through `safe_text`: what a model wrote can't move the cursor or change colours.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from stargate.monitoring.progress import safe_text
from stargate.report.breakdown import (
    BreakdownRow,
    Shift,
    breakdown,
    compare_selections,
    selection_gains,
)
from stargate.report.findings import Answer, answer, main_evaluation
from stargate.report.measures import Unit, format_interval, format_value, in_order
from stargate.report.records import DialogueView, Evaluation, Judge, ReportData
from stargate.report.wording import Level, confidence

WIDTH = 100
_LABEL = 44  # columns of the measures' first cell: the longest label and its indentation
_CELL = 9
_BREAKDOWN_LABEL = 40
# Rows per breakdown: the largest gains and the largest losses; the HTML file has all.
_BREAKDOWN_ROWS = 12
_MARKS: dict[Level, str] = {"good": "+", "bad": "!", "even": "=", "warn": "!", "plain": "-"}


def render_text(data: ReportData) -> str:
    """The whole summary, ending with a newline."""
    evaluation = main_evaluation(data)
    lines = [*_answer_lines(data, answer(data, evaluation))]
    if evaluation is not None:
        lines += _measure_lines(evaluation)
        lines += _judge_lines(evaluation.judge)
        lines += _other_lines(data, evaluation)
        lines += _breakdown_lines(data, evaluation)
        lines += _example_lines(data, evaluation)
    lines += _selection_lines(data)
    lines += _training_lines(data)
    lines += _machine_lines(data)
    lines += _drop_lines(data)
    return "\n".join(safe_text(line).rstrip() for line in lines) + "\n"


def _answer_lines(data: ReportData, found: Answer) -> Iterator[str]:
    yield f"{data.name}: {data.status}"
    yield ""
    yield from _wrapped(found.headline)
    if found.sentences:
        yield ""
    for sentence in (*found.sentences, *found.origins):
        yield from _wrapped(sentence.text, f"{_MARKS[sentence.level]} ")
    if found.caveats:
        yield from _heading("Caveats")
        for sentence in found.caveats:
            yield from _wrapped(sentence.text, f"{_MARKS[sentence.level]} ")


def _measure_lines(evaluation: Evaluation) -> Iterator[str]:
    """Means by checkpoint, and the last one's change with its interval."""
    # Four columns fit beside the change; of more checkpoints the first and the last are shown.
    known = evaluation.checkpoints
    shown = known if len(known) <= 3 else (known[0], *known[-2:])
    compared = f"{evaluation.last} \u2212 {evaluation.first}" if len(known) > 1 else ""
    about = evaluation.about
    yield from _heading(
        f"Measures on {evaluation.name} (change with its {confidence(evaluation)} interval)"
    )
    if about.num_dialogues is not None:
        of_pair = f"{about.num_dialogues} dialogues of {about.num_turns} turns per pair"
        yield f"data {about.data}, split {about.split}, {of_pair}"
    yield f"{'':{_LABEL}}" + "".join(f"{name:>{_CELL}}" for name in (*shown, compared))
    names = {name for measures in evaluation.measures.values() for name in measures}
    group = ""
    for info in in_order(names):
        if info.group != group:
            group = info.group
            yield group
        cells = [
            format_value(value.mean if value else None, info.unit)
            for value in (evaluation.measure(checkpoint, info.name) for checkpoint in shown)
        ]
        line = f"  {info.label:{_LABEL - 2}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)
        change = evaluation.change(evaluation.last, info.name)
        if change is not None:
            difference = change.difference
            line += f"{format_value(difference.mean, info.unit, signed=True):>{_CELL}}"
            interval = format_interval(
                difference.ci_low, difference.ci_high, info.unit, signed=True
            )
            line += f"  {interval}"
        yield line


def _judge_lines(judge: Judge | None) -> Iterator[str]:
    if judge is None:
        return
    yield from _heading("Judge" + (f" {judge.model}" if judge.model else ""))
    yield from _wrapped(judge.verdict)
    for criterion in judge.criteria:
        value = "-" if criterion.value is None else f"{criterion.value:.2f}"
        passed = "passed" if criterion.passed else "FAILED"
        yield (
            f"  {criterion.name:{_LABEL - 2}}{value:>{_CELL}}  {passed}, must be "
            f"{criterion.requirement} (n = {criterion.n})"
        )


def _other_lines(data: ReportData, main: Evaluation) -> Iterator[str]:
    """One paragraph per further evaluation."""
    for evaluation in data.evaluations:
        if evaluation is main or not evaluation.measures:
            continue
        found = answer(data, evaluation)
        yield from _heading(f"Evaluation {evaluation.name}")
        user = evaluation.about.roleplayer
        if user is not None:
            details = ", ".join(filter(None, (user.prompts, user.grounding)))
            yield from _wrapped(
                f"data {evaluation.about.data}; Roleplayer {user.model} ({details})"
            )
        yield from _wrapped(found.headline)
        for sentence in found.sentences:
            yield from _wrapped(sentence.text, f"{_MARKS[sentence.level]} ")


def _breakdown_lines(data: ReportData, evaluation: Evaluation) -> Iterator[str]:
    for title, rows in (
        ("By task", breakdown(data, evaluation, "task")),
        ("By persona", breakdown(data, evaluation, "persona")),
    ):
        if not rows:
            continue
        yield from _heading(f"{title}: matched minus shuffled (nats), facts elicited")
        first, last = evaluation.first or "", evaluation.last or ""
        names = (first, last, "change") if first != last else (first,)
        yield f"{'':{_BREAKDOWN_LABEL}}{'pairs':>6}" + "".join(
            f"{name:>9}" for _ in range(2) for name in names
        )
        for row in _ends(rows):
            yield row if isinstance(row, str) else _breakdown_line(row, len(names))


def _breakdown_line(row: BreakdownRow, num_cells: int) -> str:
    shifts: tuple[tuple[Shift, Unit], ...] = (
        (row.matched_minus_shuffled, "nats"),
        (row.facts, "count"),
    )
    cells = [
        format_value(value, unit, signed=place == 2)
        for shift, unit in shifts
        for place, value in enumerate((shift.before, shift.after, shift.change)[:num_cells])
    ]
    label = _cut(row.label, _BREAKDOWN_LABEL - 2)
    line = f"  {label:{_BREAKDOWN_LABEL - 2}}{row.num_pairs:>6}"
    return line + "".join(f"{cell:>9}" for cell in cells)


def _ends(rows: Sequence[BreakdownRow]) -> list[BreakdownRow | str]:
    if len(rows) <= _BREAKDOWN_ROWS:
        return list(rows)
    half = _BREAKDOWN_ROWS // 2
    middle = f"  ... {len(rows) - 2 * half} between ..."
    return [*rows[:half], middle, *rows[-half:]]


def _example_lines(data: ReportData, evaluation: Evaluation) -> Iterator[str]:
    """The dialogue with the median change, before and after: neither the best nor the worst."""
    scored: dict[str | None, dict[tuple[str, int], DialogueView]] = {}
    for dialogue in data.dialogues:
        if dialogue.source == evaluation.source and dialogue.matched_minus_shuffled is not None:
            key = dialogue.pair_id, dialogue.index
            scored.setdefault(dialogue.checkpoint, {})[key] = dialogue
    before, after = scored.get(evaluation.first, {}), scored.get(evaluation.last, {})
    changes = sorted(
        ((after[key].matched_minus_shuffled or 0.0) - (d.matched_minus_shuffled or 0.0), key)
        for key, d in before.items()
        if key in after
    )
    if not changes or evaluation.first == evaluation.last:
        return
    _, key = changes[len(changes) // 2]
    texts = data.texts[evaluation.source]
    yield from _heading("The dialogue with the median change of matched minus shuffled")
    for dialogue in (before[key], after[key]):
        task, persona = texts.tasks[dialogue.task_id], texts.personas[dialogue.persona_id]
        score = format_value(dialogue.matched_minus_shuffled, "nats", signed=True)
        yield from _wrapped(f"{dialogue.checkpoint}, {persona.name}: {task.text} ({score} nats)")
        for turn in dialogue.turns:
            gain = "" if turn.gain is None else f" [{turn.gain:+.1f} nats]"
            facts = f" (facts {', '.join(map(str, turn.elicited))})" if turn.elicited else ""
            yield from _wrapped(f"Questioner: {turn.question}{gain}", "  ")
            yield from _wrapped(f"Roleplayer: {turn.answer}{facts}", "  ")


def _selection_lines(data: ReportData) -> Iterator[str]:
    gains = selection_gains(data)
    if not gains:
        return
    yield from _heading(f"Selection ({data.config.algorithm.selection})")
    for gain in gains:
        yield (
            f"  iteration {gain.iteration}: {gain.num_pairs} pairs, the chosen dialogue scores "
            f"{format_value(gain.gain, 'nats', signed=True)} nats above its pair's mean"
        )
    compared = compare_selections(data)
    if compared is None:
        return
    yield from _wrapped(
        f"On the same rollouts, gold and contrastive selection choose the same dialogue in "
        f"{format_value(compared.agreement, 'share')} of {compared.num_pairs} pairs:",
        "  ",
    )
    columns = ("gold", "contrast", "facts", "coverage", "questions")
    yield f"  {'':14}" + "".join(f"{name:>12}" for name in columns)
    for choice in compared.choices:
        cells = (
            format_value(choice.gold_logprob, "nats"),
            format_value(choice.contrast, "nats"),
            format_value(choice.facts, "count"),
            format_value(choice.coverage, "share"),
            format_value(choice.question_rate, "share"),
        )
        yield f"  {choice.rule:14}" + "".join(f"{cell:>12}" for cell in cells)


def _training_lines(data: ReportData) -> Iterator[str]:
    if not data.iterations:
        return
    yield from _heading("Training")
    for entry in data.iterations:
        ends = (
            f"loss {entry.losses[0]:.3f} -> {entry.losses[-1]:.3f}" if entry.losses else "no step"
        )
        validation = (
            "" if entry.validation_loss is None else f", validation {entry.validation_loss:.3f}"
        )
        push = "" if entry.push_seconds is None else f", weight push {entry.push_seconds:.2f} s"
        yield (
            f"  iteration {entry.number} (m{entry.number + 1}): {entry.num_examples} examples, "
            f"{len(entry.losses)} steps, {ends}{validation}{push}"
        )


def _machine_lines(data: ReportData) -> Iterator[str]:
    """Wall time by stage, and how fast things went."""
    if not data.stages:
        return
    yield from _heading("Wall time by stage")
    for name, seconds in data.stages.items():
        yield f"  {name:{_LABEL - 2}}{seconds:>{_CELL}.1f} s"
    if data.seconds is not None:
        yield f"  {'whole run':{_LABEL - 2}}{data.seconds:>{_CELL}.1f} s"
    speed = data.throughput
    if speed.generated_tokens_per_s is not None:
        yield (
            f"  rollouts: {speed.num_dialogues} dialogues, {speed.generated_tokens} tokens, "
            f"{speed.generated_tokens_per_s:.1f} tokens/s"
        )
    if speed.train_tokens_per_s is not None:
        yield f"  training: {speed.train_tokens_per_s:.1f} tokens/s"
    if speed.peak_rss_gb is not None:
        yield f"  peak memory of all processes: {speed.peak_rss_gb:.1f} GiB"


def _drop_lines(data: ReportData) -> Iterator[str]:
    yield from _heading("Dropped records")
    counts = {**data.drops.data, **data.drops.run}
    if not counts:
        yield "  none" if data.stages else "  not known"
        return
    for reason, count in counts.items():
        yield f"  {count} {reason}"
        for example in data.drops.examples.get(reason, ()):
            yield from _wrapped(example, "    ")


def _heading(text: str) -> Iterable[str]:
    return "", text, "-" * min(len(text), WIDTH)


def _wrapped(text: str, mark: str = "") -> list[str]:
    """Lines of at most WIDTH columns; those after the first stand under the text, not the mark."""
    # Escaped first: an escape takes more columns than the character that it stands for. A number
    # and its percent sign stay on one line.
    clean = safe_text(" ".join(text.split())).replace(" %", "\u00a0%")
    lines = textwrap.wrap(
        clean,
        WIDTH,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_on_hyphens=False,
    )
    return [line.replace("\u00a0%", " %") for line in lines] or [mark]


def _cut(text: str, width: int) -> str:
    clean = safe_text(" ".join(text.split()))
    return clean if len(clean) <= width else clean[: width - 1] + "\u2026"
