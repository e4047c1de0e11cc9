"""What an engine reads, against a plain forward pass: log-probs of first questions, the whole way.

The engine has just asked, as in an evaluation: the prompts lie in its prefix cache, and another
request samples from a nucleus beside those that are read.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stargate.actors.engines.engine import Engine
from stargate.actors.engines.spec import EngineSpec
from stargate.config.run import EngineConfig
from stargate.evaluation.question_fit import score_fits
from stargate.resources.models import resolve_model
from stargate.text.chat import load_chat_format
from stargate.types import Dialogue, Pair, Persona, StopReason, Task, Turn
from tests.integration.started_engine import request, sampled
from tests.integration.tiny_model import save_tiny_model
from tests.unit.test_pair_steps import run_context

pytestmark = [pytest.mark.integration, pytest.mark.engines]

CONFIG = EngineConfig(max_model_len=512, cpu_kv_cache_gb=0.2, dtype="float32")
ANN = Persona("ann", "Ann", "Ann likes tea.", "test", ("I like tea.",))
TEXTS = {
    "cook": "I would like to cook something tonight. What should I make for the two of us?",
    "trip": "Where shall I go for a long weekend in May, by train and not too far from here?",
    "gift": "My sister has her birthday next week and I have no idea at all what to give her.",
}
PAIRS = [Pair(Task(name, text, "test"), ANN, "gold") for name, text in TEXTS.items()]
QUESTIONS = {"cook": "Is there anything you don't eat?", "trip": "Why?", "gift": "What is her job?"}


def reference(folder: Path, prompts: dict[tuple[str, str], list[int]], asked: Any) -> Any:
    """The same by transformers in float32, one sequence at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {}
    for (own, task), prompt in prompts.items():
        ids = torch.tensor([[*prompt, *asked[own]]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        each = logprobs.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
        assert len(each) == len(asked[own])
        found[own, task] = float(each.sum())
    return found


def test_an_engine_reads_questions_as_a_plain_forward_pass_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    embedded = resolve_model("embedded")
    folder = save_tiny_model(tmp_path / "model", embedded, head_dim=32)
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    asked = {name: (*tokenizer.encode(text), 2) for name, text in QUESTIONS.items()}
    context = replace(run_context(tmp_path / "run"), chat=load_chat_format(str(folder)))
    played = {
        pair.id: [Dialogue(pair.id, pair.id, 0, 1, 0, 0, (_turn(pair, asked[pair.task.id]),))]
        for pair in PAIRS
    }
    prompts = {
        (own.task.id, other.task.id): list(
            context.chat.prompt_ids(context.views.questioner(other, ()))
        )
        for own in PAIRS
        for other in PAIRS
    }
    assert all(len(prompt) > 32 for prompt in prompts.values())  # more than a block of the cache

    async def read() -> int:
        spec = EngineSpec(
            "questioner", str(folder), CONFIG, cpu_cores="0", log_file=str(tmp_path / "log")
        )
        engine = Engine(spec)
        await engine.start()
        try:
            first = tuple(prompts["cook", "cook"])
            await engine.generate(request(first, sampled(0), "asks"))
            beside = replace(sampled(1, 64), logprobs=True)
            _, text = await asyncio.gather(
                score_fits(0, PAIRS, played, engine.generate, context),
                engine.generate(request(first, beside, "beside")),
            )
        finally:
            await engine.shutdown()
        assert text.logprobs is not None and len(text.logprobs) == len(text.token_ids)
        assert text.prompt_logprobs is None
        return text.num_cached_tokens

    assert asyncio.run(read()) >= 32
    rows = list(context.store.read("eval-m0", "question_fits"))
    got = {(row["pair_id"].split(":")[0], row["task_id"]): row["logprob"] for row in rows}
    expected = reference(folder, prompts, asked)
    assert got.keys() == expected.keys() and len(got) == 9
    # Between tasks they differ by far more than two float32 computations do.
    assert max(expected["cook", t] for t in TEXTS) - min(expected["cook", t] for t in TEXTS) > 0.1
    assert got == pytest.approx(expected, abs=0.01)


def _turn(pair: Pair, ids: tuple[int, ...]) -> Turn:
    fixed = StopReason.FIXED
    return Turn(QUESTIONS[pair.task.id], ids, StopReason.STOP, "No preference.", (), fixed)
