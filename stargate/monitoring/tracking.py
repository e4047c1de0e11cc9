"""Experiment tracking: the curves of a run in TensorBoard (by default), Weights & Biases, MLflow.

    Session -> RunScalars -> Point(scalars, step) -> Trackers -> a thread per tracker -> its service

A tracker never holds up or ends a run: it works in a thread of its own, and one that fails is
switched off with one line; what it did not record is counted (`Trackers.lost`). What is wrong
before the run starts (a package that is not installed, a server that does not answer) is a
ConfigError. Names of scalars and what their steps count: scalars.py. Only scalars and the
resolved config are handed over, never an environment variable; W&B and MLflow add a description of
machine, user and command line of their own.
"""

import importlib.util
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from stargate.config.outputs import MlflowConfig, TrackingConfig, WandbConfig
from stargate.errors import ConfigError
from stargate.monitoring.progress import safe_text
from stargate.monitoring.scalars import BY_OPTIMIZER_STEP, BY_VERSION, Point
from stargate.text.masking import without_user_info

# Seconds. W&B gives up on its server after 90 by itself; a run must not start much later than that.
_OPEN_SECONDS = 120.0
# Seconds for what is left to send when the run is over. A person is waiting for the prompt.
_CLOSE_SECONDS = 60.0
# Characters of a foreign error on our one line: enough for its first sentence or two.
_ERROR_CHARS = 300

# What to do where a tracker can't be opened.
_REMEDIES = {
    "tensorboard": "to run without it: tracking.tensorboard=false",
    "wandb": "log in with: wandb login; or set tracking.wandb.mode=offline",
    "mlflow": "is tracking.mlflow.tracking_uri right, and the server up?",
}

# The two kinds of step by name, where a tracker needs names for them.
_OPTIMIZER_STEP = "optimizer_step"
_VERSION = "version"


class Tracker(Protocol):
    """Where curves are kept. Both methods may wait for a network and may raise anything."""

    def log(self, scalars: Mapping[str, float], step: int) -> None: ...
    def close(self, *, succeeded: bool) -> None: ...


class Trackers:
    """All trackers of a run as one. As a context manager it closes them, as failed on an error."""

    def __init__(self, lanes: "Sequence[_Lane]") -> None:
        self._lanes = lanes

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Hands scalars to every tracker. Returns at once, and never raises for a tracker."""
        point = Point(dict(scalars), step)
        for lane in self._lanes:
            lane.put(point)

    def log_all(self, points: Iterable[Point]) -> None:
        for point in points:
            self.log(point.scalars, point.step)

    def close(self, *, succeeded: bool = True) -> None:
        """Ends all; waits up to a minute for what is not sent yet."""
        for lane in self._lanes:
            lane.end(succeeded)
        deadline = time.monotonic() + _CLOSE_SECONDS
        for lane in self._lanes:
            lane.join(deadline)

    @property
    def lost(self) -> dict[str, int]:
        """Scalars that a tracker was given and did not record; trackers without loss are absent."""
        return {lane.name: lane.num_lost for lane in self._lanes if lane.num_lost}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(succeeded=error is None)


def check_installed(config: TrackingConfig) -> None:
    """Raises ConfigError if a tracker is asked for whose package is not installed."""
    asked = {
        "tensorboard": config.tensorboard,
        "wandb": config.wandb is not None,
        "mlflow": config.mlflow is not None,
    }
    for package, wanted in asked.items():
        if not wanted:
            continue
        spec = importlib.util.find_spec(package)
        # Without an origin it is a mere folder of that name: W&B leaves a ./wandb behind.
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"tracking.{package}: the package {package} is not installed; "
                f"run: pip install {package}"
            )


def open_trackers(
    config: TrackingConfig,
    run_dir: Path,
    run_name: str,
    resolved_config: Mapping[str, Any],
    say: Callable[[str], None],
) -> Trackers:
    """Opens what the config asks for. `say` may be called from another thread.

    Raises ConfigError if one is not installed or does not open; then none is left open.
    """
    check_installed(config)
    makers: dict[str, Callable[[], Tracker]] = {}
    if config.tensorboard:
        makers["tensorboard"] = lambda: TensorBoardTracker(run_dir / "tensorboard")
    if (wandb := config.wandb) is not None:
        makers["wandb"] = lambda: WandbTracker(wandb, run_dir, run_name, resolved_config)
    if (mlflow := config.mlflow) is not None:
        makers["mlflow"] = lambda: MlflowTracker(mlflow, run_name, resolved_config)
    lanes: list[_Lane] = []
    try:
        for name, make in makers.items():
            lanes.append(_Lane(name, make, say))
            lanes[-1].wait_until_open()
    except BaseException:
        Trackers(lanes).close(succeeded=False)
        raise
    return Trackers(lanes)


class _Lane:
    """One tracker in a thread of its own. All its calls are made there: MLflow's run belongs to the
    thread that started it.
    """

    def __init__(self, name: str, make: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        self.name = name
        self._make = make
        self._say = say
        # At the end: whether the run succeeded.
        self._points: queue.SimpleQueue[Point | bool] = queue.SimpleQueue()
        self._opened: Future[None] = Future()
        self._broken = False  # it failed, or was given up
        self._num_given = self._num_recorded = 0  # scalars
        # A daemon: a call that hangs in a network must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    @property
    def num_lost(self) -> int:
        return self._num_given - self._num_recorded if self._broken else 0

    def wait_until_open(self) -> None:
        """Raises ConfigError if the tracker can't be opened."""
        try:
            self._opened.result(timeout=_OPEN_SECONDS)
        except Exception as error:
            done = self._opened.done()
            problem = _one_line(error) if done else f"no answer within {_OPEN_SECONDS:.0f} s"
            self._broken = True
            raise ConfigError(
                f"tracking.{self.name}: can't be opened: {problem} ({_REMEDIES[self.name]})"
            ) from error

    def put(self, point: Point) -> None:
        self._num_given += len(point.scalars)
        self._points.put(point)

    def end(self, succeeded: bool) -> None:
        self._points.put(succeeded)

    def join(self, deadline: float) -> None:
        if not self._opened.done():
            return  # it never opened; that was said
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        if self._thread.is_alive() and not self._broken:
            self._broken = True
            self._tell(f"still busy {_CLOSE_SECONDS:.0f} s after the end, given up")

    def _run(self) -> None:
        # The trackers are other people's code on a network: whatever they raise must not end a run
        # of hours. Nothing is hidden: an error at the start is raised, a later one is said.
        try:
            tracker = self._make()
        except Exception as error:
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        while not isinstance(item := self._points.get(), bool):
            if self._broken:
                continue
            try:
                tracker.log(item.scalars, item.step)
            except Exception as error:
                self._broken = True
                self._tell(f"switched off for the rest of the run: {_one_line(error)}")
            else:
                self._num_recorded += len(item.scalars)
        try:
            tracker.close(succeeded=item)
        except Exception as error:
            if not self._broken:
                self._tell(f"did not close: {_one_line(error)}")

    def _tell(self, problem: str) -> None:
        self._say(f"tracking.{self.name}: {problem}")


def _one_line(error: BaseException) -> str:
    """A foreign error on one line, without the user and password of an address in it."""
    text = without_user_info(f"{type(error).__name__}: {error}")
    return safe_text(" ".join(text.split()))[:_ERROR_CHARS]


class TensorBoardTracker:
    """Event files in RUN/tensorboard, for `tensorboard --logdir`. Values are float32 there.

    Uses TensorBoard's record writer below its EventFileWriter, which would import all of TensorFlow
    where that is installed.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard knows its files by "tfevents" and reads them in the order of their names.
        file = folder / f"events.out.tfevents.{int(time.time()):010d}.stargate.{os.getpid()}"
        self._writer = RecordWriter(file.open("xb"))
        self._write(file_version="brain.Event:2")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        value = self._summary.Value
        values = [value(tag=name, simple_value=number) for name, number in scalars.items()]
        self._write(step=step, summary=self._summary(value=values))

    def close(self, *, succeeded: bool) -> None:
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._writer.flush()


class WandbTracker:
    """A Weights & Biases run; its local files are in RUN/wandb."""

    def __init__(
        self, config: WandbConfig, run_dir: Path, run_name: str, resolved_config: Mapping[str, Any]
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=run_name,
            dir=str(run_dir),
            mode=config.mode,
            config=dict(resolved_config),
            # Else everything on the screen is uploaded too, dialogues and folders included.
            settings={"console": "off"},
        )
        for axis, groups in ((_OPTIMIZER_STEP, BY_OPTIMIZER_STEP), (_VERSION, BY_VERSION)):
            self._run.define_metric(axis)
            for group in groups:
                self._run.define_metric(f"{group}/*", step_metric=axis)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        # Not `step=`: W&B drops values whose step is behind the last one, and ours are two counts.
        groups = {name.partition("/")[0] for name in scalars}
        axes = {_OPTIMIZER_STEP if g in BY_OPTIMIZER_STEP else _VERSION: step for g in groups}
        self._run.log({**scalars, **axes})

    def close(self, *, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


class MlflowTracker:
    """An MLflow run, with the resolved config as its parameters ("trainer.learning_rate")."""

    def __init__(
        self, config: MlflowConfig, run_name: str, resolved_config: Mapping[str, Any]
    ) -> None:
        import mlflow

        self._mlflow = mlflow
        if config.tracking_uri is not None:
            mlflow.set_tracking_uri(config.tracking_uri)
        mlflow.set_experiment(config.experiment)
        mlflow.start_run(run_name=run_name)
        try:
            mlflow.log_params(dict(leaves(resolved_config)))
        except Exception:
            mlflow.end_run("FAILED")  # else it would be shown as running for ever
            raise

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(scalars), step=step)

    def close(self, *, succeeded: bool) -> None:
        self._mlflow.end_run("FINISHED" if succeeded else "FAILED")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A config's leaves by their dotted keys, as overrides name them."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
