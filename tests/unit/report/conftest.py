"""A run directory with everything in it."""

import shutil
from pathlib import Path

import pytest

from stargate.report.data import load_report
from stargate.report.records import ReportData
from tests.fakes.report_run import build_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def data(run_dir: Path) -> ReportData:
    return load_report(run_dir)


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))
