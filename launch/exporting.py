"""Writes a checkpoint as a Hugging Face folder that works without stargate.

weights, tokenizer and config of the checkpoint + carried chat template, generation config, card
"""

import json
import shutil
from pathlib import Path
from typing import Any

from stargate.errors import DataError
from stargate.launch.checkpoint import Checkpoint
from stargate.launch.model_card import base_of, model_card
from stargate.records.files import disk_errors, whole_folder
from stargate.records.model_folder import WEIGHTS_INDEX, copy_companions, read_object, weight_files

# Of the training alone: sums and changes of weights, for pushes into engines.
_OF_THE_RUN = ("weight-sums.json", "changed-columns.json")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_NAMES = ("_model_name_or_path", "_name_or_path")


def write_export(checkpoint: Checkpoint, out: Path, place: str | None = None) -> None:
    """Writes the folder `out`, whole or not at all. `place`: what its card calls it.

    Raises DataError if something is there already, and MachineError if it can't be written.
    """
    if out.exists() or out.is_symlink():
        raise DataError(f"{out}: exists already; give a new folder, or remove it first")
    template = checkpoint.template()
    card = model_card(checkpoint, place or out.name)
    source = checkpoint.folder
    with disk_errors(out / "model"), whole_folder(out) as partial:
        copy_companions(source, partial, but=_OF_THE_RUN)
        index = source / WEIGHTS_INDEX
        for file in (*weight_files(source), *([index] if index.is_file() else [])):
            shutil.copyfile(file, partial / file.name)  # not its mode
        write_object(partial / "config.json", _config(checkpoint))
        write_object(partial / "generation_config.json", generation_config(checkpoint))
        tokenizer_config = partial / "tokenizer_config.json"
        if tokenizer_config.is_file():
            settings = read_object(tokenizer_config)
            if settings.pop("chat_template", None) is not None:
                write_object(tokenizer_config, settings)
        (partial / "chat_template.json").unlink(missing_ok=True)  # an older form of the next one
        (partial / "chat_template.jinja").write_text(template, encoding="utf-8")
        (partial / "README.md").write_text(card, encoding="utf-8")


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The model's config, which names the base model as others know it."""
    config = read_object(checkpoint.folder / "config.json")
    kept = {key: value for key, value in config.items() if key not in _NAMES}
    return {"_name_or_path": base_of(checkpoint.config), **kept}


def generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The Questioner's sampling; a text ends where the template ends a turn."""
    folder = checkpoint.folder
    given: dict[str, Any] = dict(read_object(folder / "config.json"))
    if (folder / "generation_config.json").is_file():
        given |= read_object(folder / "generation_config.json")
    ids = {key: given[key] for key in _TOKEN_IDS if given.get(key) is not None}
    ends = ids.get("eos_token_id", [])
    ends = [ends] if isinstance(ends, int) else list(ends)
    ids["eos_token_id"] = list(dict.fromkeys((*ends, *checkpoint.chat.stop_ids)))
    questions, response = checkpoint.config.questioner.sampling, checkpoint.config.response.sampling
    sampling: dict[str, Any] = {"do_sample": questions.temperature > 0.0}
    if questions.temperature > 0.0:
        # 0 is no top-k, which the run has not either; without it transformers takes 50.
        sampling |= {"temperature": questions.temperature, "top_p": questions.top_p, "top_k": 0}
    longest = max(questions.max_new_tokens, response.max_new_tokens)
    return {**ids, **sampling, "max_new_tokens": longest}


def write_object(file: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file that holds an object."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
