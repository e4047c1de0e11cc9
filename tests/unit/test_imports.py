"""Light imports: what is loaded before a command runs anything. One interpreter looks at it all."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from stargate.launch.cli import COMMANDS
from stargate.launch.data import SUBCOMMANDS

ENGINES = {"torch", "vllm", "ray", "deepspeed", "transformers"}
TABLES = {"pyarrow", "pandas", "datasets"}
# The installer uses these before anything is installed, or soon after.
SMALL = {"numpy", "psutil", "huggingface_hub"}

FIRST = ["resources.models", "resources.machine", "launch.doctor"]
HELP = [["--help"], *([name, "--help"] for name in COMMANDS)]
DATA_HELP = [["data", name, "--help"] for name in SUBCOMMANDS]
DATA = ["importers", "exporters", "quality", "showing", "writing", "official"]
# Everything outside the actors' own insides must be importable without the engines.
_LIGHT = {
    "text": "chat prompts views",
    "config": "run",
    "rollout": "dialogue grounding roleplayer",
    "algorithm": "star_gate score_requests selection",
    "resources": "models placement",
    "monitoring": "progress tracking",
    "evaluation": "controls judging",
    "data": "dataset",
    "launch": "session ablation setup system eval_session report",
    "actors.engines": "engine weight_files",
    "actors.scoring": "scorer",
    "actors.training": "rank",
    "report": "page",
}
LIGHT = [
    *("pair_steps", "training_loop", "protocols"),
    *(f"{room}.{name}" for room, names in _LIGHT.items() for name in names.split()),
]

_INTERPRETER = """
import contextlib, importlib, io, json, sys

steps, heavy = json.loads(sys.argv[1])
for step in steps:
    code, out = 0, io.StringIO()
    if isinstance(step, str):
        importlib.import_module(step)
    else:
        from stargate.launch.cli import main

        with contextlib.redirect_stdout(out):
            try:
                code = main(step)
            except SystemExit as end:
                code = end.code
    print(json.dumps([code, out.getvalue(), sorted(set(heavy) & set(sys.modules))]))
"""


@dataclass(frozen=True)
class Step:
    """A module that was imported, or a command that was called. `loaded`: by it or before it."""

    code: int
    output: str
    loaded: frozenset[str]


def _name(step: Any) -> str:
    return step if isinstance(step, str) else " ".join(step)


@pytest.fixture(scope="module")
def steps() -> dict[str, Step]:
    """Each step by its name. What may load least comes first, so that nothing hides behind it."""
    modules = [f"stargate.{name}" for name in (*(f"data.{name}" for name in DATA), *LIGHT)]
    asked: list[Any] = [f"stargate.{name}" for name in FIRST]
    asked += [*HELP, *DATA_HELP, *(name for name in modules if name not in asked)]
    given = json.dumps([asked, sorted(ENGINES | TABLES | SMALL)])
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETER, given], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        _name(step): Step(code, output, frozenset(loaded))
        for step, (code, output, loaded) in zip(asked, found, strict=True)
    }


def test_what_the_installer_uses_needs_nothing(steps: dict[str, Step]) -> None:
    for name in FIRST:
        assert steps[f"stargate.{name}"].loaded == set(), name


@pytest.mark.parametrize("argv", HELP, ids=_name)
def test_every_help_prints_and_loads_nothing_heavy(steps: dict[str, Step], argv: list[str]) -> None:
    step = steps[_name(argv)]
    assert step.code == 0
    assert step.output.count("usage: stargate") == 1
    assert not step.loaded & (ENGINES | TABLES)


@pytest.mark.parametrize("argv", DATA_HELP, ids=_name)
def test_help_of_data_has_examples_and_loads_nothing_heavy(
    steps: dict[str, Step], argv: list[str]
) -> None:
    step = steps[_name(argv)]
    assert step.code == 0
    assert f"stargate data {argv[1]} " in step.output.split("examples:")[1]
    assert not step.loaded & (ENGINES | TABLES)


@pytest.mark.parametrize("name", DATA)
def test_the_modules_of_data_load_nothing_heavy(steps: dict[str, Step], name: str) -> None:
    assert not steps[f"stargate.data.{name}"].loaded & (ENGINES | TABLES)


@pytest.mark.parametrize("name", LIGHT)
def test_pure_modules_load_no_engine(steps: dict[str, Step], name: str) -> None:
    assert not steps[f"stargate.{name}"].loaded & ENGINES
