"""Jobs through a real Ray job server on loopback, with token authentication: no engines."""

import json
import secrets
import shlex
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from stargate.errors import ExitCode
from tests.integration.ray_cluster import RayCluster, ray_cluster
from tests.integration.run_process import Command

pytestmark = [pytest.mark.integration, pytest.mark.engines]

PLANTED = f"planted-{secrets.token_hex(12)}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head of its own with a job server."""
    with ray_cluster([1], dashboard=True) as started:
        yield started


@pytest.fixture
def token(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
    monkeypatch.setenv("STARGATE_TEST_SECRET", PLANTED)


def client_process(cluster: RayCluster, script: str) -> str:
    """Output of Python code that finds `client`, `submit`, `main` and `values` (env_vars).

    In a process of its own, as a user's: Ray reads its authentication mode once per process.
    """
    head = (
        "from stargate.launch import submit\n"
        "from stargate.launch.cli import main\n"
        "from stargate.resources.submission import JobRequest, EnvMasker, Package\n"
        f"address = {cluster.dashboard!r}\n"
        f"values = {{'STARGATE_TEST_SECRET': {PLANTED!r}, 'RAY_JOB_STOP_WAIT_TIME_S': '60'}}\n"
        "client = submit.connect(address)\n"
    )
    command = [sys.executable, "-u", "-c", head + textwrap.dedent(script)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.usefixtures("token")
def test_a_job_sees_files_and_environment_and_its_exit_code_comes_back(cluster: RayCluster) -> None:
    probe = (
        "import os, stargate; here = os.path.dirname(stargate.__file__); "
        "print('package', here == os.path.join(os.getcwd(), 'stargate')); "
        "print('value', os.environ['STARGATE_TEST_SECRET'])"
    )
    output = client_process(
        cluster,
        f"""
        package = submit.working_tree(submit.CHECKOUT)
        failing = "exec sh -c 'echo failing; exit 6'"
        for name, line in (("good", {"exec python -c " + shlex.quote(probe)!r}), ("bad", failing)):
            submit.submit_job(client, JobRequest(name, line, package, values))
            submit.follow_job(client, name, EnvMasker(values), stop_on_interrupt=True)
        """,
    )
    assert "package True\n" in output, output
    assert "value [STARGATE_TEST_SECRET]\n" in output
    assert PLANTED not in output
    assert "job good: succeeded, exit code 0\n" in output
    assert "\nfailing\n" in output
    assert "job bad: failed, exit code 6\n" in output


@pytest.mark.usefixtures("token")
def test_a_run_that_fails_on_the_cluster_fails_here_with_its_code(cluster: RayCluster) -> None:
    missing = f"{cluster.folder}/no-such-data"
    runs = f"runs_dir={cluster.folder}/runs"
    command = Command(
        *("submit", "cpu_demo", f"data.source={missing}", runs, "--address", cluster.dashboard)
    )
    output = command.finish()
    assert command.process.returncode == 3, output  # DataError, raised on the cluster
    assert f"stargate run: {missing}" in output
    assert "failed, exit code 3" in output


@pytest.mark.usefixtures("token")
def test_a_detached_job_can_be_asked_about_and_stopped(cluster: RayCluster) -> None:
    output = client_process(
        cluster,
        """
        import time
        package = Package({"a.py": submit.Path(submit.__file__)})
        submit.submit_job(client, JobRequest("sleeper", "exec sleep 300", package, values))
        deadline = time.monotonic() + 40
        while str(client.get_job_info("sleeper").status) != "RUNNING":
            assert time.monotonic() < deadline
            time.sleep(0.5)
        for what in ("--status sleeper", "--stop sleeper", "--stop sleeper", "--follow sleeper",
                     "--stop nobody"):
            print(what, "->", main(["submit", *what.split(), "--address", address]))
        """,
    )
    assert "status      running\n" in output, output
    assert "--status sleeper -> 0\n" in output
    assert "job sleeper: stopped\n--stop sleeper -> 0\n" in output
    assert "job sleeper had ended already: stopped\n--stop sleeper -> 0\n" in output
    assert "job sleeper: stopped, exit code 130\n--follow sleeper -> 130\n" in output
    assert "Job nobody does not exist" in output
    assert "--stop nobody -> 11\n" in output
    assert PLANTED not in output


def test_without_the_token_nothing_is_answered(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    command = Command("submit", "--status", "sleeper", "--address", cluster.dashboard)
    output = command.finish()
    assert command.process.returncode == ExitCode.SUBMISSION
    assert output.count("\n") == 1
    assert "it wants a token and got none or a wrong one" in output


@pytest.mark.usefixtures("token")
def test_what_ray_keeps_of_env_is_what_the_help_warns_of(cluster: RayCluster) -> None:
    """The warning in `stargate submit --help` must stay true: raw in the job's record."""
    request = urllib.request.Request(
        f"{cluster.dashboard}/api/jobs/sleeper",
        headers={"Authorization": f"Bearer {cluster.token}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        record = json.load(answer)
    assert record["runtime_env"]["env_vars"]["STARGATE_TEST_SECRET"] == PLANTED
    assert PLANTED not in json.dumps(record["metadata"])
    assert PLANTED not in record["entrypoint"]
