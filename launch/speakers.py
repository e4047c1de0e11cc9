"""The checkpoints of a run as speakers in this process, and its simulated user."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from stargate.config.roleplayer import FactsGrounding
from stargate.config.run import EngineRoleplayerConfig, RunConfig
from stargate.data.dataset import open_dataset
from stargate.errors import ConfigError, RecordDropped
from stargate.launch.checkpoint import Checkpoint, open_checkpoint
from stargate.launch.conversation import Conversation, Hear, Message
from stargate.records.store import load_run_config
from stargate.resources.models import resolve_embedder, resolve_roleplayer
from stargate.rollout.grounding import open_matcher
from stargate.rollout.questioner import sampling_of
from stargate.rollout.roleplayer import EngineCall, build_roleplayer, require_facts
from stargate.seeds import derive_seed
from stargate.text.chat import ChatFormat, load_tokenizer
from stargate.text.hf_tokenizer import HfChatTokenizer
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import Pair, Persona, StopReason, Task, Turn


class Speakers:
    """Opens the models of one run, each folder once."""

    def __init__(self, run_dir: Path, persona_id: str | None) -> None:
        self._run_dir = run_dir
        self._config = load_run_config(run_dir)
        self._persona = None if persona_id is None else _persona(self._config, persona_id)
        self._models: dict[Path, Any] = {}
        self._ends = ExitStack()
        self._runner: asyncio.Runner | None = None
        self._user: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    @property
    def user_name(self) -> str | None:
        """The persona's, if there is one."""
        return self._persona.name if self._persona else None

    def open(self, name: str | None, user_name: str | None) -> "LocalSpeaker":
        """A checkpoint by its name, or the last one."""
        checkpoint = open_checkpoint(self._run_dir, name)
        model = self._model(checkpoint.folder, checkpoint.tokenizer)
        return LocalSpeaker(checkpoint, model, user_name)

    def watch(self, conversation: Conversation, task: str) -> None:
        """The simulated user asks `task` and answers every question, then the model answers."""
        persona = self._persona
        if persona is None:
            raise ValueError("nobody is simulated without a persona")
        roleplay, runner = self._opened_user()
        pair, words = Pair(Task("chat", task, ""), persona, ""), task
        turns: list[Turn] = []
        for number in range(conversation.num_trained):
            question = conversation.asks(words)
            seed = derive_seed(self._config.seed, "chat", number)
            try:
                answer = runner.run(roleplay(pair, turns, question, session="chat", seed=seed))
            except RecordDropped as problem:
                conversation.screen.line(f"{persona.name} does not answer: {problem.detail}")
                return
            words = answer.text
            conversation.screen.line(f"{persona.name}: {words}")
            turns.append(
                Turn(
                    question=question,
                    question_ids=(),
                    question_stop=StopReason.STOP,
                    answer=words,
                    answer_ids=answer.token_ids,
                    answer_stop=answer.stop,
                    elicited=answer.elicited,
                    retracted=answer.retracted,
                )
            )
            if answer.final:
                break
        conversation.messages.append({"role": "user", "content": words})
        conversation.answers()

    def _opened_user(self) -> tuple[Any, asyncio.Runner]:
        """The run's Roleplayer, opened when it is first needed."""
        if self._runner is None:
            config = self._config
            roleplayer, folder = config.roleplayer, resolve_roleplayer(config)
            if not isinstance(roleplayer, EngineRoleplayerConfig) or folder is None:
                raise ConfigError(
                    "--persona: the run's simulated user is an API (roleplayer.type=api); only one "
                    "with a model can be watched here"
                )
            switches = roleplayer.chat_template_kwargs
            tokenizer = load_tokenizer(str(folder), config.trust_remote_code, switches)
            chat = ChatFormat(tokenizer, str(folder))
            call = EngineCall(self._model(folder, tokenizer), chat, roleplayer)
            views = Views(load_prompts(roleplayer.prompts or config.prompts))
            matcher = None
            if isinstance(roleplayer.grounding, FactsGrounding):
                matcher = open_matcher(roleplayer.grounding, resolve_embedder())
            if matcher is not None:
                self._ends.callback(matcher.close)
            self._user = build_roleplayer(roleplayer, call, views, matcher, config.seed)
            self._runner = self._ends.enter_context(asyncio.Runner())
        return self._user, self._runner

    def _model(self, folder: Path, tokenizer: HfChatTokenizer) -> Any:
        if folder not in self._models:
            import torch
            from transformers.utils import logging

            from stargate.actors.modeling.local_model import LocalModel

            logging.disable_progress_bar()
            on_gpu = self._config.device != "cpu" and torch.cuda.is_available()
            trust = self._config.trust_remote_code
            device = "cuda" if on_gpu else "cpu"
            self._models[folder] = LocalModel(str(folder), tokenizer.tokenizer, device, trust)
        return self._models[folder]


class LocalSpeaker:
    """A checkpoint behind the prompts that it was trained with."""

    def __init__(self, checkpoint: Checkpoint, model: Any, user_name: str | None) -> None:
        self.name = checkpoint.name
        self.num_trained = checkpoint.num_questions
        self._checkpoint = checkpoint
        self._model = model
        self._template = checkpoint.template()
        self._user_name = user_name

    def reply(self, messages: Sequence[Message], *, ask: bool, hear: Hear | None) -> str:
        """Its next question, or its answer to the dialogue that ends with the user's words."""
        checkpoint = self._checkpoint
        asked = sum(message["role"] == "assistant" for message in messages)
        prompt = checkpoint.tokenizer.render(
            messages,
            True,
            template=self._template,
            num_questions=asked + ask,
            user_name=self._user_name,
        )
        config = checkpoint.config.questioner if ask else checkpoint.config.response
        seed = derive_seed(checkpoint.config.seed, "chat", asked, messages[-1]["content"])
        stops = checkpoint.chat.stop_ids
        sampling = replace(sampling_of(config.sampling, seed), stop_ids=stops)
        ids = checkpoint.tokenizer.encode(prompt)
        generation = self._model.generate(ids, sampling, hear)
        return checkpoint.chat.heard(generation).text.strip()


def _persona(config: RunConfig, persona_id: str) -> Persona:
    personas = open_dataset(config.data.source).personas
    if persona_id not in personas:
        known = ", ".join(sorted(personas)[:12])
        raise ConfigError(
            f"--persona: {config.data.source} has no persona {persona_id!r}; it has {known}"
            f"{', ...' if len(personas) > 12 else ''}"
        )
    persona = personas[persona_id]
    if isinstance(config.roleplayer.grounding, FactsGrounding):
        require_facts([Pair(Task("chat", "", ""), persona, "")])
    return persona
