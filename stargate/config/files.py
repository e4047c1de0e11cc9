"""Configs from files and to files; every wrong file is one ConfigError that names file and key.

A run's: YAML file -> key=value overrides -> RunConfig (validated, frozen) -> config.yaml beside it
"""

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from stargate.config.component import TAG, Component
from stargate.config.run import RunConfig
from stargate.errors import ConfigError, one_line

ComponentT = TypeVar("ComponentT", bound=Component)

# What PyYAML raises for a text: its own errors, and whatever its constructors stumble over
# ("!!int", "2001-99-99", a thousand brackets).
_NOT_YAML = (
    *(yaml.YAMLError, ValueError, ArithmeticError, LookupError),
    *(TypeError, AttributeError, RecursionError),
)
# Characters of a wrong value that a message shows: aliases make a short file an endless value.
_SHOWN_CHARS = 200
# Aliases written out, a config has some hundreds; a few lines of them can make billions.
_MAX_VALUES = 100_000


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file (or the name of a packaged config), applies `key=value` overrides and
    validates.

    Overrides use dots ("rollout.num_dialogues=4"); values are YAML. Raises ConfigError naming file
    and key.
    """
    file = find_config(path)
    tree = read_yaml(file)
    return validated(RunConfig, file, {} if tree is None else tree, overrides)


def read_yaml(file: Path) -> Any:
    """The plain values of a YAML file. Raises ConfigError."""
    try:
        return _parse(file.read_text(encoding="utf-8"))
    except _NOT_YAML as error:
        problem = one_line(error) or type(error).__name__
        raise ConfigError(f"{file}: not valid YAML: {problem}") from error
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror}") from error


def _parse(text: str) -> Any:
    """The plain values of a YAML text. Raises one of `_NOT_YAML`."""
    value = yaml.safe_load(text)
    if (size := _expanded_size(value, {})) > _MAX_VALUES:
        raise ValueError(
            f"its aliases make {size:.3g} values of it, at most {_MAX_VALUES:,} may be"
        )
    return value


def _expanded_size(value: Any, known: dict[int, int]) -> int:
    """How many values there would be if every alias were written out."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = _MAX_VALUES + 1  # within itself it never ends
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded_size(part, known) for part in parts)
    return known[id(value)]


def validated(
    model: type[ComponentT], file: Path, tree: Any, overrides: Sequence[str]
) -> ComponentT:
    """A file's values with `key=value` overrides as a component. Raises ConfigError."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected a mapping of keys, got {type(tree).__name__}")
    for override in overrides:
        apply_override(tree, override)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{file}: {describe_problem(error)}") from error


# Keys of earlier versions, and where they are now.
_MOVED = {
    "selection": "algorithm.selection (and algorithm.max_other_golds)",
    **{f"trainer.{key}": f"algorithm.{key}" for key in ("target", "questions", "start_from")},
    "evaluation.num_turns": "evaluation.turns (a list, [3] for 3)",
    "roleplayer.grounding.facts.max_facts_per_turn": "roleplayer.grounding.questions_per_turn",
}


def packaged_configs_dir() -> Path:
    """The folder of the shipped configs (and of prompts/)."""
    return Path(__file__).parents[1] / "configs"


def find_config(path: str | Path, folder: Path | None = None, kind: str = "config file") -> Path:
    """A config file by path, or by the bare name of a packaged one ("cpu_demo") in `folder`.

    Raises ConfigError.
    """
    given, folder = Path(path), folder or packaged_configs_dir()
    try:
        if given.is_file():
            return given
    except OSError as error:  # a name too long for any file
        raise ConfigError(f"{shown_value(str(path))}: {error.strerror}") from error
    packaged = folder / f"{given.name}.yaml"
    if given.name == str(path) and packaged.is_file():
        return packaged
    known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise ConfigError(f"{path}: no such {kind}; give a path or one of: {known}")


def dump_config(config: RunConfig) -> str:
    """The fully resolved config as YAML; `load_config` of it gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets one `key.key=value` in a tree of plain values. Raises ConfigError."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"override {override!r}: expected key=value, e.g. rollout.num_dialogues=4"
        )
    try:
        value = _parse(text)
    except _NOT_YAML as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent} is not a group of keys")
        node = child
    node[leaf] = value


def shown_value(value: object) -> str:
    """A value as Python writes it, cut to what a line can hold."""
    short = reprlib.Repr()
    short.maxlevel = 3
    short.maxstring = short.maxother = short.maxlong = _SHOWN_CHARS
    text = short.repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def describe_problem(error: ValidationError) -> str:
    """The first problem (and how many more) on one line: key, what is wrong, what was got."""
    problems = error.errors(include_url=False)
    first = problems[0]
    # Other tags of unions ("facts") stand in the file, too.
    place = [part for part in map(str, first["loc"]) if not part.startswith(TAG)]
    key = ".".join(place) or "(whole file)"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden" and key in _MOVED:
        text = f"{key} is {_MOVED[key]} now"
    elif first["type"] == "extra_forbidden":
        text = f"unknown key {key}; see configs/ for the known ones"
    elif first["type"] == "value_error":
        text = f"{key}: {message}"
    else:
        text = f"{key}: {message}, got {shown_value(first['input'])}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return text + more
