"""The chat template that travels with a trained model, so that any client gets its questions.

    the client's messages -> the run's own prompts around them -> the base model's template

A conversation that begins with a user message gets `num_questions` questions, then the answer, each
prompted as in training. One that begins with a system message, or has tools, is the base template's
alone: whoever brings instructions of their own gets no others.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stargate.errors import ConfigError
from stargate.text.chat import ChatFormat, Message
from stargate.text.hf_tokenizer import HfChatTokenizer
from stargate.text.prompts import PromptSet
from stargate.text.views import Views
from stargate.types import Pair, Persona, StopReason, Task, Turn

# What stands for a client's words while the prompts are rendered; no text has these characters.
_TASK, _ANSWER, _NAME = ("\ufdd0task\ufdd1", "\ufdd0answer\ufdd1", "\ufdd0name\ufdd1")
_MARK = re.compile("(\ufdd0(?:task|answer|name)\ufdd1)")
_PARAGRAPH = re.compile(r"(.+?(?:\n{2,}|\Z))", re.DOTALL)
# What the marks are within the template.
_VARIABLE = {_TASK: "carried.task", _ANSWER: "text", _NAME: "carried.name"}

# An expression in place of each {word}; the variables are the template's own.
_TEMPLATE = """\
{#- Written by `stargate export`: {about} -#}
{switches}
{%- if messages and messages[0]['role'] == 'user' and not tools -%}
{%- set carried = namespace(
    turn=0, task='', seen=[], name=user_name | default('', true),
    questions=num_questions | default({num_questions})) -%}
{%- set asked = messages | selectattr('role', 'equalto', 'assistant') | list | length -%}
{%- set carried.asking = asked < carried.questions -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- set text = message['content'] -%}
{%- if carried.turn == 0 -%}
{%- set carried.task = text | trim -%}
{%- set carried.seen = {before_question} if carried.asking else {before_answer} -%}
{%- set text = {first} if carried.asking
    else ({only} if carried.questions == 0 else {opening}) -%}
{%- elif not carried.asking and carried.turn == carried.questions -%}
{%- set text = {last} -%}
{%- endif -%}
{%- set carried.turn = carried.turn + 1 -%}
{%- set carried.seen = carried.seen + [{'role': 'user', 'content': text | trim}] -%}
{%- else -%}
{%- set carried.seen = carried.seen + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = carried.seen -%}
{%- endif %}
"""
_ABOUT = (
    "a conversation that begins with a user message gets num_questions questions, then an answer; "
    "num_questions (0: answer now) and user_name may be given. With a system message, or with "
    "tools, only the base model's own template is used; it follows."
)


def carried_template(
    prompts: PromptSet, chat: ChatFormat, tokenizer: HfChatTokenizer, num_questions: int
) -> str:
    """The template's source; `chat` and `tokenizer` are the model's own.

    Without a `user_name` the paragraphs that name the user are left out, but for the user's words.
    Raises ConfigError for prompts that change the task's text, which no template could.
    """
    views = Views(prompts)
    pair = Pair(Task("carried", _TASK, ""), Persona("carried", _NAME, "", ""), "")
    turn = Turn("Why?", (), StopReason.STOP, _ANSWER, (), StopReason.FIXED)
    *before_question, first = chat.without_system_role(views.questioner(pair, ()))
    *before_answer, opening, _, last = chat.without_system_role(views.responder(pair, (turn,)))
    only = chat.without_system_role(views.responder(pair, ()))[-1]
    for message, role in ((first, "questioner"), (opening, "opening"), (only, "responder")):
        if _TASK not in message.text:
            raise ConfigError(
                f"prompts: {role} does not hold {{{{ task }}}} as the user wrote it, so it can't "
                "become a chat template"
            )
    parts = {
        "about": _ABOUT,
        "switches": _switches(tokenizer.template_kwargs),
        "num_questions": str(num_questions),
        "before_question": _messages(before_question),
        "before_answer": _messages(before_answer),
        "first": _expression(first.text),
        "opening": _expression(opening.text),
        "only": _expression(only.text),
        "last": _expression(last.text),
    }
    written = re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], _TEMPLATE)
    return written + tokenizer.chat_template


def _expression(text: str) -> str:
    """A Jinja expression that writes `text`, marks filled in, paragraph by paragraph."""
    parts = []
    for paragraph in _PARAGRAPH.findall(text):
        written = _joined(_MARK.split(paragraph))
        if _NAME in paragraph:
            kept = [mark for mark in _MARK.findall(paragraph) if mark != _NAME]
            written = f"({written} if carried.name else {_joined(kept)})"
        parts.append(written)
    return f"({' ~ '.join(parts)})"


def _joined(pieces: Sequence[str]) -> str:
    return " ~ ".join(_VARIABLE.get(one) or literal(one) for one in pieces if one) or "''"


def _messages(messages: Sequence[Message]) -> str:
    return literal([{"role": one.role, "content": _Expression(one.text)} for one in messages])


class _Expression(str):
    """A text with marks, among values."""


def literal(value: Any) -> str:
    """A value of JSON as Jinja writes it."""
    if isinstance(value, _Expression):
        return f"{_expression(value)} | trim"
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{literal(key)}: {literal(one)}" for key, one in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _switches(template_kwargs: Mapping[str, Any]) -> str:
    """The base template's switches as the run set them, where the client does not."""
    return "".join(
        f"{{%- if {name} is not defined -%}}{{%- set {name} = {literal(value)} -%}}{{%- endif -%}}"
        for name, value in sorted(template_kwargs.items())
    )
