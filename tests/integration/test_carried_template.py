"""The template that travels with a model writes what the run's own roles saw."""

from pathlib import Path
from typing import Any

import pytest

from stargate.config.files import packaged_configs_dir
from stargate.text.carried_template import carried_template
from stargate.text.chat import ChatFormat, Message, load_chat_format, load_tokenizer
from stargate.text.hf_tokenizer import HfChatTokenizer
from stargate.text.prompts import PromptSet, load_prompts
from stargate.text.views import Views
from stargate.types import Pair, Persona, StopReason, Task, Turn
from tests.chat_families import family_chat, family_tokenizer

pytestmark = pytest.mark.integration

TASK = "Which {{ bike }} shall I 'buy'?\n\nA \"cheap\" one \U0001f600."
PAIR = Pair(Task("t", TASK, ""), Persona("p", "Ann", "", ""), "")
# The response instruction stands in the first turn.
AUTHORS = str(Path(__file__).parents[1] / "unit" / "text" / "authors_structure.yaml")
QUESTIONS = ("Why?", "How far do you ride?", "And when?")
ANSWERS = ("Because.", "Far, I'm told.", "At {% night %}.")


class Client:
    """Renders a plain conversation with the template that travels."""

    def __init__(self, prompts: PromptSet, chat: ChatFormat, tokenizer: HfChatTokenizer) -> None:
        self._tokenizer = tokenizer.tokenizer
        self.template = carried_template(prompts, chat, tokenizer, num_questions=3)

    def sees(self, num_answers: int, **given: Any) -> str:
        messages = [{"role": "user", "content": TASK}]
        for question, answer in zip(QUESTIONS[:num_answers], ANSWERS, strict=False):
            messages += [{"role": "assistant", "content": question}]
            messages += [{"role": "user", "content": answer}]
        return self.render(messages, **given)

    def render(self, messages: list[dict[str, str]], **given: Any) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=True,
                **given,
            )
        )


def rendered(tokenizer: HfChatTokenizer, chat: ChatFormat, messages: list[Message]) -> str:
    plain = [
        {"role": message.role, "content": message.text}
        for message in chat.without_system_role(messages)
    ]
    return tokenizer.render(plain, True)


def turns(number: int) -> list[Turn]:
    return [
        Turn(question, (), StopReason.STOP, answer, None, StopReason.STOP)
        for question, answer in zip(QUESTIONS[:number], ANSWERS, strict=False)
    ]


@pytest.fixture(params=["embedded", "qwen3", "gemma3", "llama3_1"])
def model(request: pytest.FixtureRequest, embedded: Path) -> tuple[ChatFormat, HfChatTokenizer]:
    if request.param == "embedded":
        return load_chat_format(str(embedded)), load_tokenizer(str(embedded))
    switches = {"enable_thinking": False} if request.param == "qwen3" else {}
    return family_chat(request.param, **switches), family_tokenizer(request.param, **switches)


@pytest.mark.parametrize("name", ["paper", "small", AUTHORS])
def test_questions_and_answer_are_prompted_as_in_the_run(
    model: tuple[ChatFormat, HfChatTokenizer], name: str
) -> None:
    chat, tokenizer = model
    prompts = load_prompts(name)
    client, views = Client(prompts, chat, tokenizer), Views(prompts)
    for number in range(3):
        wanted = rendered(tokenizer, chat, views.questioner(PAIR, turns(number)))
        assert client.sees(number, user_name="Ann") == wanted
    wanted = rendered(tokenizer, chat, views.responder(PAIR, turns(3)))
    assert client.sees(3, user_name="Ann") == wanted
    wanted = rendered(tokenizer, chat, views.responder(PAIR, turns(1)))
    assert client.sees(1, user_name="Ann", num_questions=1) == wanted
    wanted = rendered(tokenizer, chat, views.responder(PAIR, ()))
    assert client.sees(0, user_name="Ann", num_questions=0) == wanted


def test_who_gives_no_name_is_called_none(model: tuple[ChatFormat, HfChatTokenizer]) -> None:
    chat, tokenizer = model
    for name in ("paper", "small"):
        seen = Client(load_prompts(name), chat, tokenizer).sees(0)
        assert "My name is ." not in seen and "Ann." not in seen.replace("Anna", "")
        assert TASK in seen


def test_instructions_of_the_client_stand_alone(model: tuple[ChatFormat, HfChatTokenizer]) -> None:
    chat, tokenizer = model
    client = Client(load_prompts("paper"), chat, tokenizer)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TASK}]
    assert client.render(messages) == tokenizer.render(messages, True)


def test_a_follow_up_after_the_answer_is_plain(embedded: Path) -> None:
    chat, tokenizer = load_chat_format(str(embedded)), load_tokenizer(str(embedded))
    client = Client(load_prompts("paper"), chat, tokenizer)
    asked = client.sees(3)
    messages = [{"role": "user", "content": TASK}]
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        messages += [{"role": "assistant", "content": question}]
        messages += [{"role": "user", "content": answer}]
    messages += [{"role": "assistant", "content": "Buy a Brompton."}]
    followed = client.render([*messages, {"role": "user", "content": "Thanks!"}])
    # What the model answered stands after what it saw then; the new message is as it was typed.
    assert followed.startswith(asked + "Buy a Brompton.")
    assert "<|im_start|>user\nThanks!<|im_end|>" in followed


def test_every_packaged_set_of_prompts_can_travel(embedded: Path) -> None:
    chat, tokenizer = load_chat_format(str(embedded)), load_tokenizer(str(embedded))
    for file in sorted((packaged_configs_dir() / "prompts").glob("*.yaml")):
        if file.stem != "judge":
            Client(load_prompts(file.stem), chat, tokenizer).sees(0)
