"""One iteration's parts on small random models of other families: Qwen3 and Gemma-3.

m_0 in several files -> trainer -> m_1 -> pushed into an engine that served m_0 = an engine that
begins with m_1; the scorer and the engine's log-probs = a float32 pass. What is learned is one
reply, so that the pushed engine says it, and ends it where the template ends a turn.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stargate.actors.engines.engine import Engine
from stargate.actors.engines.spec import EngineSpec
from stargate.actors.scoring.scorer import Scorer, ScorerSpec
from stargate.config.run import EngineConfig, ScorerConfig, TrainerConfig
from stargate.text.chat import Message, load_chat_format
from stargate.types import Generation, Sampling, ScoreRequest, StopReason, TrainingExample
from tests.integration.ranks import Ranks
from tests.integration.started_engine import request
from tests.integration.tiny_model import save_gemma3_model, save_qwen3_model
from tests.public_tokenizers import public_tokenizer

pytestmark = [pytest.mark.integration, pytest.mark.engines]

_SAVE = {"qwen3": save_qwen3_model, "gemma3": save_gemma3_model}
# With what each family's template ends a turn; Gemma-3's is the second of its end tokens.
_END = {"qwen3": 151645, "gemma3": 106}
REPLIES = {"Plan my week.": "Do you work at weekends?", "I want to run.": "How are your knees?"}
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=24, seed=0, logprobs=True)


@dataclass(frozen=True)
class Family:
    name: str
    m0: Path
    m1: Path
    losses: tuple[float, ...]
    prompts: tuple[tuple[int, ...], ...]
    logs: Path


@pytest.fixture(scope="module", params=list(_SAVE))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    name: str = request.param
    tokenizer = public_tokenizer(name)
    folder = tmp_path_factory.mktemp(name)
    m0 = _SAVE[name](folder / "m0", tokenizer, dtype="bfloat16", num_files=2)
    if name == "gemma3":  # its own end of text, as the models have it: turns end with another token
        settings = m0 / "tokenizer_config.json"
        text = json.loads(settings.read_text())
        settings.write_text(json.dumps(text | {"eos_token": "<eos>"}))
    chat = load_chat_format(str(m0))
    examples, prompts = [], []
    for number, (task, reply) in enumerate(REPLIES.items()):
        messages = [Message("user", task)]
        row = chat.with_target(messages, reply)
        examples.append(TrainingExample(f"p{number}", f"d{number}", row.ids, row.mask, ""))
        prompts.append(chat.prompt_ids(messages))
    ranks = Ranks(1, m0, folder)
    config = TrainerConfig(
        learning_rate=1e-2, num_epochs=80, batch_size=2, micro_batch_size=2, validation_fraction=0
    )
    [result] = ranks.train(config, examples, m0, folder / "m1")
    ranks.close()
    return Family(name, m0, folder / "m1", result.losses, tuple(prompts), folder)


def test_the_loss_falls_to_nothing(family: Family) -> None:
    assert len(list(family.m0.glob("*.safetensors"))) == 2
    assert family.losses[0] > 5
    assert family.losses[-1] < 0.1


def reference(folder: Path, context: tuple[int, ...], text: tuple[int, ...]) -> Any:
    """log p (G,) of a text after a context, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *text]])).logits[0, len(context) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None])[:, 0]


def test_the_scorer_is_the_float32_reference(family: Family) -> None:
    golds = (tuple(range(1000, 1040)), tuple(range(5000, 5020)))
    context = (*family.prompts[0], *range(2000, 2040))  # longer than Gemma's window
    for dtype, of_token in (("float32", 0.001), ("bfloat16", 0.05)):
        config = ScorerConfig(dtype=dtype)  # type: ignore[arg-type]
        scorer = Scorer(ScorerSpec(str(family.m0), config))
        scorer.start()
        [result] = asyncio.run(scorer.score([ScoreRequest("k", context, golds)]))
        assert scorer.stats().num_tokens == len(context) + 39 + 19  # shared, windows or not
        scorer.shutdown()
        for found, gold in zip(result.token_logprobs, golds, strict=True):
            expected = reference(family.m0, context, gold)
            assert sum(found) / len(gold) == pytest.approx(float(expected.mean()), abs=of_token)
            if dtype == "float32":
                assert found == pytest.approx(expected.tolist(), abs=of_token)


class Served:
    """An engine of a family in an event loop of its own."""

    def __init__(self, family: Family, folder: Path, name: str, **settings: Any) -> None:
        self.log = family.logs / f"{name}.log"
        self._prompts = family.prompts
        config = EngineConfig(max_model_len=256, cpu_kv_cache_gb=0.2, **settings)
        cores = "|".join("0" * config.tensor_parallel_size)
        self._runner = asyncio.Runner()
        self.engine = Engine(
            EngineSpec("questioner", str(folder), config, cpu_cores=cores, log_file=str(self.log))
        )
        self.run(self.engine.start())

    def run(self, call: Any) -> Any:
        return self._runner.run(call)

    def push(self, folder: Path, version: int) -> None:
        self.run(self.engine.load_weights(str(folder), version))

    def texts(self) -> list[Generation]:
        """One at a time: side by side, rounding may differ."""
        asked = [request(ids, GREEDY, f"r{n}") for n, ids in enumerate(self._prompts)]
        return [self.run(self.engine.generate(one)) for one in asked]

    def close(self) -> None:
        self.run(self.engine.shutdown())
        self._runner.close()


@pytest.fixture(scope="module")
def fresh(family: Family) -> list[Generation]:
    """What an engine says that begins with m_1."""
    served = Served(family, family.m1, "fresh")
    texts = served.texts()
    served.close()
    return texts


@pytest.fixture(scope="module")
def pushed(family: Family) -> Iterator[Served]:
    served = Served(family, family.m0, "pushed")
    yield served
    served.close()


def ids(texts: list[Generation]) -> list[tuple[int, ...]]:
    return [text.token_ids for text in texts]


def test_a_pushed_engine_is_one_that_began_with_the_weights(
    family: Family, fresh: list[Generation], pushed: Served
) -> None:
    before = pushed.texts()
    # Random weights speak of tokens that no tokenizer has, too: these have no text.
    assert all(text.stop is StopReason.LENGTH for text in before)
    for version, folder in enumerate((family.m1, family.m0, family.m1), start=1):
        pushed.push(folder, version)
        texts = pushed.texts()
        assert ids(texts) == ids(before if folder == family.m0 else fresh)
    for text, same in zip(texts, fresh, strict=True):
        assert text.logprobs == pytest.approx(same.logprobs, abs=1e-6)
    assert "can't be compared" not in pushed.log.read_text()


def test_what_was_learned_is_said_and_ends_as_the_template_ends_a_turn(
    family: Family, fresh: list[Generation]
) -> None:
    for text, reply in zip(fresh, REPLIES.values(), strict=True):
        assert text.text == reply
        assert (text.stop, text.token_ids[-1]) == (StopReason.STOP, _END[family.name])


def test_an_engines_logprobs_are_the_float32_reference(
    family: Family, fresh: list[Generation]
) -> None:
    for context, text in zip(family.prompts, fresh, strict=True):
        assert text.logprobs is not None
        expected = reference(family.m1, context, text.token_ids)
        assert list(text.logprobs) == pytest.approx(expected.tolist(), abs=0.1)


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
def test_every_rank_of_a_divided_engine_is_checked_after_a_push(
    family: Family, fresh: list[Generation]
) -> None:
    served = Served(family, family.m0, "divided", tensor_parallel_size=2)
    served.push(family.m1, 1)
    served.push(family.m0, 2)
    served.push(family.m1, 3)
    assert ids(served.texts()) == ids(fresh)
    served.close()
    log = served.log.read_text()
    assert "can't be compared" not in log
