"""Turn-weighted: rewards and weights on literal dialogues, and a tiny world that it must solve."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from stargate.actors.training.batches import make_batch
from stargate.actors.training.objectives import make_objective
from stargate.algorithm.base import Material, ScoredGroup
from stargate.algorithm.rewards import area_under_curve, leave_one_out, turn_gains
from stargate.algorithm.turn_weighted import TurnWeighted
from stargate.config.algorithm import TurnWeightedConfig
from stargate.errors import RecordDropped
from stargate.types import Dialogue, Pair, StopReason, TrainingExample, TurnScore
from tests.fakes.scripted import ASSISTANT, END, byte_chat, make_pair, make_turn
from tests.unit.text.test_views import VIEWS

QUESTIONS = "abcdg"


def played(pair: Pair, index: int, *questions: str) -> Dialogue:
    turns = tuple(make_turn(question, "-") for question in questions)
    return Dialogue(f"t0/{pair.id}/{index}", pair.id, index, len(turns), 0, 0, turns)


def group_of(pair: Pair, *dialogues: Sequence[str]) -> ScoredGroup:
    return ScoredGroup(pair, [played(pair, i, *asked) for i, asked in enumerate(dialogues)], ())


def material(
    groups: Sequence[ScoredGroup],
    values: Mapping[str, Sequence[float]],
    facts: Callable[[str, Pair], Sequence[int]],
) -> Material:
    """Every wording is near to itself only."""
    texts = {t.question for g in groups for d in g.dialogues for t in d.turns}
    brings_out = {(q, g.pair.persona.id): facts(q, g.pair) for q in texts for g in groups}
    return Material(groups, {q: frozenset({q}) for q in texts}, values, brings_out)


def learn(
    given: Material, dropped: list[RecordDropped] | None = None, **options: object
) -> list[TrainingExample]:
    config = TurnWeightedConfig.model_validate(options)
    drop = ([] if dropped is None else dropped).append
    return list(TurnWeighted(config, VIEWS, byte_chat(), 1000).learn(given, drop))


def weight_of(example: TrainingExample, question: str) -> float:
    ids = tuple(map(ord, question))
    places = [i for i in range(len(example.weights)) if example.input_ids[i : i + len(ids)] == ids]
    return example.weights[places[-1]]


def test_a_turn_gain_is_clipped_and_may_be_contrasted() -> None:
    scores = [
        TurnScore("d", 0, -20.0, (-10.0, -12.0)),
        TurnScore("d", 1, -18.0, (-9.0, -12.0)),
        TurnScore("d", 2, -3.0, (-9.0, -12.0)),
        TurnScore("d", 3, -30.0, (-9.0, -12.0)),
    ]
    assert turn_gains(scores, clip=5.0) == [2.0, 5.0, -5.0]
    assert turn_gains(scores, clip=5.0, contrast=True) == [1.5, 5.0, -5.0]


def test_siblings_and_ranks() -> None:
    assert leave_one_out([1.0, 2.0, 6.0]) == [-3.0, -1.5, 4.5]
    assert leave_one_out([3.0]) == [0.0]
    assert area_under_curve([3.0, 1.0, 1.0], [True, True, False]) == 0.75
    assert area_under_curve([3.0], [True]) is None


def test_a_question_counts_by_its_mean_over_all_personas_of_the_task() -> None:
    p, q = make_pair(persona="p"), make_pair(persona="q")
    groups = [group_of(p, ("a?", "b?")), group_of(q, ("b?", "b?"))]

    def facts(question: str, pair: Pair) -> Sequence[int]:
        # "a?" brings fact 0 out of both, "b?" fact 1 out of q alone.
        return (0,) if question == "a?" else (1,) if pair is q else ()

    dropped: list[RecordDropped] = []
    given = material(groups, {p.id: (4.0, 0.0), q.id: (40.0, 2.0)}, facts)
    [example] = learn(given, dropped)
    # Turn 1: a? (4 + clipped 5) / 2 = 4.5, b? 2 / 2 = 1: 3.5 above its sibling, over the scale 4.
    # At turn 2 no dialogue of the pair has a sibling, and nothing tells a fact twice.
    assert example.dialogue_id == "t0/t:p/0"
    assert weight_of(example, "a?") == 3.5 / 4
    ids = (*map(ord, "P: t? ASK"), END, ord("\n"), ASSISTANT, *map(ord, "a?"), END)
    assert example.input_ids[1:] == ids  # the prompt that the engine saw, to the last learned token
    assert [problem.reason for problem in dropped] == ["nothing_to_learn"]
    [plain] = learn(given, view="plain")
    assert plain.input_ids[1 : 1 + len("P: t?")] == tuple(map(ord, "P: t?"))
    assert ord("K") not in plain.input_ids


def test_cut_off_questions_are_not_learned_and_copies_in_other_tasks_divide() -> None:
    one, other = make_pair("s"), make_pair("t")
    groups = [group_of(pair, ("a?",), ("b?",)) for pair in (one, other)]
    values = {pair.id: (4.0, 0.0) for pair in (one, other)}

    def facts(question: str, _: Pair) -> Sequence[int]:
        return (0,) if question == "a?" else ()

    both = learn(material(groups, values, facts))
    assert [weight_of(example, "a?") for example in both] == [0.5, 0.5]
    [cut] = groups[0].dialogues[:1]
    turns = (replace(cut.turns[0], question_stop=StopReason.LENGTH),)
    groups[0] = replace(groups[0], dialogues=[replace(cut, turns=turns), *groups[0].dialogues[1:]])
    [left] = learn(material(groups, values, facts))
    assert (left.pair_id, weight_of(left, "a?")) == (other.id, 1.0)


def test_recombined_questions_meet_and_a_told_fact_is_worth_nothing_again() -> None:
    pair = make_pair(facts=("I like tea.", "I own a dog."))
    groups = [group_of(pair, ("a?", "z?"), ("b?", "y?"), ("c?", "z?"))]
    told = {"a?": (0,), "c?": (0,), "b?": (1,)}
    given = material(groups, {pair.id: (5.0, 3.0)}, lambda question, _: told.get(question, ()))
    examples = learn(given, recombine="task")
    texts = ["".join(map(chr, e.input_ids)) for e in examples]
    assert ["a?" in texts[0], "I like tea." in texts[0], "b?" in texts[0]] == [True, True, True]
    assert "c?" not in texts[0]  # its fact was told
    # After a?: b? 3, the four others 0.
    assert weight_of(examples[0], "b?") == 3 / 4


def test_a_question_asked_about_another_task_may_be_the_best_one() -> None:
    groups = [group_of(make_pair("s"), ("a?",), ("z?",)), group_of(make_pair("t"), ("b?",))]
    told = {"a?": (0,), "b?": (1,)}
    values = {"s:p": (0.0, 4.0), "t:p": (4.0, 0.0)}
    given = material(groups, values, lambda question, _: told.get(question, ()))
    assert learn(given, recombine="task") == []  # what was asked about a task brings it nothing
    examples = learn(given, recombine="split")
    assert [(e.pair_id, e.dialogue_id) for e in examples] == [
        ("s:p", "t0/t:p/0"),
        ("t:p", "t0/s:p/0"),
    ]
    # Of three questions one is worth 4, the others nothing.
    assert [weight_of(examples[0], "b?"), weight_of(examples[1], "a?")] == [1.0, 1.0]
    assert len(learn(given, recombine="split", num_lists=1)) == 2  # of each task


def test_of_questions_worth_the_same_the_likelier_is_put_first_and_lists_differ() -> None:
    pair = make_pair(facts=("I like tea.", "I own a dog.", "I sing."))
    groups = [group_of(pair, ("a?", "c?"), ("b?", "d?"))]
    told = {"a?": (0,), "b?": (0,), "c?": (1,), "d?": (2,)}
    values = {pair.id: (4.0, 2.0, 1.5)}
    given = material(groups, values, lambda question, _: told[question])
    fit = {("a?", "t"): -9.0, ("b?", "t"): -4.0, ("c?", "t"): -6.0, ("d?", "t"): -6.0}

    def lists(given: Material, **options: object) -> list[str]:
        found = []
        for example in learn(given, recombine="task", **options):
            text = "".join(map(chr, example.input_ids))
            found.append("".join(sorted("abcd", key=lambda q: text.rfind(f"{q}?")))[-2:])
        return found

    # The second list has c? after b? no more, which the first one has after a?.
    assert lists(given, num_lists=2) == ["ac", "bd"]
    # b? instead of a?, the likelier one: 4 - 0.1 x 4 against 4 - 0.1 x 9.
    assert lists(replace(given, fit=fit), fit=0.1, num_lists=2) == ["bc", "ad"]
    assert TurnWeighted(
        TurnWeightedConfig(recombine="task", fit=0.1), VIEWS, byte_chat(), 1000
    ).needs.question_fit


def test_by_turns_without_facts() -> None:
    pair = make_pair()
    group = group_of(pair, ("a?",), ("b?",))
    scores = {
        d.id: [TurnScore(d.id, 0, -9.0), TurnScore(d.id, 1, after)]
        for d, after in zip(group.dialogues, (-6.0, -8.0), strict=True)
    }
    given = Material(
        [replace(group, turn_scores=scores)], {q: frozenset({q}) for q in ("a?", "b?")}
    )
    [example] = learn(given, credit="turns")
    assert weight_of(example, "a?") == 2 / 4


class BagOfBytes(torch.nn.Module):
    """The next byte by the bytes so far: 2,048 + 2,176 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(128, 16)
        self.head = torch.nn.Linear(16, 128)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(ids).cumsum(1)))  # type: ignore[no-any-return]


def logprobs_of(model: BagOfBytes, batch: object) -> torch.Tensor:
    logits = model(batch.inputs["input_ids"])[batch.rows, batch.columns]  # type: ignore[attr-defined]
    return logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]  # type: ignore[attr-defined]


def asks(model: BagOfBytes, pair: Pair) -> torch.Tensor:
    """How likely each of the QUESTIONS is as the first one."""
    prompt = byte_chat().prompt_ids(VIEWS.questioner(pair, ()))
    letters = torch.tensor(list(map(ord, QUESTIONS)))
    with torch.no_grad():
        return model(torch.tensor([prompt]))[0, -1, letters].softmax(-1)


def told_in_the_world(question: str, pair: Pair) -> Sequence[int]:
    """Question g is answered by everybody with fact 2; a in task 1 and b in task 2 by every other
    persona with fact 0; c and d by nobody.
    """
    if question == "g?":
        return (2,)
    best = {"1": "a?", "2": "b?"}[pair.task.id]
    return (0,) if question == best and pair.persona.id[-1] in "02" else ()


def favourites(facts_are_worth: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """What the policy asks most in each task after 15 iterations. Two tasks, four personas."""
    torch.manual_seed(0)
    model, objective = BagOfBytes(), make_objective("weighted_nll")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    pairs = [make_pair(task, f"{task}p{n}") for task in "12" for n in range(4)]
    for _ in range(15):
        groups = []
        for pair in pairs:
            drawn = torch.multinomial(asks(model, pair), 8, replacement=True)
            groups.append(group_of(pair, *((f"{QUESTIONS[i]}?",) for i in drawn)))
        values = {pair.id: facts_are_worth["all"] for pair in pairs}
        examples = learn(material(groups, values, told_in_the_world))
        for _ in range(3 if examples else 0):  # none where all ask the same
            batch = make_batch(examples, False, torch.device("cpu"))
            loss = objective.loss(logprobs_of(model, batch), batch).sum()
            optimizer.zero_grad()
            (loss / objective.denominator(examples)).backward()
            optimizer.step()
    return {pair.task.id: QUESTIONS[int(asks(model, pair).argmax())] for pair in pairs}


def test_the_best_question_of_each_task_is_found_and_answerability_does_not_find_it() -> None:
    assert favourites({"all": (8.0, 0.0, 1.0)}) == {"1": "a", "2": "b"}
    assert favourites({"all": (1.0, 1.0, 1.0)}) == {"1": "g", "2": "g"}


def test_loss_and_gradient_are_those_of_a_naive_loop() -> None:
    torch.manual_seed(1)
    model, objective = BagOfBytes(), make_objective("weighted_nll")
    examples = [
        TrainingExample("p", "d", (5, 6, 7, 8), (0.0, 0.5, 0.0, 2.0), ""),
        TrainingExample("p", "e", (5, 9, 3), (0.0, 0.25, 0.25), ""),
    ]
    naive = torch.zeros(())
    for example in examples:
        for place, weight in enumerate(example.weights):
            if weight:
                logits = model(torch.tensor([example.input_ids[:place]]))[0, -1]
                naive = naive - weight * logits.log_softmax(-1)[example.input_ids[place]]
    naive = naive / 3.0
    naive.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    batch = make_batch(examples, False, torch.device("cpu"))
    loss = objective.loss(logprobs_of(model, batch), batch).sum() / objective.denominator(examples)
    loss.backward()
    assert math.isclose(loss.item(), naive.item(), rel_tol=1e-6)
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="recombine needs credit: facts"):
        TurnWeightedConfig(credit="turns", recombine="task")
    with pytest.raises(ValueError, match="fit needs recombine"):
        TurnWeightedConfig(fit=0.1)
    with pytest.raises(ValueError, match="contrast needs credit: turns"):
        TurnWeightedConfig(contrast=True)
