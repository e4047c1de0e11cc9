"""What several test files share: a finished small run, small models, trainer ranks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stargate.report.data import load_report
from stargate.report.records import ReportData
from stargate.resources.models import resolve_model
from tests.fakes.report_run import build_run
from tests.integration.ranks import Ranks
from tests.integration.run_process import Run
from tests.integration.tiny_model import save_tiny_model


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """The run and its output. One request at a time, so that it is repeatable.

    In a folder with a long name, in letters that are not ASCII.
    """
    run = Run(tmp_path_factory.mktemp("runs") / ("ä" * 100), "rollout.max_concurrent_dialogues=1")
    output = run.finish()
    assert run.process.returncode == 0, output
    return run, output


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of made-up rows, to be read only."""
    return build_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def data(run_dir: Path) -> ReportData:
    """What the report reads of it."""
    return load_report(run_dir)


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The folder of the embedded model."""
    return resolve_model("embedded")


@pytest.fixture(scope="session")
def tiny(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that computes in milliseconds; tests may not change it."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", embedded)


@pytest.fixture(scope="session")
def one(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """A trainer of one rank."""
    ranks = Ranks(1, tiny, tmp_path_factory.mktemp("one-rank"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def two(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """A trainer of two ranks."""
    ranks = Ranks(2, tiny, tmp_path_factory.mktemp("two-ranks"))
    yield ranks
    ranks.close()
