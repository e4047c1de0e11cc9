"""The answer first: did it get better, by how much, how sure, and where the gain came from.

    Evaluation (eval.json) -> rules -> Answer: a headline and sentences with their numbers

The headline is the last checkpoint's skill (evaluation/skill.py): a change from m_0 may be what the
same questions for everybody bring, too. Without skill it is the change of matched minus shuffled,
the part of the gold log-prob that is about the person. A value is called above 0, and a change is
called one, only where its interval leaves 0 out; otherwise it is "no better" and "no clear change",
whatever its mean. What should make a reader doubt is in caveats.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from stargate.evaluation.catalog import measure_info
from stargate.evaluation.statistics import Measure, PairedMeasure
from stargate.report.caveats import caveats
from stargate.report.records import Evaluation, ReportData
from stargate.report.wording import Level, Numbers, Sentence, confidence, direction, unit_of

HEADLINE, SKILL = "matched_minus_shuffled", "skill"
# What is said about the last checkpoint beside the headline: measure, subject of the sentence,
# words for its unit.
_SAID: tuple[tuple[str, str, str], ...] = (
    (HEADLINE, "Matched minus shuffled", " nats"),
    ("facts_per_dialogue", "Facts elicited per dialogue", ""),
    ("fact_coverage", "The share of the gold's facts that were elicited", ""),
    ("gold_logprob", "The gold log-prob, which also rewards form,", " nats"),
    ("question_rate", "The share of turns that are a question", ""),
    ("tokens_per_dialogue", "The user's effort per dialogue", " tokens"),
)
_SURE = {1: ", a clear rise", 0: ", no clear change", -1: ", a clear fall", None: ""}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one evaluation says, in the order in which it should be read."""

    headline: str
    sentences: tuple[Sentence, ...]
    origins: tuple[Sentence, ...]  # where the gain came from
    caveats: tuple[Sentence, ...]


def answer(data: ReportData, evaluation: Evaluation | None) -> Answer:
    """The answer that an evaluation gives; `None` where nothing was measured."""
    doubts = caveats(data, evaluation)
    if evaluation is None or not evaluation.measures:
        text = "Nothing was measured, so nobody can say whether it got better."
        return Answer(text, (), (), doubts)
    skill = evaluation.measure(evaluation.last, SKILL)
    if evaluation.first == evaluation.last:
        text = f"Only {evaluation.last} was measured: there is nothing to compare it with."
        if skill is None:
            return Answer(text, (), (), doubts)
        return Answer(_skilled(evaluation, skill), (Sentence("plain", text),), (), doubts)
    headline = _changed(evaluation) if skill is None else _skilled(evaluation, skill)
    sentences = (*_moves(evaluation), *_better_before(evaluation), *_win_rate(evaluation))
    origins = (*_person_or_form(evaluation), *_by_turn(evaluation))
    return Answer(headline, sentences, origins, doubts)


def headline_of(evaluation: Evaluation) -> str:
    """The measure that the headline is about."""
    return HEADLINE if evaluation.measure(evaluation.last, SKILL) is None else SKILL


def _skilled(evaluation: Evaluation, skill: Measure) -> str:
    """The last checkpoint between a questionnaire (0) and the facts themselves (1)."""
    numbers = Numbers.of(skill, unit_of(SKILL))
    found = f"Skill of {evaluation.last} is {numbers.value(skill.mean)}"
    way = direction(skill)
    if way is None:
        return (
            f"{found}, without an interval: nobody can say whether it is above a questionnaire "
            f"({skill.why_no_interval})."
        )
    interval = numbers.interval(skill.ci_low, skill.ci_high)
    verdict = {
        0: "no better than the same questions for everybody",
        1: "above a questionnaire",
        -1: "below a questionnaire",
    }[way]
    return f"{found} ({confidence(evaluation)} interval {interval}): {verdict}."


def _changed(evaluation: Evaluation) -> str:
    """How far the last checkpoint is from m_0."""
    first, last = evaluation.first, evaluation.last
    change = evaluation.change(last, HEADLINE)
    if change is None:
        return f"Matched minus shuffled of {last} was not compared with {first}."
    verdict = {
        None: "Not known",
        0: "No clear change",
        1: f"Yes, {last} beats {first}",
        -1: f"No, {last} is worse than {first}",
    }[direction(change)]
    moved = _moved(evaluation, HEADLINE, change, " nats")
    return f"{verdict}: matched minus shuffled {moved}."


def _moved(evaluation: Evaluation, name: str, change: PairedMeasure, words: str) -> str:
    """For example "rose by 2.0 nats, from 1.2 to 3.2 (95 % interval of the change 1.5 to 2.5)"."""
    numbers = Numbers.of(change, unit_of(name))
    mean, way = change.mean or 0.0, direction(change)
    before = evaluation.measure(evaluation.first, name)
    after = evaluation.measure(evaluation.last, name)
    ends = ""
    if before is not None and after is not None:
        ends = f", from {numbers.value(before.mean)} to {numbers.value(after.mean)}"
    if not way:
        shift = numbers.shift(mean, words, signed=True)
        doubt = ", which contains 0"
    else:
        shift = numbers.shift(abs(mean), words)
        doubt = ""
    if way is None:
        return f"changed by {shift}{ends}, without an interval ({change.why_no_interval})"
    span = numbers.interval(change.ci_low, change.ci_high, signed=way == 0)
    verb = {0: "changed", 1: "rose", -1: "fell"}[way]
    interval = f"{confidence(evaluation)} interval of the change {span}{doubt}"
    return f"{verb} by {shift}{ends} ({interval})"


def _moves(evaluation: Evaluation) -> Iterator[Sentence]:
    """How far each measure is from m_0, and whether that is wanted; the headline's is said."""
    for name, subject, words in _SAID:
        change = evaluation.change(evaluation.last, name)
        if change is None or name == headline_of(evaluation):
            continue
        way = direction(change)
        moved = _moved(evaluation, name, change, words)
        info = measure_info(name)
        wanted = info.more_is_better if info else None
        if way == 0:
            yield Sentence("even", f"{subject} shows no clear change: it {moved}.")
        elif way is None or wanted is None:
            yield Sentence("plain", f"{subject} {moved}.")
        else:
            yield Sentence("good" if (way > 0) == wanted else "bad", f"{subject} {moved}.")


def _better_before(evaluation: Evaluation) -> Iterator[Sentence]:
    """Says so where an earlier checkpoint did better than the last one."""
    last = evaluation.measure(evaluation.last, HEADLINE)
    means = [
        (value.mean, checkpoint)
        for checkpoint in evaluation.checkpoints[1:-1]
        if (value := evaluation.measure(checkpoint, HEADLINE)) and value.mean is not None
    ]
    if last is None or last.mean is None or not means or max(means)[0] <= last.mean:
        return
    best, checkpoint = max(means)
    numbers = Numbers.of(last, "nats")
    yield Sentence(
        "plain",
        f"{checkpoint} had a higher mean of matched minus shuffled than {evaluation.last} "
        f"({numbers.value(best)} against {numbers.value(last.mean)} nats).",
    )


def _win_rate(evaluation: Evaluation) -> Iterator[Sentence]:
    """What a fit judge says; an unfit one is a caveat."""
    rate = evaluation.measure(evaluation.last, "win_rate")
    if evaluation.judge is None or rate is None:
        yield Sentence("plain", "No judge was asked, so there is no win rate.")
        return
    if evaluation.unfit:
        return
    numbers = Numbers.of(rate, "share")
    interval = numbers.interval(rate.ci_low, rate.ci_high)
    level: Level = "even"
    if rate.ci_low is not None and rate.ci_high is not None:
        # 0.5 is where neither checkpoint wins.
        level = "good" if rate.ci_low > 0.5 else "bad" if rate.ci_high < 0.5 else "even"
    known = f"{confidence(evaluation)} interval {interval} %" if interval else "no interval"
    unclear = ", which contains 50 %" if interval and level == "even" else ""
    yield Sentence(
        level,
        f"The judge prefers {evaluation.last} to {evaluation.first} in "
        f"{numbers.value(rate.mean)} of comparisons ({known}{unclear}).",
    )


def _person_or_form(evaluation: Evaluation) -> Iterator[Sentence]:
    """The gold log-prob's change is matched-minus-shuffled's plus shuffled's."""
    gold = evaluation.change(evaluation.last, "gold_logprob")
    person = evaluation.change(evaluation.last, HEADLINE)
    if gold is None or person is None:
        return
    total, about_person = gold.mean or 0.0, person.mean or 0.0
    form = total - about_person
    numbers = Numbers.of(person, "nats")
    text = (
        f"Of the gold log-prob's {numbers.bare(total, signed=True)} nats, "
        f"{numbers.bare(about_person, signed=True)} are about the person (matched minus shuffled) "
        f"and {numbers.bare(form, signed=True)} are form: they are there after another persona's "
        "dialogue too."
    )
    if direction(gold) != 1:
        text += " The sum is not a clear rise, so read the parts as rough."
    elif min(about_person, form) >= 0:
        share = Numbers("share", 0).value(about_person / total)
        text += f" So {share} of the rise is about the person."
    yield Sentence("plain", text)


def _by_turn(evaluation: Evaluation) -> Iterator[Sentence]:
    """What each turn adds at the first and at the last checkpoint."""
    parts = []
    for number in range(1, (max(evaluation.about.turns) if evaluation.about else 20) + 1):
        name = f"gain_at_turn_{number}"
        before = evaluation.measure(evaluation.first, name)
        after = evaluation.measure(evaluation.last, name)
        if before is None or after is None:
            break
        change = evaluation.change(evaluation.last, name)
        sure = _SURE[direction(change)] if change else ""
        numbers = Numbers.of(change or after, "nats")
        parts.append(
            f"turn {number} adds {numbers.bare(after.mean or 0.0, signed=True)} nats "
            f"(was {numbers.bare(before.mean or 0.0, signed=True)}{sure})"
        )
    if parts:
        yield Sentence("plain", f"At {evaluation.last}, " + "; ".join(parts) + ".")
