"""Reasons to doubt the answer, found by rules from a run's own records.

Each rule looks for one thing that would make the numbers say less than they seem to. `bad` ones
take a result away (an unfit judge), `warn` ones weaken it, `plain` ones a reader must know.
"""

from collections.abc import Callable

from stargate.report.overlaps import overlaps
from stargate.report.records import Evaluation, ReportData
from stargate.report.wording import Level, Numbers, Sentence, confidence

# Coverage of the intervals was measured from 8 personas up (evaluation/statistics.py); below, they
# are too narrow for some data, and with fewer than 5 of either kind no bootstrap is made at all.
_FEW_CLUSTERS = 8
_TOO_FEW_CLUSTERS = 5
# One answer in twenty that recites the profile: a Questioner can learn to fish for that.
_MUCH_RECITAL = 0.05


def caveats(data: ReportData, evaluation: Evaluation | None) -> tuple[Sentence, ...]:
    """All that applies, worst first."""
    found = list(_of_run(data))
    if evaluation is not None and evaluation.measures:
        for rule in _RULES:
            sentence = rule(data, evaluation)
            if sentence is not None:
                found.append(sentence)
    found += [Sentence("plain", note) for note in data.notes]
    order: dict[Level, int] = {"bad": 0, "warn": 1}
    return tuple(sorted(found, key=lambda sentence: order.get(sentence.level, 2)))


def _of_run(data: ReportData) -> list[Sentence]:
    found = []
    wanted, done = data.config.schedule.num_iterations, len(data.iterations)
    if not data.finished:
        found.append(
            Sentence(
                "bad",
                f"The run did not end as planned ({data.status}): {done} of {wanted} iterations "
                "were trained.",
            )
        )
    if data.drops.total:
        counts = {**data.drops.data, **data.drops.run}
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        found.append(Sentence("warn", f"{data.drops.total} records were dropped: {reasons}."))
    return found


def _judge(data: ReportData, evaluation: Evaluation) -> Sentence | None:
    judge = evaluation.judge
    if judge is None or judge.fit:
        return None
    rate = evaluation.measure(evaluation.last, "win_rate")
    shown = ""
    if rate is not None and rate.mean is not None:
        percent = Numbers.of(rate, "share").value(rate.mean)
        shown = f" ({evaluation.last} over {evaluation.first}: {percent})"
    model = f" {judge.model}" if judge.model else ""
    verdict = judge.verdict.removeprefix("the judge is UNFIT").lstrip(": ")
    return Sentence(
        "bad",
        f"Win rates{shown} mean nothing, because the judge{model} is unfit: it failed its "
        f"qualification ({verdict or 'no reason is on record'}).",
    )


def _few_clusters(data: ReportData, evaluation: Evaluation) -> Sentence | None:
    value = evaluation.measure(evaluation.last, "matched_minus_shuffled")
    if value is None:
        return None
    tasks, personas = value.task_clusters, value.persona_clusters
    counted = f"{tasks} tasks x {personas} personas"
    if min(tasks, personas) < _TOO_FEW_CLUSTERS:
        return Sentence(
            "warn", f"The intervals rest on {counted}: too few to be more than a rough guess."
        )
    if min(tasks, personas) < _FEW_CLUSTERS:
        return Sentence("warn", f"The intervals rest on only {counted}: they may be too narrow.")
    return Sentence("plain", f"The intervals rest on {counted}, resampled both ways.")


def _unpaired(data: ReportData, evaluation: Evaluation) -> Sentence | None:
    change = evaluation.change(evaluation.last, "matched_minus_shuffled")
    if change is None or not (change.num_only_before or change.num_only_after):
        return None
    return Sentence(
        "warn",
        f"Not all pairs were measured twice: {change.num_only_before} only at {evaluation.first}, "
        f"{change.num_only_after} only at {evaluation.last}; the change leaves them out.",
    )


def _leaks(data: ReportData, evaluation: Evaluation) -> Sentence | None:
    recital = evaluation.measure(evaluation.last, "recital_rate")
    unasked = evaluation.measure(evaluation.last, "unasked_facts_per_dialogue")
    parts = []
    if recital is not None and (recital.mean or 0.0) >= _MUCH_RECITAL:
        share = Numbers("share", 0).value(recital.mean or 0.0)
        parts.append(f"{share} of answers recite the profile")
    if unasked is not None and (unasked.mean or 0.0) > 0:
        number = Numbers("count", 2).value(unasked.mean or 0.0)
        parts.append(f"{number} facts per dialogue were given beyond what was asked")
    if not parts:
        return None
    return Sentence("warn", f"The Roleplayer leaks at {evaluation.last}: {' and '.join(parts)}.")


def _rose(name: str, subject: str) -> Callable[[ReportData, Evaluation], Sentence | None]:
    """A rule for a measure that must not rise clearly."""

    def rule(data: ReportData, evaluation: Evaluation) -> Sentence | None:
        change = evaluation.change(evaluation.last, name)
        if change is None:
            return None
        difference = change.difference
        if difference.ci_low is None or difference.ci_low <= 0:
            return None
        numbers = Numbers.of(difference, "share")
        size = numbers.shift(difference.mean or 0.0)
        interval = f"{confidence(evaluation)} interval {numbers.interval(difference)}"
        return Sentence("warn", f"{subject} by {size} ({interval}).")

    return rule


def _overlaps(data: ReportData, evaluation: Evaluation) -> Sentence | None:
    found = overlaps(data, evaluation)
    if not found:
        return None
    first = found[0]
    return Sentence(
        "warn",
        f"{len(found)} of the test's tasks or personas are nearly the same as ones that were "
        f"trained on, for example {first.test_id!r} and {first.train_id!r}.",
    )


def _same_roleplayer(data: ReportData, evaluation: Evaluation) -> Sentence | None:
    now, then = evaluation.about.roleplayer, evaluation.about.trained_with_roleplayer
    if now is None or then is None:
        return None
    if now == then:
        return Sentence(
            "warn",
            f"The simulated user of the test is the one of the training ({now.model}): what was "
            "learned may be its habits. `stargate eval` can test with another one.",
        )
    return Sentence(
        "plain",
        f"The simulated user of the test ({_named(now.model, now.prompts, now.grounding)}) is not "
        f"the one of the training ({_named(then.model, then.prompts, then.grounding)}).",
    )


def _words_only(data: ReportData, evaluation: Evaluation) -> Sentence | None:
    user = evaluation.about.roleplayer
    if user is None or user.grounding != "persona":
        return None
    return Sentence(
        "plain",
        "The Roleplayer answers freely, so facts are recognised by their words: what it "
        "paraphrases is not counted, and facts elicited are a lower bound.",
    )


def _one_seed(data: ReportData, evaluation: Evaluation) -> Sentence | None:
    if evaluation.first == evaluation.last:
        return None
    return Sentence(
        "plain",
        f"This is one run with one seed ({data.config.seed}): the intervals say how far other "
        "tasks and personas could move the result, not how far another training run could.",
    )


def _named(model: str, prompts: str, grounding: str) -> str:
    details = [f"prompts {prompts}"] if prompts else []
    details += [f"grounding {grounding}"] if grounding else []
    return ", ".join([model, *details])


_RULES = (
    _judge,
    _few_clusters,
    _unpaired,
    _leaks,
    _rose("repeated_question_rate", "Repeated questions went up"),
    _rose("needless_question_rate", "Questions on tasks that need none went up"),
    _overlaps,
    _same_roleplayer,
    _words_only,
    _one_seed,
)
