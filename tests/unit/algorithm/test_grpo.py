"""Policy gradients by turn: advantages, the clipped loss with its KL, and the tiny world."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from stargate.actors.training.batches import make_batch
from stargate.actors.training.objectives import make_objective
from stargate.algorithm.base import Material, ScoredGroup
from stargate.algorithm.grpo import Grpo
from stargate.config.algorithm import GrpoConfig
from stargate.config.run import RunConfig
from stargate.errors import RecordDropped
from stargate.types import StopReason, TrainingExample, TurnScore
from tests.fakes.scripted import byte_chat, make_pair
from tests.unit.algorithm.test_turn_weighted import (
    QUESTIONS,
    BagOfBytes,
    asks,
    group_of,
    logprobs_of,
    material,
    told_in_the_world,
    weight_of,
)
from tests.unit.text.test_views import VIEWS

CPU = torch.device("cpu")


def learn(
    given: Material, dropped: list[RecordDropped], config: GrpoConfig | None = None
) -> list[TrainingExample]:
    algorithm = Grpo(config or GrpoConfig(), VIEWS, byte_chat(), 1000)
    return list(algorithm.learn(given, dropped.append))


def sampled(group: ScoredGroup, cut: Sequence[str] = ()) -> ScoredGroup:
    """As an engine leaves it: token i of a question has log-prob -i - 1; those in `cut` are cut."""
    dialogues = [
        replace(
            dialogue,
            turns=tuple(
                replace(
                    turn,
                    question_logprobs=tuple(-1.0 - i for i in range(len(turn.question_ids))),
                    question_stop=StopReason.LENGTH if turn.question in cut else StopReason.STOP,
                )
                for turn in dialogue.turns
            ),
        )
        for dialogue in group.dialogues
    ]
    return replace(group, dialogues=dialogues)


def test_advantages_are_by_turn_of_both_signs_and_cut_off_questions_are_masked_and_counted() -> (
    None
):
    pair = make_pair()
    told = {"a?": (0,), "b?": (1,), "c?": (0, 1)}
    group = sampled(group_of(pair, ("a?", "b?"), ("b?", "x?"), ("c?", "y?")), cut=("c?", "y?"))
    dropped: list[RecordDropped] = []
    given = material([group], {pair.id: (4.0, 1.0)}, lambda question, _: told.get(question, ()))
    first, second = learn(given, dropped)
    # Turn 1: 4, 1, 5. Turn 2: b? 1, x? 0, y? 0.
    assert (weight_of(first, "a?"), weight_of(first, "b?")) == (1.0, 1.0)
    assert (weight_of(second, "b?"), weight_of(second, "x?")) == (-3.5, -0.5)
    assert first.behaviour_logprobs is not None
    engine = [p for p, w in zip(first.behaviour_logprobs, first.weights, strict=True) if w]
    assert engine == [-1.0, -2.0, -3.0] * 2  # a ? end
    reasons = [problem.reason for problem in dropped]
    assert reasons == ["question_cut_off", "question_cut_off", "nothing_to_learn"]
    assert "turn 1 of t0/t:p/2" in str(dropped[0])


def test_by_turns_without_facts_and_without_the_engines_logprobs() -> None:
    group = group_of(make_pair(), ("a?",), ("b?",))
    scores = {
        d.id: [TurnScore(d.id, 0, -9.0), TurnScore(d.id, 1, after)]
        for d, after in zip(group.dialogues, (-6.0, -8.0), strict=True)
    }
    group, config = replace(group, turn_scores=scores), GrpoConfig(credit="turns")
    near = {q: frozenset({q}) for q in ("a?", "b?")}
    dropped: list[RecordDropped] = []
    good, bad = learn(Material([sampled(group)], near), dropped, config)
    assert (weight_of(good, "a?"), weight_of(bad, "b?")) == (2.0, -2.0)
    assert dropped == []
    assert learn(Material([group], near), dropped, config) == []
    assert [problem.reason for problem in dropped] == ["no_logprobs", "no_logprobs"]


def test_loss_and_gradient_are_those_of_a_naive_loop() -> None:
    torch.manual_seed(1)
    model = BagOfBytes()
    objective = make_objective("clipped_policy_gradient", clip_ratio=0.2, kl=0.3)
    examples = [
        TrainingExample("p", "d", (5, 6, 7, 8), (0, 1.5, 0, -2.0), "", None, (0, -4.0, 0, -5.5)),
        TrainingExample("p", "e", (5, 9, 3), (0, -0.5, 3.0), "", None, (0, -4.5, -6.0)),
    ]
    # The old policy: new / old is 1.5, 0.5, 1.5, 0.5, so a rise and a fall are clipped, and a rise
    # and a fall that go the wrong way are not.
    old = iter([1.5, 0.5, 1.5, 0.5])
    naive, start = torch.zeros(()), []
    for example in examples:
        for place, advantage in enumerate(example.weights):
            if not advantage:
                continue
            logits = model(torch.tensor([example.input_ids[:place]]))[0, -1]
            new = logits.softmax(-1)[example.input_ids[place]]
            before = new.detach() / next(old)
            start.append(before.log())
            rho = new / before
            bound = min(max(float(rho.detach()), 0.8), 1.2)
            gain = min(rho * advantage, torch.tensor(bound * advantage), key=lambda one: one.item())
            assert example.reference_logprobs is not None
            ref = torch.tensor(example.reference_logprobs[place]).exp()
            naive = naive - gain + 0.3 * (ref / new - (ref / new).log() - 1)
    naive = naive / 4
    naive.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    batch = replace(make_batch(examples, False, CPU), start_logprobs=torch.stack(start))
    model.zero_grad()
    loss = objective.loss(logprobs_of(model, batch), batch).sum() / objective.denominator(examples)
    loss.backward()
    assert math.isclose(loss.item(), naive.item(), rel_tol=1e-5)
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


def test_a_batch_without_the_start_is_refused() -> None:
    objective = make_objective("clipped_policy_gradient", clip_ratio=0.2, kl=0.0)
    example = TrainingExample("p", "d", (5, 6), (0, 1.0), "", None, (0, -1.0))
    batch = make_batch([example], False, CPU)
    with pytest.raises(ValueError, match="need the log-probs of the start"):
        objective.loss(torch.tensor([-1.0]), batch)


@pytest.mark.parametrize(("values", "found"), [((8.0, 0.0, 1.0), "ab"), ((1.0, 1.0, 1.0), "gg")])
def test_the_best_question_of_each_task_is_found_and_answerability_does_not_find_it(
    values: tuple[float, ...], found: str
) -> None:
    """The world of test_turn_weighted: every other persona has fact 0, everybody fact 2.

    Each iteration samples from the policy, scores the samples with it, and makes three steps.
    """
    torch.manual_seed(0)
    model, reference, config = BagOfBytes(), BagOfBytes(), GrpoConfig()
    reference.load_state_dict(model.state_dict())
    objective = make_objective(config.objective, **config.objective_settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pairs = [make_pair(task, f"{task}p{n}") for task in "12" for n in range(4)]
    for _ in range(25):
        drawn = [torch.multinomial(asks(model, pair), 8, replacement=True) for pair in pairs]
        groups = [
            sampled(group_of(pair, *((f"{QUESTIONS[i]}?",) for i in of_pair)))
            for pair, of_pair in zip(pairs, drawn, strict=True)
        ]
        worths = {pair.id: values for pair in pairs}
        examples = learn(material(groups, worths, told_in_the_world), [])
        if not examples:  # all ask the same
            break
        batch = make_batch(examples, False, CPU)
        with torch.no_grad():
            start, anchor = logprobs_of(model, batch), logprobs_of(reference, batch)
        batch = replace(batch, start_logprobs=start, reference_logprobs=anchor)
        for _ in range(3):
            loss = objective.loss(logprobs_of(model, batch), batch).sum()
            optimizer.zero_grad()
            (loss / objective.denominator(examples)).backward()
            optimizer.step()
    best = [int(asks(model, pair).argmax()) for pair in pairs[::4]]
    assert "".join(QUESTIONS[i] for i in best) == found


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("temperature", 0.9, "got 0.9, 1 and iteration"),
        ("top_p", 0.9, "got 1, 0.9 and iteration"),
        ("examples", "all", "got 1, 1 and all"),
    ],
)
def test_only_the_policys_own_samples_are_learned_from(key: str, value: object, got: str) -> None:
    sampling: dict[str, object] = {"temperature": 1.0, "top_p": 1.0}
    config: dict[str, object] = {"algorithm": {"type": "grpo"}, "trainer": {}}
    fitting = {**config, "questioner": {"sampling": sampling}}
    assert RunConfig.model_validate(fitting).algorithm.start_from == "previous"
    changed = {**sampling, key: value} if key in sampling else sampling
    trainer = {} if key in sampling else {key: value}
    with pytest.raises(ValueError, match=got):
        RunConfig.model_validate(
            {**config, "questioner": {"sampling": changed}, "trainer": trainer}
        )
