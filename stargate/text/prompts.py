"""Prompt sets: what each role is told, as Jinja templates in one YAML file
(configs/prompts/NAME.yaml).

A set is data, versioned and overridable: `prompts: paper` names a packaged one, `prompts:
my/prompts.yaml` a file. Each message is rendered by itself, so text from data can't add messages.
Values are plain text, never HTML.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field, PrivateAttr, ValidationError

from stargate.config.component import Component
from stargate.config.files import packaged_configs_dir, read_yaml
from stargate.errors import ConfigError

_JINJA = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
# What an expression of a template may raise when it is computed.
_EXPRESSION_ERRORS = (
    *(ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)


class Template(Component):
    """One message of a prompt; `content` is a Jinja template."""

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation(Component):
    """Messages that stand first (few-shot examples, a system text), then a user turn's template."""

    before: tuple[Template, ...] = ()
    turn: str


class ResponderPrompt(Conversation):
    """Where the response instruction stands: in `turn`, the last user turn; or in `first`."""

    first: str = "{{ opening }}"


class RoleplayerPrompt(Conversation):
    """How the Roleplayer sees the dialogue so far.

    turns   as a conversation in which it is the assistant; `turn` is its first message
    text    within `turn`, its only message: {turns}, each with .question and .answer
    """

    history: Literal["turns", "text"] = "turns"


class TemplateFile(Component):
    """A versioned YAML file of Jinja templates."""

    version: int

    _compiled: dict[str, Any] = PrivateAttr(default_factory=dict)

    def render(self, template: str, **values: Any) -> str:
        """One template's text. Raises ConfigError when it names a value that it is not given."""
        try:
            compiled = self._compiled.get(template)
            if compiled is None:
                compiled = self._compiled[template] = _JINJA.from_string(template)
            return str(compiled.render(**values)).strip()
        except (TemplateError, *_EXPRESSION_ERRORS) as error:
            raise ConfigError(f"prompt template {template[:60]!r}: {error}") from error


_FileT = TypeVar("_FileT", bound=TemplateFile)


class UserTexts(Component):
    """Users who differ (roleplayer.style, roleplayer.patience).

    terse, evasive, chatty, contradicting   what the Roleplayer's model is told, persona grounding
    dodge        what an evasive user says in place of an answer
    small_talk   what a chatty one adds, one of these
    takes_back   what a contradicting one says first {fact}
    impatient    what ends the dialogue
    """

    terse: str
    evasive: str
    chatty: str
    contradicting: str
    dodge: str
    small_talk: Annotated[tuple[str, ...], Field(min_length=1)]
    takes_back: str
    impatient: str


class PromptSet(TemplateFile):
    """All prompts of a run.

    opening        first user turn without any instruction {name, task}: scoring and training
    closing        last user turn, which repeats the task {answer, task}
    questioner     first user turn with the elicitation instruction {opening, name, task}
    responder      last user turn with the response instruction {closing, task}; `first` is the
                   first one {opening, name, task}
    persona        first user turn with the persona given outright {opening, persona}: a control
    roleplayer     the Roleplayer's first turn, with its persona {name, persona, task, question};
                   with `history: text` its only one {name, persona, task, question, turns}
    voice          the turn in which the Roleplayer words a fact {name, question, facts}
    no_preference  what the Roleplayer says when no fact answers
    told_already   what it says when the fact that answers was told
    users          texts of users who differ; needed where a config asks for one
    """

    opening: str
    closing: str
    questioner: Conversation
    responder: ResponderPrompt
    persona: str
    roleplayer: RoleplayerPrompt
    voice: Conversation
    no_preference: str
    told_already: str = "I told you that already."
    users: UserTexts | None = None

    @cached_property
    def no_preference_text(self) -> str:
        return self.render(self.no_preference)

    @cached_property
    def told_already_text(self) -> str:
        return self.render(self.told_already)


def packaged_prompts_dir() -> Path:
    """The folder of the shipped prompt sets."""
    return packaged_configs_dir() / "prompts"


def load_prompts(name: str) -> PromptSet:
    """A packaged prompt set by name, or one from a YAML file.

    Raises ConfigError naming file and key.
    """
    return load_template_file(PromptSet, packaged_prompts_dir(), name)


def template_file(packaged_dir: Path, name: str) -> Path:
    """The template file of that name in `packaged_dir`, or of that path. Raises ConfigError."""
    packaged = packaged_dir / f"{name}.yaml"
    file = packaged if packaged.is_file() else Path(name)
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in packaged_dir.glob("*.yaml")))
        raise ConfigError(f"prompts: {name}: no such file; give a path or one of: {known}")
    return file


def load_template_file(model: type[_FileT], packaged_dir: Path, name: str) -> _FileT:
    """A template file by its name in `packaged_dir`, or by path. Raises ConfigError."""
    file = template_file(packaged_dir, name)
    try:
        return model.model_validate(read_yaml(file))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{file}: {key}: {first['msg']}") from error
