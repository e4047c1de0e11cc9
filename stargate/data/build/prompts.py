"""What the Oracle is told: one YAML file of Jinja templates, with the example personas.

persona  {examples, initial, names}   -> "Name: ..." and a profile
facts    {name, persona}              -> one fact per line
gold     {name, persona, facts, task} -> the ideal response
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field, PrivateAttr, ValidationError

from stargate.chat import Message
from stargate.config import Component
from stargate.data.build.config import packaged_build_dir
from stargate.errors import ConfigError
from stargate.prompts import Conversation

_JINJA = SandboxedEnvironment(undefined=StrictUndefined)


class ExamplePersona(Component):
    """One of the descriptions from which two are shown at random."""

    name: str = Field(min_length=1)
    text: str = Field(min_length=1)


class BuildPrompts(Component):
    """All prompts of a build. `examples` are the few-shot seeds."""

    version: int
    examples: tuple[ExamplePersona, ...] = Field(min_length=2)
    persona: Conversation
    facts: Conversation
    gold: Conversation

    _compiled: dict[str, Any] = PrivateAttr(default_factory=dict)

    @cached_property
    def content(self) -> dict[str, Any]:
        """All of it as plain values: part of what decides a build's result."""
        return self.model_dump(mode="json")

    def messages(self, conversation: Conversation, **values: Any) -> tuple[Message, ...]:
        """The rendered messages. Raises ConfigError for a template that names an unknown value."""
        turns = [Message(t.role, self._render(t.content, values)) for t in conversation.before]
        return (*turns, Message("user", self._render(conversation.turn, values)))

    def _render(self, template: str, values: dict[str, Any]) -> str:
        try:
            compiled = self._compiled.get(template)
            if compiled is None:
                compiled = self._compiled[template] = _JINJA.from_string(template)
            return str(compiled.render(**values)).strip()
        except TemplateError as error:
            raise ConfigError(f"prompt template {template[:60]!r}: {error}") from error


def load_build_prompts(name: str) -> BuildPrompts:
    """A packaged set by name, or one from a YAML file. Raises ConfigError naming file and key."""
    packaged = packaged_build_dir() / "prompts" / f"{name}.yaml"
    file = packaged if packaged.is_file() else Path(name)
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in packaged.parent.glob("*.yaml")))
        raise ConfigError(f"prompts: {name}: no such file; give a path or one of: {known}")
    try:
        return BuildPrompts.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{file}: {key}: {first['msg']}") from error
