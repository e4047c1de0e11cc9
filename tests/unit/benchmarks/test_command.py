"""`stargate bench`: options, help, and what `compare` flags: what fell by more than 10 %."""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from stargate.benchmarks.command import BENCHMARKS, configure
from stargate.benchmarks.results import BASELINES
from stargate.launch.cli import main


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    configure(parser)
    return parser.parse_args(arguments)


def test_defaults() -> None:
    push = parse("push")
    assert (push.model, push.pushes, push.json) == ("embedded", 9, None)
    assert parse("score").pairs == 8
    assert parse("scale").pairs == [1, 4, 16, 64]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("score --pairs 0", "--pairs: must be at least 1, got 0"),
        ("scale --pairs 0", "--pairs: must be at least 1, got 0"),
        ("scale --workers -1", "--workers: must be at least 0, got -1"),
        ("scale --curve tpu", "--curve: invalid choice: 'tpu'"),
        ("train --steps 0", "--steps: must be at least 1, got 0"),
        ("train --warmup-steps 0", "--warmup-steps: must be at least 1, got 0"),
        ("push --pushes 0", "--pushes: must be at least 1, got 0"),
        ("iteration --rounds 0", "--rounds: must be at least 1, got 0"),
    ],
)
def test_what_measures_nothing_is_refused(
    command: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*command.split())
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_says_defaults_and_how_each_ratio_is_measured(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module: Any = importlib.import_module(f"stargate.benchmarks.{name}")
    with pytest.raises(SystemExit):
        parse(name, "--help")
    shown = capsys.readouterr().out
    assert module.__doc__.strip() in shown
    assert all(ratio.meaning in shown for ratio in module.RATIOS.values())
    assert "(default: " in shown
    assert "(default: None)" not in shown
    assert "--json FILE" in shown


@pytest.mark.parametrize(("name", "ratio"), [("push", "vs_memcpy"), ("score", "golds8_vs_1")])
def test_costs_are_better_when_lower(name: str, ratio: str) -> None:
    module: Any = importlib.import_module(f"stargate.benchmarks.{name}")
    assert module.RATIOS[ratio].reached(2.9)
    assert not module.RATIOS[ratio].reached(3.1)


def result(file: Path, benchmark: str, **ratios: float) -> str:
    file.write_text(json.dumps({"benchmark": benchmark, "ratios": ratios, "figures": {}}))
    return str(file)


def test_more_than_a_tenth_less_is_flagged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where less is better: golds8_vs_1 is a cost."""
    old = result(tmp_path / "old", "score", vs_forward=1.0, golds8_vs_1=2.7)
    new = result(tmp_path / "new", "score", vs_forward=0.91, golds8_vs_1=3.1)
    assert main(["bench", "compare", new, "--against", old]) == 1
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["vs_forward", "1.000", "->", "0.910", "ok"],
        ["golds8_vs_1", "2.700", "->", "3.100", "FELL", "by", "13%"],
    ]
    assert main(["bench", "compare", old, "--against", new]) == 0


def test_a_ratio_that_is_not_measured_any_more_has_fallen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = result(tmp_path / "old", "push", vs_restart=90.0, vs_memcpy=2.0)
    new = result(tmp_path / "new", "push", vs_memcpy=2.0)
    assert main(["bench", "compare", new, "--against", old]) == 1
    assert "not measured FELL by 100%" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_has_a_baseline(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Made by its command, from a commit, on hardware that it names; it equals itself."""
    file = BASELINES / f"{name}.json"
    kept = json.loads(file.read_text())
    assert kept["hardware"]["cores"] >= 1
    assert len(kept["commit"]) == 40
    assert kept["dirty"] is False
    module: Any = importlib.import_module(f"stargate.benchmarks.{name}")
    assert kept["ratios"].keys() == module.RATIOS.keys()
    assert main(["bench", "compare", str(file)]) == 0
    out = capsys.readouterr().out
    assert out == "chaos: has no ratios to compare\n" if name == "chaos" else "ok" in out


def test_what_is_no_result_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = result(tmp_path / "new", "push", vs_memcpy=2.0)
    other = result(tmp_path / "other", "score", vs_forward=1.0)
    assert main(["bench", "compare", new, "--against", other]) == 3
    assert "is of 'push', the other of 'score'" in capsys.readouterr().err
    (tmp_path / "torn").write_text('{"benchmark": ')
    assert main(["bench", "compare", str(tmp_path / "torn")]) == 3
    assert "not a benchmark's JSON line" in capsys.readouterr().err
