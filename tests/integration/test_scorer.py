"""The scorer on the embedded model, against a naive float32 pass over one sequence at a time."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stargate.actors.scoring.scorer import Scorer, ScorerSpec, check_request
from stargate.config.run import ScorerConfig
from stargate.errors import DataError, DivergenceError, EngineError, ModelError, RecordDropped
from stargate.types import ScoreRequest, ScoreResult
from tests.integration.tiny_model import (
    damage,
    save_gemma3_model,
    save_sink_model,
    save_tiny_model,
    save_windowed_model,
)

pytestmark = pytest.mark.integration

NUM_THREADS = min(2, os.cpu_count() or 1)

CHATS = (
    (
        "My name is Rosa. Can you plan my meals for the coming week?",
        ("Is there anything that you don't eat?", "I'm allergic to nuts, and my son hates fish."),
        ("How much time do you have to cook?", "On weekdays twenty minutes, not more."),
    ),
    (
        "My name is Emre. How do I start running?",
        ("Do you have any injuries?", "My left knee was operated on two years ago."),
    ),
    ("My name is Ingrid. Suggest a birthday present for my brother.",),
    (
        "My name is Tomasz. I have to give a speech at a wedding and I don't know how to begin. "
        "I barely know most of the guests and I get nervous in front of people. What should I say?",
        ("How do you know the couple?", "The groom is my colleague, we repair lifts together."),
        ("How long should the speech be?", "Three minutes. Nobody has told me what is customary."),
        ("Do you want it to be funny?", "A little. I once got stuck in a lift with him."),
    ),
)
GOLDS = (
    "Rosa, here is a week of dinners that take twenty minutes and contain neither nuts nor fish: "
    "Monday pasta with peas and ham, Tuesday fried rice with egg, Wednesday bean quesadillas, "
    "Thursday chicken in tomato sauce, Friday omelettes with salad.",
    "Start slowly, Emre. Because of your knee, walk for five minutes, run for one, and repeat this "
    "six times, three days a week, on soft ground.",
    "A book about the sea, Ingrid: he told you how much he misses it.",
    'Begin with the lift, Tomasz: "The first hour that I spent alone with the groom, neither of us '
    'could leave." Then say what you learned about him in that hour, and raise your glass.',
)


@pytest.fixture(scope="module")
def requests(embedded: Path) -> list[ScoreRequest]:
    """Every gold after every chat: contexts of about 50 to 200 tokens, golds of 5 to 90."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded)
    golds = [tuple(tokenizer(f"{g}<|im_end|>")["input_ids"]) for g in GOLDS]
    made = []
    for c, (task, *turns) in enumerate(CHATS):
        messages = [{"role": "user", "content": task}]
        for question, answer in turns:
            messages.append({"role": "assistant", "content": question})
            messages.append({"role": "user", "content": answer})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        made += [ScoreRequest(f"{c}:{g}", tuple(ids), (gold,)) for g, gold in enumerate(golds)]
    return made


@pytest.fixture(scope="module")
def reference(embedded: Path, requests: list[ScoreRequest]) -> list[list[float]]:
    """Full logits in float32, one sequence at a time, no cache, no padding."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(NUM_THREADS)
    model: Any = AutoModelForCausalLM.from_pretrained(embedded, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for request in requests:
            context, gold = request.context_ids, request.golds[0]
            logits = model(torch.tensor([context + gold]), use_cache=False).logits[0]
            logprobs = logits.log_softmax(-1)
            found.append(
                [float(logprobs[len(context) + k - 1, token]) for k, token in enumerate(gold)]
            )
    return found


def started(folder: Path, dtype: str, max_batch_tokens: int = 1024) -> Scorer:
    config = ScorerConfig(dtype=dtype, max_batch_tokens=max_batch_tokens)  # type: ignore[arg-type]
    scorer = Scorer(ScorerSpec(str(folder), config, num_threads=NUM_THREADS))
    scorer.start()
    return scorer


@pytest.fixture(scope="module")
def float32(embedded: Path) -> Iterator[Scorer]:
    scorer = started(embedded, "float32")
    yield scorer
    scorer.shutdown()


@pytest.fixture(scope="module")
def bfloat16(embedded: Path) -> Iterator[Scorer]:
    scorer = started(embedded, "bfloat16")
    yield scorer
    scorer.shutdown()


MANY_GOLDS = tuple((5, 6, last) for last in range(8))


def score(scorer: Scorer, requests: list[ScoreRequest]) -> list[ScoreResult]:
    return asyncio.run(scorer.score(requests))


def differences(results: list[ScoreResult], reference: list[list[float]]) -> tuple[float, float]:
    """The largest difference of a single token, and of a gold's mean per token."""
    worst_token = worst_gold = 0.0
    for result, expected in zip(results, reference, strict=True):
        (got,) = result.token_logprobs
        gaps = [a - b for a, b in zip(got, expected, strict=True)]
        worst_token = max(worst_token, *map(abs, gaps))
        worst_gold = max(worst_gold, abs(sum(gaps)) / len(gaps))
    return worst_token, worst_gold


def test_float32_equals_the_reference(
    float32: Scorer, requests: list[ScoreRequest], reference: list[list[float]]
) -> None:
    worst_token, worst_gold = differences(score(float32, requests), reference)
    print(f"float32: worst token {worst_token:.6f}, worst gold {worst_gold:.6f} nats per token")
    assert worst_token < 0.001


def test_bfloat16_is_within_a_twentieth_of_a_nat_per_gold_token(
    bfloat16: Scorer, requests: list[ScoreRequest], reference: list[list[float]]
) -> None:
    worst_token, worst_gold = differences(score(bfloat16, requests), reference)
    print(f"bfloat16: worst token {worst_token:.4f}, worst gold {worst_gold:.4f} nats per token")
    assert worst_gold < 0.05
    assert worst_token < 0.5


def test_sums_are_over_gold_tokens_only(
    float32: Scorer, requests: list[ScoreRequest], reference: list[list[float]]
) -> None:
    (result,) = score(float32, requests[2:3])
    assert len(result.token_logprobs[0]) == len(requests[2].golds[0])
    assert result.sums[0] == pytest.approx(sum(reference[2]), abs=0.001)


def test_batching_and_padding_do_not_change_the_result(
    embedded: Path, float32: Scorer, requests: list[ScoreRequest], reference: list[list[float]]
) -> None:
    alone = [score(float32, [request])[0] for request in requests[::5]]
    together = score(float32, requests)[::5]
    worst, _ = differences(alone, [list(r.token_logprobs[0]) for r in together])
    print(f"float32: alone against together {worst:.6f} nats on the worst token")
    assert worst < 0.001


def test_batching_moves_bfloat16_by_no_more_than_rounding(
    bfloat16: Scorer, requests: list[ScoreRequest]
) -> None:
    alone = [score(bfloat16, [request])[0] for request in requests[::5]]
    together = score(bfloat16, requests)[::5]
    worst, worst_gold = differences(alone, [list(r.token_logprobs[0]) for r in together])
    print(f"bfloat16: alone against together {worst:.4f}, per gold token {worst_gold:.4f} nats")
    assert worst_gold < 0.02


@pytest.mark.parametrize("max_batch_tokens", [1, 1024])
def test_golds_that_share_a_context_score_as_if_alone(
    float32: Scorer,
    embedded: Path,
    requests: list[ScoreRequest],
    reference: list[list[float]],
    max_batch_tokens: int,
) -> None:
    shared = [
        ScoreRequest(f"chat {c}", requests[4 * c].context_ids, tuple(r.golds[0] for r in four))
        for c, four in enumerate(requests[start : start + 4] for start in range(0, 16, 4))
    ]
    one_token = ScoreRequest("short", shared[0].context_ids, (shared[0].golds[0][:1], (2,)))
    scorer = float32 if max_batch_tokens == 1024 else started(embedded, "float32", 1)
    results = score(scorer, [shared[0], *shared[1:], one_token])
    singles = [
        ScoreResult(f"{c}:{g}", (golds,))
        for c, result in enumerate(results[:4])
        for g, golds in enumerate(result.token_logprobs)
    ]
    worst, _ = differences(singles, reference)
    print(f"float32: shared context against reference {worst:.6f} nats on the worst token")
    assert worst < 0.001
    assert results[4].token_logprobs[0][0] == pytest.approx(reference[0][0], abs=0.001)
    if scorer is not float32:
        scorer.shutdown()


def test_shared_contexts_are_computed_once(tiny: Path) -> None:
    scorer = started(tiny, "float32")
    context = tuple(range(10, 110))
    score(scorer, [ScoreRequest("x", context, MANY_GOLDS)])
    assert scorer.stats().num_tokens == 100 + 8 * 2
    # Equal texts too, as the gold before any turn is for all dialogues of a pair.
    results = score(scorer, [ScoreRequest(key, context, ((5, 6, 7),)) for key in "yz"])
    assert scorer.stats().num_tokens == 100 + 8 * 2 + 100 + 2
    assert results[0].token_logprobs == results[1].token_logprobs
    assert [result.key for result in results] == ["y", "z"]
    scorer.shutdown()


def test_what_dialogues_of_a_pair_have_in_common_is_computed_once(
    float32: Scorer, requests: list[ScoreRequest], reference: list[list[float]]
) -> None:
    """A chat, its continuations and its beginning: each scores as it does alone."""
    gold = requests[0].golds[0]
    whole = requests[0].context_ids
    contexts = [whole, whole[:-5], whole[:-5] + requests[1].context_ids[-29:], whole[:20]]
    together = [ScoreRequest(f"c{n}", ids, (gold, gold[:7])) for n, ids in enumerate(contexts)]
    before = float32.stats().num_tokens
    shared = score(float32, together)
    computed = float32.stats().num_tokens - before
    assert computed == len(whole) + 29 + 4 * (len(gold) - 1 + 6)
    for request, result in zip(together, shared, strict=True):
        [alone] = score(float32, [ScoreRequest("alone", request.context_ids, (gold,))])
        expected = [list(alone.token_logprobs[0])]
        worst, _ = differences([ScoreResult("x", result.token_logprobs[:1])], expected)
        assert worst < 0.001
        assert result.token_logprobs[1] == pytest.approx(expected[0][:7], abs=0.001)
    assert shared[0].token_logprobs[0] == pytest.approx(reference[0], abs=0.001)


def naive(folder: Path, requests: list[ScoreRequest]) -> list[tuple[tuple[float, ...], ...]]:
    """Full logits in float32, one sequence at a time, by the model's own attention."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for request in requests:
        of_one = []
        for gold in request.golds:
            ids = torch.tensor([[*request.context_ids, *gold]])
            with torch.inference_mode():
                logits = model(ids, use_cache=False).logits[0, len(request.context_ids) - 1 : -1]
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(gold)[:, None])[:, 0]
            of_one.append(tuple(chosen.tolist()))
        found.append(tuple(of_one))
    return found


SEVERAL = [
    ScoreRequest("a", tuple(range(10, 60)), ((5, 6, 7), tuple(range(8, 40)))),
    ScoreRequest("b", tuple(range(10, 50)), ((5, 6),)),
]


def test_a_model_that_can_not_share_scores_the_same_and_says_so(
    tmp_path: Path, embedded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Attention sinks: our attention does not know them."""
    folder = save_sink_model(tmp_path / "sinks", embedded)
    with caplog.at_level("WARNING"):
        scorer = started(folder, "float32")
    assert "no gold shares its context" in caplog.text
    assert "its code has an attention of its own" in caplog.text
    for result, expected in zip(score(scorer, SEVERAL), naive(folder, SEVERAL), strict=True):
        for one, other in zip(result.token_logprobs, expected, strict=True):
            assert one == pytest.approx(other, abs=0.001)
    assert scorer.stats().num_tokens == 50 + 2 + 50 + 31 + 40 + 1
    scorer.shutdown()


@pytest.mark.parametrize("save", [save_windowed_model, save_gemma3_model])
def test_layers_with_windows_look_as_far_back_in_a_shared_row(
    tmp_path: Path, embedded: Path, save: Any
) -> None:
    """Windows of 4 and of 16 tokens: within a gold, across its context's end, in a long context."""
    folder = save(tmp_path / "windows", embedded)
    long = ScoreRequest("long", tuple(range(10, 320)), ((5, 6, 7),))
    scorer = started(folder, "float32")
    asked = [*SEVERAL, long]
    for result, expected in zip(score(scorer, asked), naive(folder, asked), strict=True):
        for one, other in zip(result.token_logprobs, expected, strict=True):
            assert one == pytest.approx(other, abs=0.001)
    # The contexts are one text's beginnings: each token is computed once.
    assert scorer.stats().num_tokens == 310 + 2 + 31 + 1 + 2
    scorer.shutdown()


def test_a_model_that_fails_the_trial_of_sharing_is_found_out(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its attention sees everything before it in the row: other texts' tokens too."""
    from stargate.actors.scoring import gold_model
    from stargate.actors.scoring.prefix_tree import Piece
    from stargate.actors.scoring.tree_attention import AttentionPlan

    def leaking(pieces: list[Piece], device: str) -> AttentionPlan:
        return AttentionPlan(
            [Piece(p.start, p.stop, ((0, p.start),) * (p.start > 0)) for p in pieces], device
        )

    monkeypatch.setattr(gold_model, "AttentionPlan", leaking)
    with caplog.at_level("WARNING"):
        scorer = started(tiny, "float32")
    assert "log-probs differ by" in caplog.text
    score(scorer, [ScoreRequest("x", tuple(range(10, 110)), MANY_GOLDS)])
    assert scorer.stats().num_tokens == 8 * 102
    scorer.shutdown()


def test_concurrent_calls_meet_in_common_passes(tiny: Path) -> None:
    scorer = started(tiny, "float32")
    asked = [ScoreRequest(f"k{n}", tuple(range(10, 30 + n)), ((7, 8, 9),)) for n in range(20)]

    async def at_once() -> list[list[ScoreResult]]:
        return await asyncio.gather(*(scorer.score([request]) for request in asked))

    results = asyncio.run(at_once())
    assert [r.key for (r,) in results] == [request.key for request in asked]
    assert scorer.stats().num_requests == 20
    assert scorer.stats().num_passes < 20
    scorer.shutdown()


def test_a_request_without_golds_has_no_scores(tiny: Path) -> None:
    scorer = started(tiny, "float32")
    assert score(scorer, [ScoreRequest("x", (5, 6), ())]) == [ScoreResult("x", ())]
    assert score(scorer, []) == []
    scorer.shutdown()


def test_nan_names_its_record_and_spares_the_other_calls(tiny: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "damaged", tiny, tied=False)
    damage(folder, token=4000)
    scorer = started(folder, "float32")

    async def both() -> list[Any]:
        return await asyncio.gather(
            scorer.score([ScoreRequest("good", (5, 6), ((7, 8),))]),
            scorer.score([ScoreRequest("pair 3", (5, 4000), ((7, 8),))]),
            return_exceptions=True,
        )

    good, bad = asyncio.run(both())
    assert good[0].key == "good"
    assert isinstance(bad, DivergenceError)
    assert str(bad) == "pair 3: gold 0 has a log-prob that is not finite"
    assert score(scorer, [ScoreRequest("later", (5, 6), ((7,),))])[0].key == "later"
    scorer.shutdown()


def test_requests_that_can_not_be_scored_are_refused_by_name(tiny: Path) -> None:
    scorer = started(tiny, "float32")
    with pytest.raises(RecordDropped) as dropped:
        score(scorer, [ScoreRequest("p1", (5,) * 510, ((7, 8, 9),))])
    assert (dropped.value.reason, dropped.value.where) == ("prompt_too_long", "p1")
    assert "513 tokens, the model takes 512" in str(dropped.value)
    with pytest.raises(RecordDropped) as dropped:
        score(scorer, [ScoreRequest("p2", (5,), ((7,), ()))])
    assert (dropped.value.reason, dropped.value.where) == ("empty_gold", "p2")
    with pytest.raises(DataError, match="p3: token id 49152 is outside the model's 49152"):
        score(scorer, [ScoreRequest("p3", (5,), ((49152,),))])
    assert score(scorer, [ScoreRequest("fits", (5,) * 509, ((7, 8, 9),))])[0].key == "fits"
    scorer.shutdown()
    scorer.shutdown()
    with pytest.raises(EngineError, match="before start"):
        score(scorer, [ScoreRequest("late", (5,), ((7,),))])


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(RecordDropped, match="empty_context"):
        check_request(ScoreRequest("p", (), ((7,),)), 512, 100)


def test_a_folder_without_weights_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can't be loaded"):
        Scorer(ScorerSpec(str(tmp_path), ScorerConfig())).start()
