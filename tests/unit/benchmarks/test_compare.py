"""`stargate bench compare`: what fell by more than 10 % is flagged, and the exit code says so."""

import json
from pathlib import Path

import pytest

from stargate.benchmarks.results import BASELINES
from stargate.launch.bench import BENCHMARKS
from stargate.launch.cli import main


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
