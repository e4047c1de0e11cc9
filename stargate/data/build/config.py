"""The configuration of a build: one YAML file, one small model per part.

Every default is the paper's (250 + 250 + 50 tasks, 50 + 50 + 10 personas, T 1.4 and 0, 400 and 300
tokens) unless its comment says otherwise.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stargate.config.component import Component, Fraction, NonNegativeInt, PositiveInt
from stargate.config.files import find_config, packaged_configs_dir, read_yaml, validated
from stargate.config.oracle import (
    LocalOracleConfig,
    OpenAIOracleConfig,
    OracleConfig,
    Temperature,
    TopP,
)
from stargate.config.run import EngineConfig
from stargate.errors import ConfigError

_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
PAPER_TASKS = "Dahoas/instruct-human-assistant-prompt"
PAPER_ROWS = {"A": (0, 250), "B": (250, 500), "test": (500, 550)}
PAPER_PERSONAS = {"A": 50, "B": 50, "test": 10}


def _check_split_names(names: Sequence[str] | dict[str, Any]) -> None:
    for name in names:
        if not _SPLIT.fullmatch(name):
            raise ValueError(f"a split's name has letters, digits and . _ - only, got {name!r}")


class _Rows(Component):
    """`rows` shares rows out: split -> [first, end), counted from 0. Empty: each row names its
    split.
    """

    rows: dict[str, tuple[NonNegativeInt, PositiveInt]] = Field(default_factory=dict)

    @field_validator("rows")
    @classmethod
    def _rows_are_apart(cls, rows: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        _check_split_names(rows)
        end, before = 0, ""
        for split, (first, after) in sorted(rows.items(), key=lambda item: item[1]):
            if first >= after:
                got = f"got [{first}, {after}]"
                raise ValueError(f"{split}: expected [first, end) with first < end, {got}")
            if first < end:
                shared = f"{first} to {min(end, after) - 1}"
                raise ValueError(f"{before} and {split} share rows {shared}")
            end, before = after, split
        return rows


class FileTasks(_Rows):
    """Tasks of a file (.jsonl, .json, .txt, .csv, .parquet) or a `datasets` folder."""

    type: Literal["file"]
    path: Path
    column: str | None = None  # None: the first known name (text, prompt, task, ...)


class HubTasks(_Rows):
    """Tasks of a Hugging Face data set (the paper's), by the package `datasets`."""

    type: Literal["huggingface"] = "huggingface"
    name: str = PAPER_TASKS
    revision: str | None = None
    subset: str | None = None
    part: str = "train"  # the data set's own split, from which the rows are taken
    column: str | None = None
    rows: dict[str, tuple[NonNegativeInt, PositiveInt]] = Field(
        default_factory=lambda: dict(PAPER_ROWS)
    )


class FactsConfig(Component):
    """Facts, taken out of each persona's text by a second call. None of this is in the paper."""

    temperature: Temperature = 0.0
    max_tokens: PositiveInt = 500
    minimum: NonNegativeInt = 5  # fewer: the persona is written anew
    maximum_words: PositiveInt = 40  # of one fact
    # The share of a fact's telling words that the sentence of the text behind it must contain.
    stated_share: Fraction = 0.75


class GeneratedPersonas(Component):
    """Personas that the Oracle invents after `num_examples` random example personas."""

    type: Literal["generate"] = "generate"
    count: dict[str, PositiveInt] = Field(default_factory=lambda: dict(PAPER_PERSONAS))
    temperature: Temperature = 1.4
    top_p: TopP = 0.9
    max_tokens: PositiveInt = 400
    num_examples: PositiveInt = 2
    min_words: PositiveInt = 30
    # Jaccard similarity of runs of three words from which two personas count as one; what `stargate
    # data check` warns of. The authors' most alike personas have 0.02.
    max_similarity: Fraction = 0.5
    max_attempts: PositiveInt = 6  # per persona
    facts: FactsConfig = FactsConfig()

    @field_validator("count")
    @classmethod
    def _splits_named(cls, count: dict[str, int]) -> dict[str, int]:
        if not count:
            raise ValueError("expected a number of personas per split, got none")
        _check_split_names(count)
        return count


class FilePersonas(_Rows):
    """Personas of a dataset folder, or of a .jsonl or .json file of records or texts."""

    type: Literal["file"]
    path: Path
    # For personas without facts: taken out of the text by the Oracle, or the text's sentences.
    without_facts: Literal["extract", "sentences"] = "extract"
    max_similarity: Fraction = 0.5  # across splits
    facts: FactsConfig = FactsConfig()


class GoldsConfig(Component):
    """One call per pair."""

    temperature: Temperature = 0.0
    max_tokens: PositiveInt = 300


class BuildConfig(Component):
    """A whole build. `cache` None: OUT.oracle.sqlite beside OUT; it holds all paid answers and the
    meter.
    """

    out: Path
    seed: NonNegativeInt = 0
    prompts: str = "paper"  # a packaged set of configs/data/prompts, or a YAML file
    cache: Path | None = None
    # Which split keeps a task or persona that stands in several.
    keep_split: str = "test"
    tasks: Annotated[FileTasks | HubTasks, Field(discriminator="type")] = HubTasks()
    personas: Annotated[GeneratedPersonas | FilePersonas, Field(discriminator="type")] = (
        GeneratedPersonas()
    )
    golds: GoldsConfig = GoldsConfig()
    oracle: OracleConfig = OpenAIOracleConfig(model="gpt-4o")
    # For `oracle: {type: local}` only: the engine that the command starts.
    engine: EngineConfig = EngineConfig()

    @field_validator("out")
    @classmethod
    def _out_is_a_name(cls, out: Path) -> Path:
        if out.name in ("", ".."):
            raise ValueError(f"expected the name of a new folder, got {str(out)!r}")
        return out

    @model_validator(mode="after")
    def _cache_stands_outside(self) -> Self:
        if self.cache is not None and self.out in self.cache.parents:
            raise ValueError("cache must not lie in out: it is kept when out is made anew")
        return self

    @property
    def cache_path(self) -> Path:
        return self.cache or self.out.with_name(f"{self.out.name}.oracle.sqlite")

    @property
    def width(self) -> int:
        """Requests that are prepared at a time: enough that none in flight waits for the next."""
        oracle = self.oracle
        limits = oracle if isinstance(oracle, LocalOracleConfig) else oracle.limits
        return 2 * limits.max_concurrency

    @property
    def model(self) -> str:
        """Who answers, as the config names it."""
        return self.oracle.model or "embedded"


def load_build_config(path: str | Path, overrides: Sequence[str] = ()) -> BuildConfig:
    """Reads a YAML file, or a packaged build config by its name. Raises ConfigError."""
    file = find_config(path, packaged_build_dir(), "build config")
    return validated(BuildConfig, file, read_yaml(file), overrides)


def identity_of(config: BuildConfig, prompts: dict[str, Any]) -> dict[str, str]:
    """What decides the result, part by part as a hash: what may change between two runs (speed,
    prices, the address of the same model, names of files) is not in it.
    """
    tree = config.model_dump(mode="json")
    tree["tasks"].pop("path", None)
    tree["personas"].pop("path", None)
    parts = {
        "seed": config.seed,
        "keep_split": config.keep_split,
        "prompts": prompts,
        "tasks": [tree["tasks"], _digest(config.tasks)],
        "personas": [tree["personas"], _digest(config.personas)],
        "golds": tree["golds"],
        "oracle": [
            {key: tree["oracle"].get(key) for key in ("model", "extra_body", "refusal_patterns")},
            tree["engine"]["dtype"] if config.oracle.type == "local" else None,
        ],
    }
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]
        for name, part in parts.items()
    }


def _digest(source: Component) -> str | None:
    """A hash of the file or folder that a source reads; None if it reads none."""
    path = getattr(source, "path", None)
    if path is None:
        return None
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    if not files:
        raise ConfigError(f"{path}: no such file or folder, or an empty one")
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            part = hashlib.file_digest(content, "sha256").hexdigest()
        name = "" if file == path else file.relative_to(path).as_posix()
        whole.update(f"{name} {part}\n".encode())
    return whole.hexdigest()


def packaged_build_dir() -> Path:
    """The folder of the shipped build configs (and of their prompts/)."""
    return packaged_configs_dir() / "data"
