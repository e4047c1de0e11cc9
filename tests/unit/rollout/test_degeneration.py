"""Empty and endlessly repeating texts: told from honest ones, counted, and stopped by share."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from stargate.config.run import DegenerationConfig
from stargate.errors import DivergenceError, RecordDropped
from stargate.evaluation.playing import EvaluationPairs, play_all
from stargate.records.repair import discovery, repair
from stargate.records.store import RunStore
from stargate.rollout.degeneration import Degeneration, DegenerationWatch, loops
from stargate.types import Dialogue, GenerateRequest, StopReason, Turn
from tests.fakes.scripted import ScriptedGenerate, make_pair
from tests.unit.test_pair_steps import (
    RecordingPush,
    RecordingTrain,
    iterate,
    roles,
    run_context,
    say,
)

LENGTH, STOP, FIXED = StopReason.LENGTH, StopReason.STOP, StopReason.FIXED
LOOP = tuple([5, 6, 7] * 10)
# Distinct ids: nothing of it repeats.
SPEECH = tuple(range(100, 132))
LIMITS = DegenerationConfig(min_texts=10)


@pytest.mark.parametrize(
    ("token_ids", "stop", "expected"),
    [
        (LOOP, LENGTH, True),
        (LOOP, STOP, False),  # it came to an end by itself
        ((0,) * 20, LENGTH, True),
        (LOOP[:15], LENGTH, False),  # too short to say
        (SPEECH, LENGTH, False),  # long, but it says something
        ((*SPEECH[:14], *[8, 9] * 9), LENGTH, True),  # it began well
        ((*[8, 9] * 9, *SPEECH[:18]), LENGTH, False),  # it went on after a stutter
        ((*SPEECH[:16], *SPEECH[:16]), LENGTH, True),  # one long period
        ((), LENGTH, False),
    ],
)
def test_loops(token_ids: tuple[int, ...], stop: StopReason, expected: bool) -> None:
    assert loops(token_ids, stop) is expected


def test_a_text_of_ordinary_words_is_no_loop() -> None:
    """Words drawn as unevenly as words are: their pairs repeat, their order does not."""
    random = Random(1)
    words = [int(random.paretovariate(1.0)) % 500 for _ in range(400)]
    assert not loops(words, LENGTH)


def turn(question_ids: tuple[int, ...], stop: StopReason, **answer: object) -> Turn:
    values: dict[str, object] = {"answer_ids": (), "answer_stop": FIXED, **answer}
    return Turn("q?", question_ids, stop, "a", **values)  # type: ignore[arg-type]


def dialogue(*turns: Turn) -> Dialogue:
    return Dialogue("d", "p", 0, len(turns), 0, 0, turns, 0.1)


GOOD = dialogue(turn(SPEECH, STOP))
BAD = dialogue(turn(LOOP, LENGTH))
SILENT = RecordDropped("empty_question", "d", "said nothing")


def watch(root: Path, scope: str = "t0", **limits: object) -> DegenerationWatch:
    config = LIMITS.model_copy(update=limits)
    return DegenerationWatch(scope, RunStore(root), config)


def hear(watched: DegenerationWatch, good: int, bad: int, silent: int = 0) -> DegenerationWatch:
    for dialogue in (*[GOOD] * good, *[BAD] * bad):
        watched.heard(dialogue)
    for _ in range(silent):
        watched.dropped(SILENT)
    return watched


def test_the_share_stops_not_a_single_text(tmp_path: Path) -> None:
    hear(watch(tmp_path), good=5, bad=5).check()
    with pytest.raises(DivergenceError) as caught:
        hear(watch(tmp_path), good=6, bad=6, silent=1).check()
    assert str(caught.value) == (
        "t0: the questioner's texts are empty or endless: 54% of 13 (1 empty, 6 repeating to the "
        "token limit), more than rollout.degeneration.max_share = 50%; these weights must not be "
        "used: train with a lower trainer.learning_rate, or look at logs/ if m0 itself speaks like "
        "this"
    )


def test_few_texts_give_no_verdict(tmp_path: Path) -> None:
    hear(watch(tmp_path), good=0, bad=9).check()
    with pytest.raises(DivergenceError):
        hear(watch(tmp_path), good=0, bad=10).check()


def test_a_checkpoint_is_compared_with_m0_in_the_same_place(tmp_path: Path) -> None:
    hear(watch(tmp_path, "t0"), good=18, bad=2).finish()
    hear(watch(tmp_path, "t1"), good=14, bad=7).check()  # 33 %, m0 had 10 %
    with pytest.raises(DivergenceError, match=r"40% of 20 .* with m0 it was 10% of 20 .* 25%"):
        hear(watch(tmp_path, "t1"), good=12, bad=8).check()
    hear(watch(tmp_path, "eval-m1"), good=12, bad=8).check()  # no eval-m0: nothing to compare with


def test_fixed_answers_are_nobodys_texts_and_sampled_ones_the_roleplayers(tmp_path: Path) -> None:
    watched = watch(tmp_path)
    for _ in range(20):
        watched.heard(dialogue(turn(SPEECH, STOP, answer_ids=LOOP, answer_stop=FIXED)))
    watched.check()
    for _ in range(10):
        watched.heard(dialogue(turn(SPEECH, STOP, answer_ids=LOOP, answer_stop=LENGTH)))
    with pytest.raises(DivergenceError, match="the roleplayer's texts are empty or endless: 100%"):
        watched.check()


def test_other_drops_do_not_count(tmp_path: Path) -> None:
    watched = watch(tmp_path)
    for _ in range(20):
        watched.dropped(RecordDropped("prompt_too_long", "d", "x"))
    watched.check()


def test_damaged_counts_are_set_aside_and_do_without(tmp_path: Path) -> None:
    hear(watch(tmp_path, "t0"), good=20, bad=0).finish()
    file = tmp_path / "t0" / "degeneration.json"
    file.write_text('{"questioner"')
    assert [damage.file for damage in discovery(tmp_path)] == [file]
    repair(tmp_path, discovery(tmp_path))
    hear(watch(tmp_path, "t1"), good=12, bad=8).check()


def test_shares_of_nothing_are_zero() -> None:
    assert Degeneration().share == 0.0


PAIRS = [make_pair(task=f"t{i}", persona=p) for i in range(12) for p in ("p", "q")]


def babbling(version: int) -> ScriptedGenerate:
    """Loops when its weights are m_`version`'s or later: by the scope that asks."""

    def script(request: GenerateRequest) -> str:
        scope = request.session.partition("/")[0]
        bad = scope.startswith("t") and int(scope[1:]) >= version
        return "la la la la la la la la" if bad else say(request)

    return ScriptedGenerate(script, end=False)


@pytest.mark.parametrize("overlap", [True, False])
def test_nothing_is_trained_on_a_checkpoint_that_babbles(tmp_path: Path, overlap: bool) -> None:
    context = run_context(tmp_path, overlap)
    train, push = RecordingTrain(), RecordingPush()
    parts = {"generate": babbling(1), "train": train, "push": push}
    iterate(context, pairs=PAIRS, **parts)
    assert [version for _, version in push.pushed] == [1]
    train.examples = []
    with pytest.raises(DivergenceError, match="t1: the questioner's texts are empty or endless"):
        iterate(context, 1, PAIRS, **parts)
    assert train.examples == []
    assert [version for _, version in push.pushed] == [1]
    # It does not wait for the last pair, and finished dialogues stay.
    assert 64 <= 2 * len(list(context.store.read("t1", "dialogues"))) <= 2 * 3 * len(PAIRS)


def test_a_resumed_iteration_counts_what_was_played_before(tmp_path: Path) -> None:
    context = run_context(tmp_path)
    with pytest.raises(DivergenceError):
        iterate(context, pairs=PAIRS, generate=babbling(0))
    context.store.compact("t0")
    with pytest.raises(DivergenceError, match="100%"):
        iterate(run_context(tmp_path), pairs=PAIRS)


def test_an_evaluation_notices_too(tmp_path: Path) -> None:
    context = run_context(tmp_path)
    silent = roles(generate=ScriptedGenerate(lambda request: "\n "))
    with pytest.raises(
        DivergenceError, match=r"eval-m1: the questioner's .* 100% of 64 \(64 empty"
    ):
        asyncio.run(play_all(1, EvaluationPairs([*PAIRS, *MORE]), silent, context))


MORE = [make_pair(task=f"u{i}") for i in range(20)]
