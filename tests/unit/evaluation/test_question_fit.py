"""The fit of first questions to their tasks: a fake engine, values by hand."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stargate.errors import DataError, RecordDropped
from stargate.evaluation.checkpoint_records import CheckpointRecords, read_checkpoint
from stargate.evaluation.measures import observe
from stargate.evaluation.question_fit import (
    NUM_OTHERS,
    NUM_QUESTIONS,
    FitScore,
    observe_fit,
    sampled_questions,
    score_fits,
)
from stargate.evaluation.statistics import Observation
from stargate.run_context import RunContext
from stargate.types import Dialogue, GenerateRequest, Generation, Pair
from tests.fakes.scripted import ScriptedGenerate, make_pair, make_turn, text_ids
from tests.unit.test_pair_steps import run_context

TASKS = ("cook", "trip", "gift")
PAIRS = [make_pair(task=task, persona=who) for task in TASKS for who in ("ann", "bob")]


def dialogue(pair: Pair, question: str = "Why?", index: int = 0) -> Dialogue:
    turns = make_turn(question), make_turn("And then?")
    return Dialogue(f"eval-m0/{pair.id}/{index}", pair.id, index, 2, 0, 0, turns)


def all_played(pairs: Sequence[Pair], question: str = "Why?") -> dict[str, list[Dialogue]]:
    return {pair.id: [dialogue(pair, question), dialogue(pair, "So?", 1)] for pair in pairs}


class Reader(ScriptedGenerate):
    """Knows how likely each token of a question is where the prompt speaks of a task."""

    def __init__(self, logprobs: Mapping[str, float]) -> None:
        super().__init__(lambda request: "x")
        self._logprobs = logprobs

    async def __call__(self, request: GenerateRequest) -> Generation:
        text = "".join(map(chr, request.prompt_ids))
        [value] = [value for task, value in self._logprobs.items() if f"{task}?" in text]
        num = request.sampling.num_prompt_logprobs
        return replace(await super().__call__(request), prompt_logprobs=(value,) * num)


def fit(generate: ScriptedGenerate, context: RunContext, pairs: Sequence[Pair] = PAIRS) -> None:
    asyncio.run(score_fits(0, pairs, all_played(pairs), generate, context))


def scores(context: RunContext) -> dict[tuple[str, str], float]:
    rows = context.store.read("eval-m0", "question_fits")
    return {(row["pair_id"], row["task_id"]): row["logprob"] for row in rows}


def test_a_question_is_read_after_its_own_task_and_after_others(tmp_path: Path) -> None:
    generate, context = Reader({"cook": -0.5, "trip": -1.0, "gift": -3.0}), run_context(tmp_path)
    fit(generate, context)
    # "Why?" and its end token: five ids.
    by_task = {"cook": -2.5, "trip": -5.0, "gift": -15.0}
    assert scores(context) == {(p.id, task): by_task[task] for p in PAIRS for task in TASKS}
    [request] = [r for r in generate.requests if r.request_id == "eval-m0/cook:ann/0 fit trip"]
    # What the Questioner would have seen of the other task, under the same name, and the question.
    other = replace(PAIRS[0], task=PAIRS[2].task)
    prompt = context.chat.prompt_ids(context.views.questioner(other, ()))
    assert "Ann: trip?" in "".join(map(chr, prompt))
    assert request.prompt_ids == (*prompt, *text_ids("Why?"))
    sampling = request.sampling
    assert (sampling.num_prompt_logprobs, sampling.max_new_tokens) == (5, 1)

    of_id = {pair.id: pair for pair in PAIRS}
    dialogues = [dialogue(pair) for pair in PAIRS]
    records = CheckpointRecords(
        of_id,
        dialogues,
        [],
        {},
        [FitScore(**row) for row in context.store.read("eval-m0", "question_fits")],
    )
    found = observe(records, len, grounded=True)["question_fit"]
    assert [o for o in found if o.persona == "ann"] == [
        Observation("cook", "ann", -2.5 - (-5.0 - 15.0) / 2),
        Observation("gift", "ann", -15.0 - (-2.5 - 5.0) / 2),
        Observation("trip", "ann", -5.0 - (-2.5 - 15.0) / 2),
    ]


def test_who_asks_the_same_at_any_task_has_no_fit() -> None:
    of_id = {pair.id: pair for pair in PAIRS}
    same = [FitScore("d", "cook:ann", task, -4.0) for task in TASKS]
    assert observe_fit(of_id, same) == {"question_fit": [Observation("cook", "ann", 0.0)]}
    # Without either side there is no difference; without the table no measure.
    assert observe_fit(of_id, same[:1]) == {"question_fit": []}
    assert observe_fit(of_id, same[1:]) == {"question_fit": []}
    assert observe_fit(of_id, []) == {}


def test_what_is_scored_already_is_not_scored_again(tmp_path: Path) -> None:
    context, again = run_context(tmp_path), ScriptedGenerate(lambda request: "x")
    fit(ScriptedGenerate(lambda request: "x"), context, PAIRS[:4])
    before = scores(context)
    assert len(before) == 4 * 2
    fit(again, context)
    assert len(again.requests) == 6 * 3 - 4 * 2
    assert before.items() <= scores(context).items()


def test_a_sample_of_first_questions_the_same_for_every_checkpoint() -> None:
    many = [make_pair(task=f"t{t}", persona=f"p{p}") for t in range(8) for p in range(20)]
    chosen = sampled_questions(many, all_played(many), seed=1)
    assert len(chosen) == NUM_QUESTIONS * (1 + NUM_OTHERS)
    assert {one.index for _, one, _ in chosen} == {0}
    for place in range(0, len(chosen), 1 + NUM_OTHERS):
        (pair, _, own), *others = chosen[place : place + 1 + NUM_OTHERS]
        assert own == pair.task
        assert len({task.id for _, _, task in others} - {pair.task.id}) == NUM_OTHERS
    # Drawn, not the first ones; another checkpoint's dialogues are those of the same pairs.
    assert {pair.task.id for pair, _, _ in chosen} == {f"t{t}" for t in range(8)}
    later = sampled_questions(many, all_played(many, "How much?"), seed=1)
    assert [(p.id, t.id) for p, _, t in later] == [(p.id, t.id) for p, _, t in chosen]
    assert {p.id for p, _, _ in sampled_questions(many, all_played(many), 2)} != {
        p.id for p, _, _ in chosen
    }


def test_only_questions_at_tasks_that_need_one_are_read() -> None:
    plain = [
        replace(p, task=replace(p.task, needs_question=False)) for p in PAIRS if p.task.id == "gift"
    ]
    pairs = [*PAIRS[:4], *plain]
    played = all_played(pairs) | {"cook:ann": [dialogue(PAIRS[0], "Just do it.")], "cook:bob": []}
    chosen = [(pair.id, task.id) for pair, _, task in sampled_questions(pairs, played, 0)]
    assert sorted(chosen) == [(f"trip:{w}", t) for w in ("ann", "bob") for t in ("cook", "trip")]
    # With one such task there is nothing to compare with.
    assert sampled_questions(pairs[2:], all_played(pairs), 0) == []


def test_a_prompt_that_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    def refuse(request: GenerateRequest) -> str:
        if request.request_id.endswith("fit trip"):
            raise RecordDropped("prompt_too_long", request.request_id, "too long")
        return "x"

    context = run_context(tmp_path)
    fit(ScriptedGenerate(refuse), context)
    assert context.counters.dropped == {"prompt_too_long": 6}
    assert {task for _, task in scores(context)} == {"cook", "gift"}


def test_an_engine_without_logprobs_is_an_error(tmp_path: Path) -> None:
    class Silent(ScriptedGenerate):
        async def __call__(self, request: GenerateRequest) -> Generation:
            return replace(await super().__call__(request), prompt_logprobs=None)

    with pytest.raises(ValueError, match="no log-probs of what was read"):
        fit(Silent(lambda request: "x"), run_context(tmp_path))


def test_a_score_of_an_unknown_dialogue_is_refused(tmp_path: Path) -> None:
    context = run_context(tmp_path)
    fit(ScriptedGenerate(lambda request: "x"), context)
    with pytest.raises(DataError, match="eval-m0/question_fits: no dialogue 'eval-m0/"):
        read_checkpoint(context.store, "eval-m0", {pair.id: pair for pair in PAIRS})
