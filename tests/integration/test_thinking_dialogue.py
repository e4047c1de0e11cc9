"""A thinking model plays, is scored and trained: where its thoughts are, and where they are not.

The real tokenizers and templates of Qwen3 and gpt-oss; what the engines say is scripted.
"""

import pytest

from stargate.algorithm.score_requests import GoldScoring
from stargate.algorithm.star_gate import StarGate
from stargate.config.algorithm import StarGateConfig
from stargate.config.run import EngineRoleplayerConfig, SamplingConfig
from stargate.errors import RecordDropped
from stargate.rollout.deadline import TurnWatch
from stargate.rollout.dialogue import play
from stargate.rollout.questioner import Questioner
from stargate.rollout.roleplayer import EngineCall, build_roleplayer
from stargate.text.chat import ChatFormat
from stargate.text.formats import heard_from
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import (
    Dialogue,
    DialoguePlan,
    GenerateRequest,
    Generation,
    Pair,
    Persona,
    Sampling,
    StopReason,
    Task,
)
from tests.chat_families import END_TEXTS, family_chat, ids_of

pytestmark = pytest.mark.integration

PAIR = Pair(
    Task("t", "What is <think> in HTML?", "A"),
    Persona("p", "Ann", "I like tea.</think>", "A", ("I like tea.",)),
    "No tag, Ann: </think> is none either.",
)
VIEWS = Views(load_prompts("paper"))
# (before the thought, after it, as the model writes them)
MARKS = {
    "qwen3": ("<think>\n", "\n</think>\n\n"),
    "gptoss": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
}
FAMILIES = list(MARKS)


def thinking_chat(family: str) -> ChatFormat:
    return family_chat(family, **({"enable_thinking": True} if family == "qwen3" else {}))


class Thinking:
    """An engine of a model that thinks before it says `words`, or is cut off while it thinks."""

    def __init__(self, family: str, thought: str, words: str, whole: bool = True) -> None:
        self.requests: list[GenerateRequest] = []
        before, after = MARKS[family]
        end = END_TEXTS[family][0]
        said = f"{before}{thought}{after}{words}{end}" if whole else f"{before}{thought}"
        self.sampled = ids_of(family, said)
        self._stop = StopReason.STOP if whole else StopReason.LENGTH

    async def __call__(self, request: GenerateRequest) -> Generation:
        self.requests.append(request)
        text = "as the engine decodes it"
        return Generation(text, self.sampled, self._stop, 0, len(request.prompt_ids))


async def played(family: str, asks: Thinking, answers: Thinking, num_turns: int = 2) -> Dialogue:
    chat = thinking_chat(family)
    questioner = Questioner(asks, VIEWS, chat, SamplingConfig(max_new_tokens=50), 4096)
    config = EngineRoleplayerConfig()
    call = EngineCall(answers, chat, config)
    roleplay = build_roleplayer(config, call, VIEWS, None, 0)
    plan = DialoguePlan("t0/t:p/0", PAIR, 0, num_turns, seed=7)
    return await play(plan, questioner, roleplay, TurnWatch(60.0))


def holds(ids: tuple[int, ...], part: tuple[int, ...]) -> int:
    """How often a run of ids stands in others."""
    return sum(ids[i : i + len(part)] == part for i in range(len(ids)))


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_thought_is_sampled_and_learned_but_neither_heard_nor_scored(family: str) -> None:
    asks = Thinking(family, "Zebra quagga", "Do you like tea?")
    answers = Thinking(family, "Okapi numbat", "I like tea.")
    dialogue = await played(family, asks, answers)
    thought, own_thought = ids_of(family, "Zebra quagga"), ids_of(family, "Okapi numbat")
    assert [(turn.question, turn.answer) for turn in dialogue.turns] == [
        ("Do you like tea?", "I like tea.")
    ] * 2
    assert {turn.question_ids for turn in dialogue.turns} == {asks.sampled}
    # Each side sees its own thoughts of before, and what the other said.
    assert [holds(request.prompt_ids, thought) for request in asks.requests] == [0, 1]
    assert [holds(request.prompt_ids, own_thought) for request in answers.requests] == [0, 1]
    assert not any(holds(request.prompt_ids, own_thought) for request in asks.requests)
    assert not any(holds(request.prompt_ids, thought) for request in answers.requests)

    chat = thinking_chat(family)
    answer = Thinking(family, "Zebra quagga", "It is none, Ann.")
    request = GenerateRequest("r", "s", (1,), Sampling(0.0, 1.0, 50, 0))
    response = await heard_from(answer, chat)(request)
    example = StarGate(StarGateConfig(), VIEWS, chat, 4096).example(PAIR, dialogue, response)
    assert example.response == "It is none, Ann."
    learned = [i for i, w in zip(example.input_ids, example.weights, strict=True) if w]
    assert tuple(learned) == asks.sampled * 2 + answer.sampled
    # The row is what the policy sampled at each turn, each after the header that it saw then.
    header = asks.requests[0].prompt_ids[-2:]
    for sampled, count in ((asks.sampled, 2), (answer.sampled, 1)):
        assert holds(example.input_ids, header + sampled) == count

    scored = GoldScoring(VIEWS, chat, 4096).after_dialogue("k", PAIR, dialogue.turns)
    assert not holds(scored.context_ids, thought)
    assert not holds(scored.context_ids, own_thought)
    assert holds(scored.context_ids, ids_of(family, "Do you like tea?")) == 2
    controls = set(ids_of(family, "<think></think>")) if family == "qwen3" else set()
    assert not set(scored.golds[0]) & controls


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reason", ["empty_question", "empty_answer"])
async def test_a_thought_without_an_end_is_nothing_said(family: str, reason: str) -> None:
    asks, answers = Thinking(family, "Hm", "Tea?"), Thinking(family, "Hm", "Yes.")
    silent = Thinking(family, "Hm and on and on", "", whole=False)
    parts = (silent, answers) if reason == "empty_question" else (asks, silent)
    with pytest.raises(RecordDropped) as dropped:
        await played(family, *parts)
    assert dropped.value.reason == reason
