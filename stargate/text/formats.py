"""The chat formats of a run's models, and whether they can render what its roles will see."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from stargate.config.roleplayer import FactsGrounding
from stargate.config.run import EngineRoleplayerConfig, RunConfig
from stargate.errors import ModelError
from stargate.protocols import Generate
from stargate.text.chat import ChatFormat, Message, load_chat_format
from stargate.text.views import Views
from stargate.types import GenerateRequest, Generation, Pair, Persona, StopReason, Task, Turn

_PAIR = Pair(
    Task("check", "Which book shall I read?", ""),
    Persona("check", "Ann", "Ann likes tea.", "", ("I like tea.",)),
    "Read it.",
)
# Any ids will do: what was sampled is never looked at.
_TURN = Turn("Why?", (1, 2, 3), StopReason.LENGTH, "So.", (1, 2, 3), StopReason.LENGTH)


def load_chat_formats(
    config: RunConfig, base_dir: str | Path, roleplayer_dir: str | Path | None
) -> tuple[ChatFormat, ChatFormat | None]:
    """The policy's format and the Roleplayer's: the same one where their models are, none for an
    API. Raises ModelError.
    """
    trust, ours = config.trust_remote_code, config.questioner.chat_template_kwargs
    chat = load_chat_format(str(base_dir), trust, ours)
    if not isinstance(config.roleplayer, EngineRoleplayerConfig):
        return chat, None
    theirs = config.roleplayer.chat_template_kwargs
    if (base_dir, ours) == (roleplayer_dir, theirs):
        return chat, chat
    return chat, load_chat_format(str(roleplayer_dir), trust, theirs)


def heard_from(generate: Generate, chat: ChatFormat) -> Generate:
    """Generates what others hear of it: a text ends where the template ends a turn, whatever end
    tokens the model's own config names, and comes without thoughts.
    """

    async def heard(request: GenerateRequest) -> Generation:
        sampling = replace(request.sampling, stop_ids=chat.stop_ids)
        return chat.heard(await generate(replace(request, sampling=sampling)))

    return heard


def check_formats(
    config: RunConfig,
    chat: ChatFormat,
    views: Views,
    roleplayer_chat: ChatFormat | None,
    roleplayer_views: Views,
) -> None:
    """Renders a dialogue as each role will see it, as long as the config lets one be.

    Raises ModelError, naming the role, for what a chat template can't have: a system text amid the
    dialogue, say, or roles that do not take turns.
    """
    num_turns = max(*config.rollout.turns, *config.evaluation.turns)
    turns = (_TURN,) * num_turns
    response = Message("assistant", "Yes.", (1, 2, 3))
    scored = chat.without_thoughts()

    def each_turn(see: Callable[[Sequence[Turn]], list[Message]]) -> list[list[Message]]:
        return [see(turns[:number]) for number in range(num_turns)]

    _check("the Questioner", chat.prompt_ids, each_turn(lambda t: views.questioner(_PAIR, t)))
    responses = [see(_PAIR, turns) for see in (views.responder, views.without_instruction)]
    _check("the responder", chat.prompt_ids, responses)
    _check("the trainer", chat.masked_ids, [views.trained(_PAIR, turns, response)])
    contexts = [see(_PAIR, turns) for see in (views.without_instruction, views.with_persona)]
    _check("the scorer", lambda messages: scored.continuation(messages, "Read it."), contexts)
    roleplayer = config.roleplayer
    if roleplayer.style != ("plain",) or roleplayer.patience is not None:
        users = roleplayer_views.users
        for text in (*users.small_talk, users.dodge, users.impatient, users.takes_back):
            roleplayer_views.of_user(text, _PAIR, fact="I like tea.")
    if roleplayer_chat is None:
        return
    heard = roleplayer_chat.prompt_ids
    if isinstance(roleplayer.grounding, FactsGrounding):
        _check("the Roleplayer", heard, [roleplayer_views.voice(_PAIR, "Why?", ["I like tea."])])
        return
    for style in roleplayer.style:
        see = partial(roleplayer_views.roleplayer, _PAIR, question="Why?", style=style)
        _check("the Roleplayer", heard, each_turn(see))


def _check(
    role: str,
    render: Callable[[Sequence[Message]], object],
    conversations: Sequence[Sequence[Message]],
) -> None:
    for messages in conversations:
        try:
            render(messages)
        except ModelError as error:
            turns = " ".join(message.role for message in messages)
            raise ModelError(f"{error}; what {role} sees: {turns}") from error
