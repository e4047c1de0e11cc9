"""`stargate run CONFIG --dry-run` and `stargate doctor CONFIG`: a plan without a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest

from stargate.config.files import load_config
from stargate.config.run import RunConfig
from stargate.launch import doctor
from stargate.launch.cli import main
from stargate.launch.dry_run import plan_lines
from stargate.resources.gpus import Gpu


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model was ever downloaded, and nothing may be written into the working tree."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "gpus"), [("paper", "8x80"), ("one_gpu", "1x24"), ("single_node", "4x24")]
)
def test_a_shipped_config(
    name: str, gpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", name, "--dry-run", "--assume-gpus", gpus]) == 0
    out = capsys.readouterr().out
    assert f"{name} on {gpus} GiB, assumed: a plan, nothing is started" in out
    for word in ("questioner-0", "roleplayer-0", "scorer-0", "trainer-0", "time, roughly"):
        assert word in out
    assert out.endswith("every process fits\n")
    assert list(tmp_path.iterdir()) == []


def row(lines: list[str], name: str) -> list[str]:
    return next(line for line in lines if line.startswith(name)).split()


def test_the_table_of_the_paper() -> None:
    lines, fits = plan_lines(load_config("paper"), "8x80")
    assert fits
    assert row(lines, "roleplayer-1")[1:3] == ["3,4", "43.5"]
    assert row(lines, "trainer-1")[1:6] == ["7", "6.7", "13.5", "13.5", "27.0"]


def test_what_does_not_fit_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    changed = ["trainer.activation_checkpointing=false"]
    assert main(["run", "paper", *changed, "--dry-run", "--assume-gpus", "8x80"]) == 5
    out = capsys.readouterr().out
    assert "does not fit: trainer-0 needs 89.6 GiB of GPU 6, which has 80.0: set trainer.act" in out


def test_too_few_gpus_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "paper", "--dry-run", "--assume-gpus", "4x80"]) == 5
    assert "needs 8 GPUs, this machine has 4" in capsys.readouterr().err


@pytest.mark.parametrize("gpus", ["8", "x80", "0x80", "8x80,", "8xA100"])
def test_what_is_no_machine(gpus: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "paper", "--dry-run", "--assume-gpus", gpus]) == 2
    assert "expected COUNTxGIB such as 8x80" in capsys.readouterr().err


def test_assumed_gpus_are_for_plans(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "paper", "--assume-gpus", "8x80"]) == 2
    assert "--assume-gpus is for --dry-run" in capsys.readouterr().err


def test_several_nodes() -> None:
    lines, fits = plan_lines(load_config("paper"), "4x80,4x80")
    assert fits
    found = [line.split()[:4] for line in lines if line.startswith("node ")]
    assert sorted(found) == [
        ["node", "0:", "roleplayer-0", "0,1"],
        ["node", "0:", "roleplayer-1", "2,3"],
        ["node", "1:", "questioner-0", "0"],
        ["node", "1:", "scorer-0", "1"],
        ["node", "1:", "trainer-0", "2"],
        ["node", "1:", "trainer-1", "3"],
    ]


def test_a_model_that_is_not_known_is_said() -> None:
    config = load_config("single_node", ["model=nobody/knows-it"])
    lines, fits = plan_lines(config, "4x24")
    assert fits
    assert any("not known: the size of nobody/knows-it" in line for line in lines)
    assert row(lines, "trainer-0")[2] == "?"
    assert "time: not estimated, as the size of a model is not known" in lines
    assert lines[-1] == "what is known fits"


def test_a_part_on_the_cpu_is_said() -> None:
    lines, _ = plan_lines(load_config("single_node", ["scorer.num_gpus=0"]), "4x24")
    assert any(line.startswith("note: the scorer computes on the CPU") for line in lines)


def test_the_gpus_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Gpu("A10G", 22.2, "580.1", (8, 6), "GPU-1")
    monkeypatch.setattr("stargate.resources.machine.gpus", lambda: (card,) * 4)
    lines, fits = plan_lines(load_config("single_node"), None)
    assert lines[0].startswith("single_node on this machine, 4 GPUs of 22 GiB")
    assert fits


def test_an_api_takes_no_place() -> None:
    oracle = {"type": "openai", "base_url": "http://127.0.0.1/v1", "model": "m"}
    config = RunConfig.model_validate(
        {"device": "cuda", "roleplayer": {"type": "api", "oracle": oracle}}
    )
    lines, _ = plan_lines(config, "3x24")
    assert not any(line.startswith("roleplayer") for line in lines)
    assert "  without the time that the Roleplayer's API takes" in lines


def test_the_estimate_grows_with_the_work() -> None:
    def hours(*changes: str) -> Any:
        lines, _ = plan_lines(load_config("paper", changes), "8x80")
        words = row(lines, "  the run")
        return float(words[2]) / (60 if words[3] == "min" else 1)

    assert hours("rollout.num_dialogues=1000") > 5 * hours()


def test_doctor_plans_a_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda imports: [])
    monkeypatch.setattr(doctor, "_print_report", lambda findings, failures: None)
    assert main(["doctor", "paper", "--assume-gpus", "8x80"]) == 0
    assert capsys.readouterr().out.endswith("every process fits\n")
    tight = ["doctor", "paper", "trainer.micro_batch_size=32", "--assume-gpus", "8x80", "--json"]
    assert main(tight) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and not told["fits"]
    assert main(["doctor", "--assume-gpus", "8x80"]) == 2
