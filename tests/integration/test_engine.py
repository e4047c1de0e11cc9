"""Engine on real vLLM, with the embedded model: texts, seeds, limits, weight pushes and failures.

Two engines are started in all, without Ray: `engine` from the embedded model and `fresh` from a
perturbed copy of it. Tests run in the order of this file; the last ones break the engines.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from stargate.actors.engines.engine import Engine
from stargate.actors.rpc.batched_calls import BatchedCaller
from stargate.errors import EngineError, ModelError, RecordDropped
from stargate.resources.machine import SHARED_MEMORY
from stargate.resources.models import resolve_model
from stargate.types import GenerateRequest, Generation, Sampling, StopReason
from tests.integration.started_engine import Run, Started, all_texts, request, sampled, started

pytestmark = [pytest.mark.integration, pytest.mark.engines]

QUESTION = "I would like to cook something tonight. What should I make for the two of us?"


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Awaitable[Any]], Any]]:
    """Runs a coroutine; all in one event loop, because an engine lives in one."""
    with asyncio.Runner() as runner:

        async def awaited(awaitable: Awaitable[Any]) -> Any:
            return await awaitable

        yield lambda awaitable: runner.run(awaited(awaitable))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve_model("embedded"))


@pytest.fixture(scope="module")
def perturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with seeded noise on every weight, saved as a trainer saves it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("perturbed")
    source = resolve_model("embedded")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight += (0.05 * weight.float().std() * noise).to(weight.dtype)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(run: Run[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    log = tmp_path_factory.mktemp("logs") / "engine.log"
    yield from started(run, resolve_model("embedded"), log)


@pytest.fixture(scope="module")
def fresh(
    run: Run[Any], perturbed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    """An engine started from the perturbed weights, as a restarted one is after a push."""
    log = tmp_path_factory.mktemp("logs") / "fresh.log"
    yield from started(run, perturbed, log, policy_version=4)


@pytest.fixture
def prompt(tokenizer: Any) -> Callable[[str], tuple[int, ...]]:
    def render(text: str) -> tuple[int, ...]:
        messages = [{"role": "user", "content": text}]
        return tuple(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        )

    return render


Prompt = Callable[[str], tuple[int, ...]]


def test_a_start_reports_the_engine_and_keeps_its_noise_in_the_log(
    run: Run[Any], engine: Started
) -> None:
    assert engine.info.max_model_len == 512
    assert engine.info.pid == psutil.Process().pid
    assert "Initializing a V1 LLM engine" in engine.log.read_text()
    assert run(engine.engine.reported_version()) == 0


def test_the_core_computes_bound_to_its_cpu_core(engine: Started) -> None:
    """No worker process beside it, and every thread where the spec says."""
    assert not [p for p in engine.processes if "Worker" in " ".join(p.cmdline())]
    core = engine.process("EngineCore")
    threads = {os.sched_getaffinity(thread.id) == {0} for thread in core.threads()}
    assert threads == {True}
    assert "OMP_PLACES" not in os.environ  # set for the core only


def test_a_text_ends_by_length_or_with_its_end_token(
    run: Run[Any], engine: Started, prompt: Prompt, tokenizer: Any
) -> None:
    ids = prompt("Answer with one word: what is the capital of France?")
    short = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=3, seed=0)
    cut: Generation = run(engine.engine.generate(request(ids, short)))
    assert cut.stop is StopReason.LENGTH
    assert len(cut.token_ids) == 3
    long = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=200, seed=0)
    whole: Generation = run(engine.engine.generate(request(ids, long)))
    assert whole.stop is StopReason.STOP
    assert whole.token_ids[:3] == cut.token_ids
    # The end token that was sampled is among the ids, once, and not in the text.
    assert whole.token_ids.index(tokenizer.eos_token_id) == len(whole.token_ids) - 1
    assert whole.text == tokenizer.decode(whole.token_ids[:-1])
    assert "<|" not in whole.text
    assert whole.num_prompt_tokens == len(ids)
    # What else a template ends turns with is a stop as well, and is kept.
    other = request(ids, replace(long, stop_ids=(whole.token_ids[2],)))
    stopped: Generation = run(engine.engine.generate(other))
    assert (stopped.stop, stopped.token_ids) == (StopReason.STOP, whole.token_ids[:3])
    assert whole.policy_version == 0


def test_a_prefix_is_found_again(run: Run[Any], engine: Started, prompt: Prompt) -> None:
    ids = prompt("Which flowers grow well on a balcony that faces north and gets no sun at all?")
    first: Generation = run(engine.engine.generate(request(ids)))
    again: Generation = run(engine.engine.generate(request(ids)))
    assert again.num_cached_tokens == (len(ids) - 1) // 32 * 32 > first.num_cached_tokens == 0
    assert again.token_ids == first.token_ids


def test_one_seed_gives_one_text_with_one_request_at_a_time(
    run: Run[Any], engine: Started, prompt: Prompt
) -> None:
    ids = prompt(QUESTION)
    texts = [run(engine.engine.generate(request(ids, sampled(seed)))) for seed in (1, 1, 2)]
    assert texts[0].token_ids == texts[1].token_ids != texts[2].token_ids


@pytest.mark.parametrize(("temperature", "top_p"), [(0.9, 0.9), (0.7, 1.0), (0.0, 1.0)])
def test_logprobs_are_those_of_the_distribution_that_was_drawn_from(
    run: Run[Any], engine: Started, prompt: Prompt, temperature: float, top_p: float
) -> None:
    """Against a float32 pass over prompt and text; greedy ones against the model's own."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = prompt(QUESTION)
    asking = [Sampling(temperature, top_p, 24, seed, logprobs=True) for seed in range(3)]
    sent = [*asking, replace(asking[0], logprobs=False)]
    texts = run(all_texts(engine, [request(ids, one, f"r{n}") for n, one in enumerate(sent)]))
    assert texts[3].logprobs is None and texts[3].token_ids == texts[0].token_ids
    model = AutoModelForCausalLM.from_pretrained(resolve_model("embedded"), dtype=torch.float32)
    differences = []
    for text in texts[:3]:
        sampled = torch.tensor(text.token_ids)
        with torch.inference_mode():
            logits = model(torch.tensor([[*ids, *text.token_ids]])).logits[0, len(ids) - 1 : -1]
        probs = (logits / (temperature or 1.0)).softmax(-1)
        descending = probs.sort(descending=True).values
        before = descending.cumsum(-1) - descending
        mass = descending.masked_fill(before >= top_p, 0.0).sum(-1)
        expected = (probs.gather(1, sampled[:, None])[:, 0] / mass).log()
        differences.append(torch.tensor(text.logprobs) - expected)
    # Single ones are bfloat16's; on average a missing mass would be off by 0.1 at top-p 0.9.
    found = torch.cat(differences)
    assert found.abs().max() < 0.4 and found.abs().mean() < 0.08, found
    assert abs(found.mean()) < 0.03, found


def test_requests_that_are_at_fault_are_dropped_and_counted(run: Run[Any], engine: Started) -> None:
    before = run(engine.engine.stats()).num_dropped
    longest, too_long = (9,) * 511, (9,) * 512
    sent = [request(longest, name="a"), request(too_long, name="b"), request((), name="c")]
    results = run(asyncio.gather(*map(engine.engine.generate, sent), return_exceptions=True))
    assert (results[0].stop, len(results[0].token_ids)) == (StopReason.LENGTH, 1)
    dropped = [(result.reason, result.where) for result in results[1:]]
    assert dropped == [("prompt_too_long", "b"), ("prompt_empty", "c")]
    assert str(results[1]) == (
        "b: prompt_too_long: 512 prompt tokens and one to generate exceed the questioner's "
        "max_model_len of 512"
    )
    assert all(isinstance(result, RecordDropped) for result in results[1:])
    assert run(engine.engine.stats()).num_dropped - before == 2


def test_more_seeded_prompt_tokens_than_one_step_takes(run: Run[Any], engine: Started) -> None:
    """vLLM on CPU dies of a seeded prompt that it computes in parts; ours must never be split."""
    many = [request((*range(100, 560), n), sampled(n, 2), f"r{n}") for n in range(20)]
    results = run(all_texts(engine, many))
    assert [len(result.token_ids) for result in results] == [2] * 20


def test_stats_add_up(run: Run[Any], engine: Started, prompt: Prompt) -> None:
    ids = prompt(QUESTION)
    before = run(engine.engine.stats())
    texts = run(all_texts(engine, [request(ids, name=name) for name in "ab"]))
    after = run(engine.engine.stats())
    assert after.num_requests - before.num_requests == 2
    assert after.num_prompt_tokens - before.num_prompt_tokens == 2 * len(ids)
    generated = after.num_generated_tokens - before.num_generated_tokens
    assert generated == sum(len(text.token_ids) for text in texts)
    assert 0.0 < after.busy_seconds - before.busy_seconds < 60.0


def test_weights_that_do_not_fit_leave_the_engine_as_it_is(
    run: Run[Any], engine: Started, prompt: Prompt, tmp_path: Path
) -> None:
    expected = run(engine.engine.generate(request(prompt(QUESTION))))
    torn = tmp_path / "model.safetensors"
    torn.write_bytes((resolve_model("embedded") / torn.name).read_bytes()[:1_000_000])
    with pytest.raises(ModelError, match=str(tmp_path)):
        run(engine.engine.load_weights(str(tmp_path), 1))
    assert engine.failures == []
    assert run(engine.engine.reported_version()) == 0
    assert run(engine.engine.generate(request(prompt(QUESTION)))).token_ids == expected.token_ids


def test_a_push_changes_the_answer_to_that_of_a_fresh_load(
    run: Run[Any], engine: Started, fresh: Started, perturbed: Path, prompt: Prompt
) -> None:
    questions = [prompt(QUESTION), prompt("Tell me about your favourite season of the year.")]

    def answers(one: Started) -> list[Generation]:
        return [run(one.engine.generate(request(ids))) for ids in questions]

    answers(engine)
    before = answers(engine)
    assert all(text.num_cached_tokens > 0 for text in before)
    phases = run(engine.engine.load_weights(str(perturbed), 1))
    assert list(phases) == ["check", "pause", "start", "update", "finish", "reset", "resume"]
    assert sum(phases.values()) < 10.0
    assert run(engine.engine.reported_version()) == 1
    after, loaded = answers(engine), answers(fresh)
    # The prompts were in the cache: under the new weights they are computed anew.
    assert [text.num_cached_tokens for text in after] == [0, 0]
    assert [text.token_ids for text in after] == [text.token_ids for text in loaded]
    assert all(new.token_ids != old.token_ids for new, old in zip(after, before, strict=True))
    assert [text.policy_version for text in before + after + loaded] == [0, 0, 1, 1, 4, 4]
    # And back again, from shared memory this time.
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as staged:
        shutil.copytree(resolve_model("embedded"), staged, dirs_exist_ok=True)
        run(engine.engine.load_weights(staged, 2))
    assert [text.token_ids for text in answers(engine)] == [text.token_ids for text in before]


def test_texts_in_flight_survive_a_push(run: Run[Any], engine: Started, prompt: Prompt) -> None:
    async def push_meanwhile() -> list[Generation]:
        ids = prompt(QUESTION)
        long = [request(ids, sampled(n, 300), f"r{n}") for n in range(4)]
        writing = asyncio.ensure_future(all_texts(engine, long))
        await asyncio.sleep(0.5)
        await engine.engine.load_weights(str(resolve_model("embedded")), 3)
        return await writing

    before = run(engine.engine.stats())
    texts = run(push_meanwhile())
    after = run(engine.engine.stats())
    assert [text.policy_version for text in texts] == [2] * 4
    assert 1 <= after.num_mixed - before.num_mixed <= 4
    assert run(engine.engine.reported_version()) == 3


def test_a_cancelled_request_leaves_nothing_running(
    run: Run[Any], engine: Started, prompt: Prompt
) -> None:
    """Neither when its caller gives up here, nor when it does so on the far side of a caller."""
    llm = engine.engine._llm

    async def num_here() -> int:
        return int(llm.output_processor.get_num_unfinished_requests())

    async def core_works() -> bool:
        return bool(await llm.engine_core.call_utility_async("has_work"))

    async def until(met: Callable[[], Awaitable[bool]]) -> bool:
        for _ in range(100):
            if await met():
                return True
            await asyncio.sleep(0.05)
        return False

    async def idle() -> bool:
        return await num_here() == 0 and not await core_works()

    async def give_up(ask: Callable[[GenerateRequest], Awaitable[Generation]], name: str) -> None:
        # Far longer than the test waits: it would still run if nobody had ended it.
        ids = prompt(QUESTION)
        long = [request(ids, sampled(n, 400), f"{name}{n}") for n in range(3)]
        asking = [asyncio.ensure_future(ask(one)) for one in long]

        async def started() -> bool:
            return await num_here() == 3 and await core_works()

        assert await until(started)
        for one in asking:
            one.cancel()
        before = time.monotonic()
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)
        assert await until(idle), "vLLM goes on generating for nobody"
        assert time.monotonic() - before < 3.0

    assert run(until(idle))
    before = run(engine.engine.stats())
    run(give_up(engine.engine.generate, "direct"))

    async def through_a_caller() -> None:
        caller: BatchedCaller[GenerateRequest, Generation] = BatchedCaller(engine.engine.exchange)
        await give_up(caller, "mailed")

    run(through_a_caller())
    after = run(engine.engine.stats())
    assert (after.num_requests, after.num_generated_tokens) == (
        before.num_requests,
        before.num_generated_tokens,
    )
    # And it serves on.
    assert run(engine.engine.generate(request(prompt(QUESTION)))).token_ids


def test_an_update_that_fails_half_way_ends_the_engine(
    run: Run[Any], fresh: Started, prompt: Prompt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def fail_meanwhile() -> Any:
        long = request(prompt(QUESTION), sampled(1, 300))
        writing = asyncio.ensure_future(fresh.engine.generate(long))
        await asyncio.sleep(0.5)
        with pytest.raises(EngineError, match=r"update to weights version 9: .*gone\.safetensors"):
            await fresh.engine.load_weights(str(resolve_model("embedded")), 9)
        # What was held is ended in an error instead of being held for ever.
        return await asyncio.wait_for(asyncio.gather(writing, return_exceptions=True), 60)

    # The files pass every check and are gone when vLLM's worker opens them.
    gone = [tmp_path / "gone.safetensors"]
    monkeypatch.setattr("stargate.actors.engines.engine.weight_files", lambda location: gone)
    (held,) = run(fail_meanwhile())
    assert isinstance(held, EngineError)
    assert fresh.failures == [fresh.engine.fatal]
    for call in (fresh.engine.reported_version(), fresh.engine.generate(request((1, 2, 3)))):
        with pytest.raises(EngineError, match="update to weights version 9"):
            run(call)


def test_who_waits_for_the_core_when_it_dies_is_told(
    run: Run[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """vLLM forgets calls whose answer is awaited at that moment."""
    log = tmp_path_factory.mktemp("logs") / "stopped.log"
    for one in started(run, resolve_model("embedded"), log):
        core = one.process("EngineCore")

        async def ask_and_kill(engine: Engine, core: psutil.Process) -> None:
            core.suspend()
            calls = [asyncio.ensure_future(engine.reported_version()) for _ in range(2)]
            await asyncio.sleep(0.5)
            assert not any(call.done() for call in calls)
            core.kill()
            answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
            assert ["core died" in str(answer) for answer in answers] == [True, True]

        run(ask_and_kill(one.engine, core))
        assert one.failures == [one.engine.fatal]


def test_the_death_of_vllms_core_is_noticed(run: Run[Any], engine: Started, prompt: Prompt) -> None:
    async def kill_meanwhile() -> None:
        writing = asyncio.ensure_future(
            engine.engine.generate(request(prompt(QUESTION), sampled(1, 300)))
        )
        await asyncio.sleep(0.5)
        engine.process("EngineCore").kill()
        await asyncio.wait_for(writing, 60)

    with pytest.raises(EngineError, match="questioner engine: vLLM's core died"):
        run(kill_meanwhile())
    assert engine.failures == [engine.engine.fatal]
    with pytest.raises(EngineError, match="vLLM's core died"):
        run(engine.engine.reported_version())
