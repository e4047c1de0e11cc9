"""The answer first: did it get better, by how much, how sure, and where the gain came from.

    Evaluation (eval.json) -> rules -> Answer: a headline and sentences with their numbers

The headline is matched minus shuffled, the part of the gold log-prob that is about the person. A
change is called one only where its interval leaves 0 out; otherwise it is "no clear change",
whatever its mean. What should make a reader doubt is in caveats.py.
"""

from dataclasses import dataclass
from typing import Literal

from stargate.report.caveats import caveats
from stargate.report.measures import measure_info
from stargate.report.records import Change, Evaluation, ReportData
from stargate.report.wording import Level, Numbers, Sentence, confidence, direction, unit_of

Verdict = Literal["better", "worse", "unclear", "unknown"]
HEADLINE = "matched_minus_shuffled"
# What is said about the last checkpoint beside the headline: measure, subject of the sentence,
# words for its unit.
_SAID: tuple[tuple[str, str, str], ...] = (
    ("facts_per_dialogue", "Facts elicited per dialogue", ""),
    ("fact_coverage", "The share of the gold's facts that were elicited", ""),
    ("gold_logprob", "The gold log-prob, which also rewards form,", " nats"),
    ("question_rate", "The share of turns that are a question", ""),
    ("tokens_per_dialogue", "The user's effort per dialogue", " tokens"),
)
_SURE = {1: ", a clear rise", 0: ", no clear change", -1: ", a clear fall"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one evaluation says, in the order in which it should be read."""

    verdict: Verdict
    headline: str
    sentences: tuple[Sentence, ...]
    origins: tuple[Sentence, ...]  # where the gain came from
    caveats: tuple[Sentence, ...]


def main_evaluation(data: ReportData) -> Evaluation | None:
    """The evaluation that the report opens with: the run's own if it has measures."""
    measured = [entry for entry in data.evaluations if entry.measures]
    return measured[0] if measured else None


def answer(data: ReportData, evaluation: Evaluation | None) -> Answer:
    """The answer that an evaluation gives; `None` where nothing was measured."""
    doubts = caveats(data, evaluation)
    if evaluation is None or not evaluation.measures:
        text = "Nothing was measured, so nobody can say whether it got better."
        return Answer("unknown", text, (), (), doubts)
    if evaluation.first == evaluation.last:
        text = f"Only {evaluation.last} was measured: there is nothing to compare it with."
        return Answer("unknown", text, (), (), doubts)
    verdict, headline = _headline(evaluation)
    sentences = [_sentence(evaluation, *said) for said in _SAID]
    sentences += [_better_before(evaluation), _win_rate(evaluation)]
    return Answer(
        verdict,
        headline,
        tuple(sentence for sentence in sentences if sentence is not None),
        tuple(_origins(evaluation)),
        doubts,
    )


def _headline(evaluation: Evaluation) -> tuple[Verdict, str]:
    first, last = evaluation.first, evaluation.last
    change = evaluation.change(last, HEADLINE)
    if change is None:
        return "unknown", f"Matched minus shuffled of {last} was not compared with {first}."
    way = direction(change.difference)
    moved = _moved(evaluation, HEADLINE, change, " nats")
    if way is None:
        return "unknown", f"Not known: matched minus shuffled {moved}."
    if way == 0:
        return "unclear", f"No clear change: matched minus shuffled {moved}."
    if way > 0:
        return "better", f"Yes, {last} beats {first}: matched minus shuffled {moved}."
    return "worse", f"No, {last} is worse than {first}: matched minus shuffled {moved}."


def _moved(evaluation: Evaluation, name: str, change: Change, words: str) -> str:
    """For example "rose by 2.0 nats, from 1.2 to 3.2 (95 % interval of the change 1.5 to 2.5)"."""
    difference = change.difference
    numbers = Numbers.of(difference, unit_of(name))
    mean = difference.mean or 0.0
    ends = _from_to(evaluation, name, numbers)
    way = direction(difference)
    if way is None:
        shift = numbers.shift(mean, words, signed=True)
        return f"changed by {shift}{ends}, without an interval ({difference.why_no_interval})"
    interval = (
        f"{confidence(evaluation)} interval of the change "
        f"{numbers.interval(difference, signed=way == 0)}"
    )
    if way == 0:
        shift = numbers.shift(mean, words, signed=True)
        return f"changed by {shift}{ends} ({interval}, which contains 0)"
    verb = "rose" if way > 0 else "fell"
    return f"{verb} by {numbers.shift(abs(mean), words)}{ends} ({interval})"


def _from_to(evaluation: Evaluation, name: str, numbers: Numbers) -> str:
    before = evaluation.measure(evaluation.first, name)
    after = evaluation.measure(evaluation.last, name)
    if before is None or after is None:
        return ""
    return f", from {numbers.value(before.mean or 0.0)} to {numbers.value(after.mean or 0.0)}"


def _sentence(evaluation: Evaluation, name: str, subject: str, unit_words: str) -> Sentence | None:
    change = evaluation.change(evaluation.last, name)
    if change is None:
        return None
    way = direction(change.difference)
    moved = _moved(evaluation, name, change, unit_words)
    info = measure_info(name)
    wanted = info.more_is_better if info else None
    if way == 0:
        return Sentence("even", f"{subject} shows no clear change: it {moved}.")
    if way is None or wanted is None:
        return Sentence("plain", f"{subject} {moved}.")
    return Sentence("good" if (way > 0) == wanted else "bad", f"{subject} {moved}.")


def _better_before(evaluation: Evaluation) -> Sentence | None:
    """Says so where an earlier checkpoint did better than the last one."""
    last = evaluation.measure(evaluation.last, HEADLINE)
    means = [
        (value.mean, checkpoint)
        for checkpoint in evaluation.checkpoints[1:-1]
        if (value := evaluation.measure(checkpoint, HEADLINE)) and value.mean is not None
    ]
    if last is None or last.mean is None or not means or max(means)[0] <= last.mean:
        return None
    best, checkpoint = max(means)
    numbers = Numbers.of(last, "nats")
    return Sentence(
        "plain",
        f"{checkpoint} had a higher mean of matched minus shuffled than {evaluation.last} "
        f"({numbers.value(best)} against {numbers.value(last.mean)} nats).",
    )


def _win_rate(evaluation: Evaluation) -> Sentence | None:
    """What a fit judge says; an unfit one is a caveat."""
    rate = evaluation.measure(evaluation.last, "win_rate")
    if evaluation.judge is None or rate is None or rate.mean is None:
        return Sentence("plain", "No judge was asked, so there is no win rate.")
    if not evaluation.judge.fit:
        return None
    numbers = Numbers.of(rate, "share")
    interval = numbers.interval(rate)
    level: Level = "even"
    if rate.ci_low is not None and rate.ci_high is not None:
        # 0.5 is where neither checkpoint wins.
        level = "good" if rate.ci_low > 0.5 else "bad" if rate.ci_high < 0.5 else "even"
    known = f"{confidence(evaluation)} interval {interval} %" if interval else "no interval"
    unclear = ", which contains 50 %" if interval and level == "even" else ""
    return Sentence(
        level,
        f"The judge prefers {evaluation.last} to {evaluation.first} in "
        f"{numbers.value(rate.mean)} of comparisons ({known}{unclear}).",
    )


def _origins(evaluation: Evaluation) -> list[Sentence]:
    """Person or form; which turn; which facts."""
    found = [_person_or_form(evaluation), _by_turn(evaluation)]
    return [sentence for sentence in found if sentence is not None]


def _person_or_form(evaluation: Evaluation) -> Sentence | None:
    """The gold log-prob's change is matched-minus-shuffled's plus shuffled's."""
    last = evaluation.last
    gold = evaluation.change(last, "gold_logprob")
    person = evaluation.change(last, HEADLINE)
    if gold is None or person is None:
        return None
    total, about_person = gold.difference.mean, person.difference.mean
    if total is None or about_person is None:
        return None
    form = total - about_person
    numbers = Numbers.of(person.difference, "nats")
    text = (
        f"Of the gold log-prob's {numbers.bare(total, signed=True)} nats, "
        f"{numbers.bare(about_person, signed=True)} are about the person (matched minus shuffled) "
        f"and {numbers.bare(form, signed=True)} are form: they are there after another persona's "
        "dialogue too."
    )
    if direction(gold.difference) != 1:
        return Sentence("plain", text + " The sum is not a clear rise, so read the parts as rough.")
    if min(about_person, form) < 0:
        return Sentence("plain", text)
    share = Numbers("share", 0).value(about_person / total)
    return Sentence("plain", f"{text} So {share} of the rise is about the person.")


def _by_turn(evaluation: Evaluation) -> Sentence | None:
    """What each turn adds at the first and at the last checkpoint."""
    parts = []
    for number in range(1, (evaluation.about.num_turns or 20) + 1):
        name = f"gain_at_turn_{number}"
        before = evaluation.measure(evaluation.first, name)
        after = evaluation.measure(evaluation.last, name)
        if before is None or after is None:
            break
        change = evaluation.change(evaluation.last, name)
        way = direction(change.difference) if change else None
        sure = "" if way is None else _SURE[way]
        numbers = Numbers.of(change.difference if change else after, "nats")
        parts.append(
            f"turn {number} adds {numbers.bare(after.mean or 0.0, signed=True)} nats "
            f"(was {numbers.bare(before.mean or 0.0, signed=True)}{sure})"
        )
    if not parts:
        return None
    return Sentence("plain", f"At {evaluation.last}, " + "; ".join(parts) + ".")
