"""One finished small run for all tests that look at what a run leaves."""

import pytest

from tests.integration.run_process import Run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """The run and its output. One request at a time, so that it is repeatable."""
    run = Run(tmp_path_factory.mktemp("runs"), "rollout.max_concurrent_dialogues=1")
    output = run.finish()
    assert run.process.returncode == 0, output
    return run, output
