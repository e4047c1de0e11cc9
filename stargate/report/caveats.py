"""Reasons to doubt the answer, found by rules from a run's own records.

Each rule looks for one thing that would make the numbers say less than they seem to. `bad` ones
take a result away (an unfit judge), `warn` ones weaken it, `plain` ones a reader must know.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stargate.data.similarity import near_duplicates
from stargate.evaluation.measures import RoleplayerAbout
from stargate.report.records import TRAIN, Evaluation, ReportData
from stargate.report.wording import Level, Numbers, Sentence, confidence

# Coverage of the intervals was measured from 8 personas up (evaluation/statistics.py); below, they
# are too narrow for some data, and with fewer than 5 of either kind no bootstrap is made at all.
_FEW_CLUSTERS = 8
_TOO_FEW_CLUSTERS = 5
# One answer in twenty that recites the profile: a Questioner can learn to fish for that.
_MUCH_RECITAL = 0.05
# Measures that must not rise clearly.
_MUST_NOT_RISE = {
    "repeated_question_rate": "Repeated questions went up",
    "generic_question_rate": "Questions that fit any task went up",
    "needless_question_rate": "Questions on tasks that need none went up",
}


def caveats(data: ReportData, evaluation: Evaluation | None) -> tuple[Sentence, ...]:
    """All that applies, worst first."""
    found = list(_of_run(data))
    if evaluation is not None and evaluation.measures:
        found += [
            *_judge(evaluation),
            *_skill(evaluation),
            *_clusters(evaluation),
            *_harm(evaluation),
            *_of_design(data, evaluation),
        ]
    found += [Sentence("plain", note) for note in data.notes]
    order: dict[Level, int] = {"bad": 0, "warn": 1}
    return tuple(sorted(found, key=lambda sentence: order.get(sentence.level, 2)))


def _of_run(data: ReportData) -> Iterator[Sentence]:
    wanted, done = data.config.schedule.num_iterations, len(data.iterations)
    if not data.finished:
        yield Sentence(
            "bad",
            f"The run did not end as planned ({data.status}): {done} of {wanted} iterations "
            "were trained.",
        )
    if data.drops.total:
        reasons = ", ".join(f"{count} {reason}" for reason, count in data.drops.counts.items())
        yield Sentence("warn", f"{data.drops.total} records were dropped: {reasons}.")


def _judge(evaluation: Evaluation) -> Iterator[Sentence]:
    judge = evaluation.judge
    if judge is None or judge.fit:
        return
    rate = evaluation.measure(evaluation.last, "win_rate")
    shown = ""
    if rate is not None:
        percent = Numbers.of(rate, "share").value(rate.mean)
        shown = f" ({evaluation.last} over {evaluation.first}: {percent})"
    model = f" {judge.model}" if judge.model else ""
    verdict = judge.verdict.removeprefix("the judge is UNFIT").lstrip(": ")
    yield Sentence(
        "bad",
        f"Win rates{shown} mean nothing, because the judge{model} is unfit: it failed its "
        f"qualification ({verdict or 'no reason is on record'}).",
    )


def _skill(evaluation: Evaluation) -> Iterator[Sentence]:
    if reason := evaluation.no_skill.get(evaluation.last):
        yield Sentence("warn", f"There is no skill of {evaluation.last}: {reason}.")


def _clusters(evaluation: Evaluation) -> Iterator[Sentence]:
    """How much the headline's interval rests on, and what its change leaves out."""
    if value := evaluation.measure(evaluation.last, "matched_minus_shuffled"):
        tasks, ways = f"{value.task_clusters} tasks", "by task" if value.nested else "both ways"
        rest = " (each person belongs to one task)"
        counted = tasks + (rest if value.nested else f" x {value.persona_clusters} personas")
        if value.fewest_clusters < _TOO_FEW_CLUSTERS:
            text = f"The intervals rest on {counted}: too few to be more than a rough guess."
            yield Sentence("warn", text)
        elif value.fewest_clusters < _FEW_CLUSTERS:
            text = f"The intervals rest on only {counted}: they may be too narrow."
            yield Sentence("warn", text)
        else:
            yield Sentence("plain", f"The intervals rest on {counted}, resampled {ways}.")
    change = evaluation.change(evaluation.last, "matched_minus_shuffled")
    if change is not None and (change.num_only_before or change.num_only_after):
        yield Sentence(
            "warn",
            f"Not all pairs were measured twice: {change.num_only_before} only at "
            f"{evaluation.first}, {change.num_only_after} only at {evaluation.last}; the change "
            "leaves them out.",
        )


def _harm(evaluation: Evaluation) -> Iterator[Sentence]:
    """Leaks, and what has become worse beyond doubt."""
    recital = evaluation.measure(evaluation.last, "recital_rate")
    unasked = evaluation.measure(evaluation.last, "unasked_facts_per_dialogue")
    parts = []
    if recital is not None and (recital.mean or 0.0) >= _MUCH_RECITAL:
        share = Numbers("share", 0).value(recital.mean)
        parts.append(f"{share} of answers recite the profile")
    if unasked is not None and (unasked.mean or 0.0) > 0:
        number = Numbers("count", 2).value(unasked.mean)
        parts.append(f"{number} facts per dialogue were given beyond what was asked")
    if parts:
        yield Sentence("warn", f"The Roleplayer leaks at {evaluation.last}: {' and '.join(parts)}.")
    for name, subject in _MUST_NOT_RISE.items():
        change = evaluation.change(evaluation.last, name)
        if change is None or change.ci_low is None or change.ci_low <= 0:
            continue
        numbers = Numbers.of(change, "share")
        span = numbers.interval(change.ci_low, change.ci_high)
        interval = f"{confidence(evaluation)} interval {span}"
        yield Sentence("warn", f"{subject} by {numbers.shift(change.mean or 0)} ({interval}).")


def _of_design(data: ReportData, evaluation: Evaluation) -> Iterator[Sentence]:
    """What was tested, on whom, and how often."""
    if found := overlaps(data, evaluation):
        yield Sentence(
            "warn",
            f"{len(found)} of the test's tasks or personas are nearly the same as ones that were "
            f"trained on, for example {found[0].test_id!r} and {found[0].train_id!r}.",
        )
    if (about := evaluation.about) is not None:
        now, then = about.roleplayer, about.trained_with_roleplayer
        if now == then:
            yield Sentence(
                "warn",
                f"The simulated user of the test is the one of the training ({now.model}): what "
                "was learned may be its habits. `stargate eval` can test with another one.",
            )
        else:
            yield Sentence(
                "plain",
                f"The simulated user of the test ({_named(now)}) is not the one of the training "
                f"({_named(then)}).",
            )
        if now.grounding == "persona":
            yield Sentence(
                "plain",
                "The Roleplayer answers freely, so facts are recognised by their words: what it "
                "paraphrases is not counted, and facts elicited are a lower bound.",
            )
    if evaluation.first != evaluation.last:
        yield Sentence(
            "plain",
            f"This is one run with one seed ({data.config.seed}): the intervals say how far other "
            "tasks and personas could move the result, not how far another training run could.",
        )


def _named(user: RoleplayerAbout) -> str:
    return f"{user.model}, {user.ways}"


@dataclass(frozen=True, slots=True)
class Overlap:
    """A test text that is nearly the same as one that was trained on.

    `kind` is "tasks" or "personas"; similarity is Jaccard's, 0 to 1.
    """

    kind: str
    test_id: str
    train_id: str
    similarity: float


def overlaps(data: ReportData, evaluation: Evaluation) -> tuple[Overlap, ...]:
    """Each such task and persona once, the most similar first. Nothing without training data.

    An evaluation on other data is checked against this run's training data too.
    """
    sides = [data.pairs.get(source, {}).values() for source in (TRAIN, evaluation.source)]
    tasks = [{pair.task.id: pair.task.text for pair in pairs} for pairs in sides]
    personas = [
        {pair.persona.id: pair.persona.text for pair in pairs if pair.persona.text}
        for pairs in sides
    ]
    found = [*_between("tasks", *tasks), *_between("personas", *personas)]
    return tuple(sorted(found, key=lambda overlap: (-overlap.similarity, overlap.test_id)))


def _between(kind: str, train: Mapping[str, str], test: Mapping[str, str]) -> Iterator[Overlap]:
    names = [*train, *test]
    for index, near in near_duplicates([*train.values(), *test.values()], kind):
        trained = [(similarity, other) for similarity, other in near if other < len(train)]
        if index >= len(train) and trained:
            similarity, other = max(trained)
            yield Overlap(kind, names[index], names[other], similarity)
