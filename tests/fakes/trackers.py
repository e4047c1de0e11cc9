"""Stand-ins for the packages of trackers: they keep every call."""

import threading
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class FakeWandb(ModuleType):
    """The part of the wandb package that is used."""

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

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = ModuleSpec("mlflow", None, origin="fake")
        self.calls: list[tuple[Any, ...]] = []
        self.log_error: Exception | None = None
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
        if self.log_error is not None:
            raise self.log_error

    def end_run(self, status: str) -> None:
        self.calls.append(("end_run", self._active.run, status))
