"""The command line: quick help, one clear line for a user's mistake, light imports."""

import subprocess
import sys

import pytest

from stargate.launch.cli import COMMANDS, main

# Nothing that the command line imports before it runs something may load one of these.
HEAVY = {"torch", "vllm", "ray", "deepspeed", "transformers", "pyarrow", "pandas"}


def test_every_help_prints_and_imports_nothing_heavy() -> None:
    every = [["--help"], *([name, "--help"] for name in COMMANDS)]
    code = (
        "import sys; from stargate.launch.cli import main\n"
        f"for arguments in {every!r}:\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: assert end.code == 0, (arguments, end.code)\n"
        f"    assert not (heavy := {HEAVY!r} & set(sys.modules)), (arguments, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: stargate") == len(every)


# Everything outside the actors' own insides must be importable without the engines.
LIGHT = [
    *("chat", "config", "dialogue", "examples", "grounding", "iteration", "models", "placement"),
    *("progress", "prompts", "protocols", "roleplayer", "scoring", "selection", "views"),
    *("evaluation.controls", "data.dataset", "launch.session", "actors.engine"),
    *("actors.scorer", "actors.trainer", "actors.weights", "evaluation.judging", "report.page"),
    *("launch.ablation", "launch.crew", "launch.eval_session", "launch.report", "tracking"),
]


def test_pure_modules_import_no_engine() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(f'stargate.{name}')\n"
        f"    heavy = {HEAVY - {'pyarrow', 'pandas'}!r} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_mistake_is_one_line_and_a_non_zero_exit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "cpu_demo", "rollout.num_dialogs=3"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("stargate run: ")
    assert "unknown key rollout.num_dialogs" in captured.err


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fly"])
    assert end.value.code == 2
    assert "run" in capsys.readouterr().err


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
