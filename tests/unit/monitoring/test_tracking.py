"""Tracking: what is written reads back as it was, and no tracker holds up or ends a run."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stargate.config.files import validated
from stargate.config.outputs import TrackingConfig
from stargate.errors import ConfigError
from stargate.monitoring import tracking
from stargate.monitoring.scalars import Point
from stargate.monitoring.tracking import Trackers, check_installed, open_trackers
from tests.fakes.clock import wait_for
from tests.fakes.trackers import FakeMlflow, FakeWandb

SECRET = "sk-a-secret-that-is-nobodys-business"
RESOLVED = {"name": "demo", "trainer": {"learning_rate": 2e-5, "num_threads": None}}


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def config_of(**tree: Any) -> TrackingConfig:
    return TrackingConfig.model_validate({"tensorboard": False, **tree})


def never(line: str) -> None:
    raise AssertionError(f"said: {line}")


def opened(run_dir: Path, say: Callable[[str], object] = never, **tree: Any) -> Trackers:
    """The trackers of a run that asks for these."""
    return open_trackers(config_of(**tree), run_dir, "demo-1", RESOLVED, say)


def read_back(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of RUN/tensorboard by name: (step, value) in order."""
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


# TensorBoard


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    with opened(tmp_path, tensorboard=True) as trackers:
        trackers.log({"train/loss": 2.5, "train/grad_norm": 0.75}, 1)
        trackers.log_all([Point({"train/loss": 1.25}, 2), Point({"eval/gold_logprob": -43.5}, 0)])
    assert read_back(tmp_path) == {
        "train/loss": [(1, 2.5), (2, 1.25)],
        "train/grad_norm": [(1, 0.75)],
        "eval/gold_logprob": [(0, -43.5)],
    }
    assert trackers.lost == {}


def test_points_are_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path, tensorboard=True) as trackers:
        trackers.log({"train/loss": 2.5}, 1)
        wait_for(lambda: "train/loss" in read_back(tmp_path))
        assert read_back(tmp_path) == {"train/loss": [(1, 2.5)]}


def test_tensorboard_is_written_without_tensorflow_and_torch(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    code = (
        "import sys; from pathlib import Path; from stargate.monitoring.tracking import *\n"
        "assert 'tensorboard' not in sys.modules\n"
        "with open_trackers(TrackingConfig(), Path('run'), 'run', {}, print) as trackers:\n"
        "    trackers.log({'train/loss': 1.5}, 1)\n"
        "assert not {'torch', 'tensorflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert read_back(tmp_path / "run") == {"train/loss": [(1, 1.5)]}


def test_nothing_asked_for_writes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as trackers:
        trackers.log({"train/loss": 2.5}, 1)
    assert list(tmp_path.iterdir()) == []


# Weights & Biases, MLflow


def test_wandb_gets_config_and_an_axis_for_each_kind_of_step(
    tmp_path: Path, wandb: FakeWandb
) -> None:
    with opened(
        tmp_path, wandb={"project": "gates", "entity": "us", "mode": "offline"}
    ) as trackers:
        trackers.log({"eval/gold_logprob": -43.5}, 0)
        trackers.log({"train/loss": 2.5}, 7)
        trackers.log({"eval/gold_logprob": -40.0}, 1)
    assert wandb.made("init") == [
        {
            "project": "gates",
            "entity": "us",
            "name": "demo-1",
            "dir": str(tmp_path),
            "mode": "offline",
            "config": RESOLVED,
            "settings": {"console": "off"},
        }
    ]
    assert wandb.made("define_metric") == [
        ("optimizer_step", None),
        ("train/*", "optimizer_step"),
        ("version", None),
        ("rollout/*", "version"),
        ("push/*", "version"),
        ("dropped/*", "version"),
        ("seconds/*", "version"),
        ("eval/*", "version"),
    ]
    assert wandb.made("log") == [
        {"eval/gold_logprob": -43.5, "version": 0},
        {"train/loss": 2.5, "optimizer_step": 7},
        {"eval/gold_logprob": -40.0, "version": 1},
    ]
    assert wandb.made("finish") == [0]


def test_mlflow_gets_parameters_and_metrics_in_the_thread_of_its_run(
    tmp_path: Path, mlflow: FakeMlflow
) -> None:
    with opened(
        tmp_path, mlflow={"tracking_uri": "http://127.0.0.1:5000", "experiment": "gates"}
    ) as trackers:
        trackers.log({"eval/gold_logprob": -43.5}, 0)
        trackers.log({"train/loss": 2.5, "train/grad_norm": 0.5}, 1)
    assert mlflow.calls == [
        ("set_tracking_uri", "http://127.0.0.1:5000"),
        ("set_experiment", "gates"),
        ("start_run", "demo-1"),
        (
            "log_params",
            "demo-1",
            {"name": "demo", "trainer.learning_rate": 2e-5, "trainer.num_threads": None},
        ),
        ("log_metrics", "demo-1", {"eval/gold_logprob": -43.5}, 0),
        ("log_metrics", "demo-1", {"train/loss": 2.5, "train/grad_norm": 0.5}, 1),
        ("end_run", "demo-1", "FINISHED"),
    ]


def test_mlflow_without_an_address_uses_its_own(tmp_path: Path, mlflow: FakeMlflow) -> None:
    opened(tmp_path, mlflow={}).close()
    assert mlflow.calls[0] == ("set_experiment", "star-gate")


def test_a_failed_run_is_marked_as_failed(
    tmp_path: Path, wandb: FakeWandb, mlflow: FakeMlflow
) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        opened(tmp_path, wandb={}, mlflow={}),
    ):
        raise KeyboardInterrupt
    assert wandb.made("finish") == [1]
    assert mlflow.calls[-1] == ("end_run", "demo-1", "FAILED")


def test_no_environment_variable_reaches_a_tracker(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, mlflow: FakeMlflow
) -> None:
    for variable in ("OPENAI_API_KEY", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(variable, SECRET)
    with opened(tmp_path, tensorboard=True, wandb={}, mlflow={}) as trackers:
        trackers.log({"train/loss": 2.5}, 1)
    assert SECRET not in repr([wandb.calls, mlflow.calls])
    assert all(SECRET.encode() not in f.read_bytes() for f in tmp_path.rglob("*tfevents*"))


# Before the run starts


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_asked_for_and_not_installed(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as error:
        opened(tmp_path, tensorboard=True, **{package: {}})
    assert str(error.value) == (
        f"tracking.{package}: the package {package} is not installed; run: pip install {package}"
    )
    assert list(tmp_path.iterdir()) == []  # nothing was opened before it was found out


def test_a_folder_that_wandb_left_behind_is_not_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_installed(config_of(wandb={}))


def test_what_is_not_asked_for_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tensorboard", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)
    check_installed(config_of())


def test_a_tracker_that_does_not_open_is_one_line_and_closes_the_others(
    tmp_path: Path, wandb: FakeWandb, mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError(f"no route to\nhttp://me:{SECRET}@host:5000/api")

    monkeypatch.setattr(mlflow, "set_experiment", unreachable)
    with pytest.raises(ConfigError) as error:
        opened(tmp_path, wandb={}, mlflow={})
    assert str(error.value) == (
        "tracking.mlflow: can't be opened: ConnectionError: no route to "
        "http://[hidden]@host:5000/api (is tracking.mlflow.tracking_uri right, and the server up?)"
    )
    assert wandb.made("finish") == [1]


def test_parameters_that_are_refused_leave_no_mlflow_run_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow: FakeMlflow
) -> None:

    def refuse(params: Mapping[str, Any]) -> None:
        raise ValueError("too many")

    monkeypatch.setattr(mlflow, "log_params", refuse)
    with pytest.raises(ConfigError, match="can't be opened: ValueError: too many"):
        opened(tmp_path, mlflow={})
    assert mlflow.calls[-1] == ("end_run", "demo-1", "FAILED")


def test_a_server_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    real = wandb.init

    def slow(**arguments: Any) -> FakeWandb:
        answer.wait(30.0)
        return real(**arguments)

    monkeypatch.setattr(wandb, "init", slow)
    monkeypatch.setattr(tracking, "_OPEN_SECONDS", 0.05)
    with pytest.raises(ConfigError, match=r"can't be opened: no answer within 0 s .*offline"):
        opened(tmp_path, wandb={})
    answer.set()  # late: the run that opens now is ended
    wait_for(lambda: bool(wandb.made("finish")))
    assert wandb.made("finish") == [1]


def test_a_password_in_the_config_is_refused_and_not_shown() -> None:
    tree = {"mlflow": {"tracking_uri": f"postgresql://me:{SECRET}@host/db"}}
    with pytest.raises(ConfigError, match=r"c.yaml: mlflow.tracking_uri: .*TRACKING_URI") as error:
        validated(TrackingConfig, Path("c.yaml"), tree, [])
    assert SECRET not in str(error.value)


def test_trackers_are_asked_for_by_override() -> None:
    config = validated(
        TrackingConfig, Path("c.yaml"), {}, ["wandb={}", "mlflow.tracking_uri=sqlite:///m.db"]
    )
    assert config.model_dump() == {
        "tensorboard": True,
        "wandb": {"project": "star-gate", "entity": None, "mode": "online"},
        "mlflow": {"tracking_uri": "sqlite:///m.db", "experiment": "star-gate"},
    }


# While the run goes on


def test_a_tracker_that_fails_is_switched_off_once_and_counted(
    tmp_path: Path, mlflow: FakeMlflow
) -> None:
    mlflow.log_error = ConnectionError(f"http://me:{SECRET}@host is gone\nfor good")
    said: list[str] = []
    with opened(tmp_path, said.append, tensorboard=True, mlflow={}) as trackers:
        trackers.log({"train/loss": 2.5, "train/grad_norm": 0.5}, 1)
        trackers.log({"train/loss": 2.0}, 2)
        trackers.log({"train/loss": 1.5}, 3)
    assert said == [
        "tracking.mlflow: switched off for the rest of the run: "
        "ConnectionError: http://[hidden]@host is gone for good"
    ]
    assert [call for call in mlflow.calls if call[0] == "log_metrics"] == [
        ("log_metrics", "demo-1", {"train/loss": 2.5, "train/grad_norm": 0.5}, 1)
    ]
    assert mlflow.calls[-1] == ("end_run", "demo-1", "FINISHED")
    assert trackers.lost == {"mlflow": 4}
    assert read_back(tmp_path)["train/loss"] == [(1, 2.5), (2, 2.0), (3, 1.5)]


def test_a_tracker_that_hangs_holds_up_nobody(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(wandb, "log", lambda data: answer.wait(30.0))
    # The time at the end, at the wait for TensorBoard and at that for W&B: then none is left.
    clock = SimpleNamespace(monotonic=iter((0.0, 0.0, 60.0)).__next__, time=time.time)
    said: list[str] = []
    with opened(tmp_path, said.append, tensorboard=True, wandb={}) as trackers:
        for step in range(1, 101):
            trackers.log({"train/loss": 1.0}, step)
        monkeypatch.setattr(tracking, "time", clock)
    assert said == ["tracking.wandb: still busy 60 s after the end, given up"]
    assert trackers.lost == {"wandb": 100}
    assert len(read_back(tmp_path)["train/loss"]) == 100
    answer.set()


def test_a_tracker_that_does_not_close_is_said(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(exit_code: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(wandb, "finish", broken)
    said: list[str] = []
    opened(tmp_path, said.append, wandb={}).close()
    assert said == ["tracking.wandb: did not close: OSError: disk full"]
