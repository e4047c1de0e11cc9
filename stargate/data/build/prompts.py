"""What the Oracle is told: one YAML file of Jinja templates, with the example personas.

persona  {examples, initial, names}   -> "Name: ..." and a profile
facts    {name, persona}              -> one fact per line
gold     {name, persona, facts, task} -> the ideal response
"""

from typing import Any

from pydantic import Field

from stargate.config.component import Component
from stargate.data.build.config import packaged_build_dir
from stargate.text.chat import Message
from stargate.text.prompts import Conversation, TemplateFile, load_template_file


class ExamplePersona(Component):
    """One of the descriptions from which two are shown at random."""

    name: str = Field(min_length=1)
    text: str = Field(min_length=1)


class BuildPrompts(TemplateFile):
    """All prompts of a build. `examples` are the few-shot seeds."""

    examples: tuple[ExamplePersona, ...] = Field(min_length=2)
    persona: Conversation
    facts: Conversation
    gold: Conversation

    def messages(self, conversation: Conversation, **values: Any) -> tuple[Message, ...]:
        """The rendered messages. Raises ConfigError for a template that names an unknown value."""
        turns = [Message(t.role, self.render(t.content, **values)) for t in conversation.before]
        return (*turns, Message("user", self.render(conversation.turn, **values)))


def load_build_prompts(name: str) -> BuildPrompts:
    """A packaged set by name, or one from a YAML file. Raises ConfigError naming file and key."""
    return load_template_file(BuildPrompts, packaged_build_dir() / "prompts", name)
