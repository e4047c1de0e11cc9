"""Preferences between first questions: which are made, the loss, and the tiny world."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from stargate.actors.training.batches import make_batch
from stargate.actors.training.objectives import make_objective
from stargate.algorithm.base import Material
from stargate.algorithm.dpo import Dpo
from stargate.config.algorithm import DpoConfig
from stargate.errors import RecordDropped
from stargate.types import Pair, TrainingExample
from tests.fakes.scripted import byte_chat, make_pair
from tests.unit.algorithm.test_turn_weighted import (
    QUESTIONS,
    BagOfBytes,
    group_of,
    logprobs_of,
    material,
)
from tests.unit.text.test_views import VIEWS

CPU = torch.device("cpu")


def learn(given: Material, dropped: list[RecordDropped]) -> list[TrainingExample]:
    return list(Dpo(DpoConfig(), VIEWS, byte_chat(), 1000).learn(given, dropped.append))


def facts(question: str, pair: Pair) -> Sequence[int]:
    if question == "g?":
        return (1,)
    return (0,) if question == {"1": "a?", "2": "b?"}[pair.task.id] else ()


def test_the_best_and_the_worst_first_question_are_a_pair_if_they_differ_enough() -> None:
    one, other = make_pair("1", "p"), make_pair("2", "q")
    groups = [group_of(one, ("c?",), ("a?",), ("g?",)), group_of(other, ("c?",), ("g?",))]
    dropped: list[RecordDropped] = []
    values = {pair.id: (8.0, 1.0) for pair in (one, other)}
    examples = learn(material(groups, values, facts), dropped)
    assert [(e.dialogue_id[-1], e.side) for e in examples] == [("1", "chosen"), ("0", "rejected")]
    assert len({e.group for e in examples}) == 1
    assert [problem.reason for problem in dropped] == ["no_preference"]  # 1 nat


def test_loss_and_gradient_are_those_of_a_naive_loop() -> None:
    torch.manual_seed(1)
    model, objective = BagOfBytes(), make_objective("preference", beta=0.1, nll=0.5)
    made = [
        TrainingExample("p", "d", (5, 6, 7, 8), (0, 0, 1.0, 1.0), "", None, (0, 0, -2.0, -1.0)),
        TrainingExample("p", "e", (5, 9, 3), (0, 1.0, 1.0), "", None, (0, -4.0, -0.5)),
        TrainingExample("q", "f", (5, 2), (0, 1.0), "", None, (0, -3.0)),
        TrainingExample("q", "g", (5, 4), (0, 1.0), "", None, (0, -1.0)),
    ]
    examples = [
        replace(example, group=example.pair_id, side=side)
        for example, side in zip(made, ("chosen", "rejected", "rejected", "chosen"), strict=True)
    ]

    def sums(example: TrainingExample) -> tuple[torch.Tensor, float, int]:
        own, reference, count = torch.zeros(()), 0.0, 0
        for place, weight in enumerate(example.weights):
            if weight:
                logits = model(torch.tensor([example.input_ids[:place]]))[0, -1]
                own = own + logits.log_softmax(-1)[example.input_ids[place]]
                assert example.reference_logprobs is not None
                reference += example.reference_logprobs[place]
                count += 1
        return own, reference, count

    naive = torch.zeros(())
    for c, r in ((0, 1), (3, 2)):
        (chosen, of_chosen, length), (rejected, of_rejected, _) = map(
            sums, (examples[c], examples[r])
        )
        margin = (chosen - of_chosen) - (rejected - of_rejected)
        naive = naive + torch.log1p(torch.exp(-0.1 * margin)) - 0.5 * chosen / length
    naive = naive / 2
    naive.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for order in ((0, 1, 2, 3), (2, 0, 3, 1)):
        batch = make_batch([examples[i] for i in order], False, CPU)
        loss = objective.loss(logprobs_of(model, batch), batch).sum()
        loss = loss / objective.denominator(examples)
        model.zero_grad()
        loss.backward()
        assert math.isclose(loss.item(), naive.item(), rel_tol=1e-5)
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


def test_without_a_reference_only_the_dummy_of_an_idle_rank_has_a_loss() -> None:
    model, objective = BagOfBytes(), make_objective("preference", beta=0.1, nll=1.0)
    dummy = make_batch([], False, CPU)
    assert objective.loss(logprobs_of(model, dummy), dummy).tolist() == [0.0]
    alone = make_batch([TrainingExample("p", "d", (5, 6), (0, 1.0), "", side="chosen")], False, CPU)
    with pytest.raises(ValueError, match="need reference log-probs"):
        objective.loss(logprobs_of(model, alone), alone)


@pytest.mark.parametrize(("values", "found"), [((8.0, 1.0), "ab"), ((5.0, 5.0), "gg")])
def test_the_best_question_of_each_task_is_found_and_answerability_does_not_find_it(
    values: tuple[float, ...], found: str
) -> None:
    """Fact 0, which a and b bring out, is what p0 alone has: answerability prefers g."""
    torch.manual_seed(0)
    model, objective = BagOfBytes(), make_objective("preference", beta=0.1, nll=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pairs = [make_pair(task, f"{task}p{n}") for task in "12" for n in range(2)]
    letters = torch.tensor(list(map(ord, QUESTIONS)))

    def told(question: str, pair: Pair) -> Sequence[int]:
        return facts(question, pair) if question == "g?" or pair.persona.id[-1] == "0" else ()

    groups = [group_of(pair, *((f"{letter}?",) for letter in QUESTIONS)) for pair in pairs]
    examples = learn(material(groups, {pair.id: values for pair in pairs}, told), [])
    batch = make_batch(examples, False, CPU)
    reference = logprobs_of(model, batch).detach()
    batch = replace(batch, reference_logprobs=reference)
    for _ in range(40):
        loss = objective.loss(logprobs_of(model, batch), batch).sum()
        optimizer.zero_grad()
        (loss / objective.denominator(examples)).backward()
        optimizer.step()
    prompts = [byte_chat().prompt_ids(VIEWS.questioner(pair, ())) for pair in pairs[::2]]
    best = [int(model(torch.tensor([p]))[0, -1, letters].argmax()) for p in prompts]
    assert "".join(QUESTIONS[i] for i in best) == found
