"""Tracking: what is written reads back as it was, and no tracker holds up or ends a run."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stargate.config.files import validated
from stargate.config.outputs import TrackingConfig
from stargate.errors import ConfigError
from stargate.monitoring import tracking
from stargate.monitoring.scalars import Point
from stargate.monitoring.tracking import check_installed, open_trackers

SECRET = "sk-a-secret-that-is-nobodys-business"
RESOLVED = {"name": "demo", "trainer": {"learning_rate": 2e-5, "num_threads": None}}


class FakeWandb(ModuleType):
    """The part of the wandb package that is used; keeps every call."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="fake")
        self.calls: list[tuple[str, Any]] = []

    def init(self, **arguments: Any) -> "FakeWandb":
        self.calls.append(("init", arguments))
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.calls.append(("define_metric", (name, step_metric)))

    def log(self, data: Mapping[str, float]) -> None:
        self.calls.append(("log", dict(data)))

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))

    def made(self, name: str) -> list[Any]:
        return [arguments for call, arguments in self.calls if call == name]


class FakeMlflow(ModuleType):
    """The part of the mlflow package that is used. As there, a run belongs to a thread."""

    def __init__(self, log_error: Exception | None = None) -> None:
        super().__init__("mlflow")
        self.__spec__ = ModuleSpec("mlflow", None, origin="fake")
        self.calls: list[tuple[Any, ...]] = []
        self._log_error = log_error
        self._active = threading.local()

    def set_tracking_uri(self, uri: str) -> None:
        self.calls.append(("set_tracking_uri", uri))

    def set_experiment(self, name: str) -> None:
        self.calls.append(("set_experiment", name))

    def start_run(self, run_name: str) -> None:
        self._active.run = run_name
        self.calls.append(("start_run", run_name))

    def log_params(self, params: Mapping[str, Any]) -> None:
        self.calls.append(("log_params", self._active.run, dict(params)))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.calls.append(("log_metrics", self._active.run, dict(metrics), step))
        if self._log_error is not None:
            raise self._log_error

    def end_run(self, status: str) -> None:
        self.calls.append(("end_run", self._active.run, status))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def install_mlflow(monkeypatch: pytest.MonkeyPatch, fake: FakeMlflow) -> FakeMlflow:
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def config_of(**tree: Any) -> TrackingConfig:
    return TrackingConfig.model_validate({"tensorboard": False, **tree})


def never(line: str) -> None:
    raise AssertionError(f"said: {line}")


def read_back(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of RUN/tensorboard by name: (step, value) in order."""
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def wait_for(condition: Callable[[], bool]) -> None:
    """Returns once it is so. The minute is for a defect, not for a busy machine."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


# TensorBoard


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    with open_trackers(TrackingConfig(), tmp_path, "demo-1", RESOLVED, never) as trackers:
        trackers.log({"train/loss": 2.5, "train/grad_norm": 0.75}, 1)
        trackers.log_all([Point({"train/loss": 1.25}, 2), Point({"eval/gold_logprob": -43.5}, 0)])
    assert read_back(tmp_path) == {
        "train/loss": [(1, 2.5), (2, 1.25)],
        "train/grad_norm": [(1, 0.75)],
        "eval/gold_logprob": [(0, -43.5)],
    }
    assert trackers.lost == {}


def test_points_are_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    with open_trackers(TrackingConfig(), tmp_path, "demo-1", RESOLVED, never) as trackers:
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
    with open_trackers(config_of(), tmp_path, "demo-1", RESOLVED, never) as trackers:
        trackers.log({"train/loss": 2.5}, 1)
    assert list(tmp_path.iterdir()) == []


# Weights & Biases, MLflow


def test_wandb_gets_config_and_an_axis_for_each_kind_of_step(
    tmp_path: Path, wandb: FakeWandb
) -> None:
    config = config_of(wandb={"project": "gates", "entity": "us", "mode": "offline"})
    with open_trackers(config, tmp_path, "demo-1", RESOLVED, never) as trackers:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = install_mlflow(monkeypatch, FakeMlflow())
    config = config_of(mlflow={"tracking_uri": "http://127.0.0.1:5000", "experiment": "gates"})
    with open_trackers(config, tmp_path, "demo-1", RESOLVED, never) as trackers:
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


def test_mlflow_without_an_address_uses_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = install_mlflow(monkeypatch, FakeMlflow())
    open_trackers(config_of(mlflow={}), tmp_path, "demo-1", RESOLVED, never).close()
    assert mlflow.calls[0] == ("set_experiment", "star-gate")


def test_a_failed_run_is_marked_as_failed(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = install_mlflow(monkeypatch, FakeMlflow())
    with (
        pytest.raises(KeyboardInterrupt),
        open_trackers(config_of(wandb={}, mlflow={}), tmp_path, "demo-1", RESOLVED, never),
    ):
        raise KeyboardInterrupt
    assert wandb.made("finish") == [1]
    assert mlflow.calls[-1] == ("end_run", "demo-1", "FAILED")


def test_no_environment_variable_reaches_a_tracker(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = install_mlflow(monkeypatch, FakeMlflow())
    for variable in ("OPENAI_API_KEY", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(variable, SECRET)
    config = TrackingConfig.model_validate({"wandb": {}, "mlflow": {}})
    with open_trackers(config, tmp_path, "demo-1", RESOLVED, never) as trackers:
        trackers.log({"train/loss": 2.5}, 1)
    assert SECRET not in repr([wandb.calls, mlflow.calls])
    assert all(SECRET.encode() not in f.read_bytes() for f in tmp_path.rglob("*tfevents*"))


# Before the run starts


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_asked_for_and_not_installed(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = TrackingConfig.model_validate({package: {}})
    with pytest.raises(ConfigError) as error:
        open_trackers(config, tmp_path, "demo-1", RESOLVED, never)
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
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = install_mlflow(monkeypatch, FakeMlflow())

    def unreachable(name: str) -> None:
        raise ConnectionError(f"no route to\nhttp://me:{SECRET}@host:5000/api")

    monkeypatch.setattr(mlflow, "set_experiment", unreachable)
    config = config_of(wandb={}, mlflow={})
    with pytest.raises(ConfigError) as error:
        open_trackers(config, tmp_path, "demo-1", RESOLVED, never)
    assert str(error.value) == (
        "tracking.mlflow: can't be opened: ConnectionError: no route to "
        "http://[hidden]@host:5000/api (is tracking.mlflow.tracking_uri right, and the server up?)"
    )
    assert wandb.made("finish") == [1]


def test_parameters_that_are_refused_leave_no_mlflow_run_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = install_mlflow(monkeypatch, FakeMlflow())

    def refuse(params: Mapping[str, Any]) -> None:
        raise ValueError("too many")

    monkeypatch.setattr(mlflow, "log_params", refuse)
    with pytest.raises(ConfigError, match="can't be opened: ValueError: too many"):
        open_trackers(config_of(mlflow={}), tmp_path, "demo-1", RESOLVED, never)
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
        open_trackers(config_of(wandb={}), tmp_path, "demo-1", RESOLVED, never)
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ConnectionError(f"http://me:{SECRET}@host is gone\nfor good")
    mlflow = install_mlflow(monkeypatch, FakeMlflow(log_error=error))
    said: list[str] = []
    config = TrackingConfig.model_validate({"mlflow": {}})
    with open_trackers(config, tmp_path, "demo-1", RESOLVED, said.append) as trackers:
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
    config = TrackingConfig.model_validate({"wandb": {}})
    with open_trackers(config, tmp_path, "demo-1", RESOLVED, said.append) as trackers:
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
    open_trackers(config_of(wandb={}), tmp_path, "demo-1", RESOLVED, said.append).close()
    assert said == ["tracking.wandb: did not close: OSError: disk full"]
