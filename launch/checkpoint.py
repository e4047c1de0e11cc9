"""A checkpoint of a run as others use it: its folder, its prompts, the template that carries them.

RUN + "m1" -> Checkpoint -> chat template for any client
"""

from dataclasses import dataclass
from pathlib import Path

from stargate.config.run import RunConfig
from stargate.errors import DataError
from stargate.evaluation.evaluator import trained_folders, version_named
from stargate.records.model_folder import check_model_folder
from stargate.records.store import load_run_config
from stargate.resources.models import resolve_model
from stargate.text.carried_template import carried_template
from stargate.text.chat import ChatFormat, load_tokenizer
from stargate.text.hf_tokenizer import HfChatTokenizer
from stargate.text.prompts import PromptSet, load_prompts


@dataclass(frozen=True)
class Checkpoint:
    """m_`version` of a run; `folder` has its weights and its tokenizer."""

    run_dir: Path
    config: RunConfig
    version: int
    folder: Path
    prompts: PromptSet
    tokenizer: HfChatTokenizer
    chat: ChatFormat

    @property
    def name(self) -> str:
        return f"m{self.version}"

    @property
    def num_questions(self) -> int:
        """The most questions that a dialogue of its training had."""
        return max(self.config.rollout.turns)

    def template(self) -> str:
        """The chat template with the run's prompts in it. Raises ConfigError."""
        return carried_template(self.prompts, self.chat, self.tokenizer, self.num_questions)


def open_checkpoint(run_dir: Path, name: str | None) -> Checkpoint:
    """ "m1" of a run, "m0" its base model; None: the last one that it trained.

    Raises StargateError.
    """
    config = load_run_config(run_dir)
    trained = trained_folders(run_dir)
    if name is None and not trained:
        raise DataError(
            f"{run_dir}: has trained no model yet; --checkpoint m0 is the model it began with"
        )
    version = max(trained) if name is None else version_named(name, (0, *trained), "checkpoint")
    trust = config.trust_remote_code
    if version:
        folder = trained[version]
        check_model_folder(folder)
    else:
        folder = resolve_model(config.model, trust_remote_code=trust)
    tokenizer = load_tokenizer(str(folder), trust, config.questioner.chat_template_kwargs)
    return Checkpoint(
        run_dir=run_dir,
        config=config,
        version=version,
        folder=folder,
        prompts=load_prompts(config.prompts),
        tokenizer=tokenizer,
        chat=ChatFormat(tokenizer, str(folder)),
    )
