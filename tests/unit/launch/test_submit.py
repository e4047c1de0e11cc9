"""Submitting a job and following it, with a scripted job server."""

import argparse
import http.server
import subprocess
import sys
import threading
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stargate.config.files import load_config
from stargate.errors import ConfigError
from stargate.launch import submit
from stargate.resources.submission import (
    EnvMasker,
    JobRequest,
    Package,
    SubmissionError,
    choose_files,
    write_package,
)
from tests.unit.resources.test_submission import COMMAND, PLANTED, tree


def test_only_what_git_tracks_is_sent_and_the_rest_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "a.py", "new.py", ".env", ".gitignore")
    (tmp_path / ".gitignore").write_text(".env\n")
    for command in (["init", "-q"], ["add", "a.py", ".gitignore"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    package = submit.working_tree(tmp_path)
    assert sorted(package.files) == [".gitignore", "a.py"]
    assert package.left_out == ("new.py: git does not track it",)


def test_the_checkout_itself_can_be_packed_and_run_from(tmp_path: Path) -> None:
    package = submit.working_tree(submit.CHECKOUT)
    assert {"stargate/config/run.py", "configs/paper.yaml"} <= package.files.keys()
    # Links of the checkout: the package must be importable where links are not kept.
    assert {"stargate/launch/cli.py", "stargate/configs/paper.yaml"} <= package.files.keys()
    archive = tmp_path / "tree.zip"
    write_package(package, archive)
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "job")
    shown = subprocess.run(
        [sys.executable, "-m", "stargate.launch.cli", "run", "paper", "seed=x"],
        cwd=tmp_path / "job",
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 2, shown.stderr
    assert shown.stderr.startswith("stargate run: stargate/configs/paper.yaml: seed:") or (
        f"{tmp_path}/job/stargate/configs/paper.yaml: seed:" in shown.stderr
    ), shown.stderr


def test_a_run_is_resumed_by_its_path_on_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "working_tree", lambda root: Package({}))
    request = submit.prepare_resume("/mnt/runs/paper-1 2", None, [])
    assert request.entrypoint == f"{COMMAND} resume '/mnt/runs/paper-1 2'"
    assert request.submission_id.startswith("paper-1-2-")
    with pytest.raises(ConfigError, match="--resume runs/x: give the run's absolute path"):
        submit.prepare_resume("runs/x", None, [])
    with pytest.raises(ConfigError, match="--to is for a run on shared storage"):
        submit.prepare_resume("/mnt/runs/x", "/scratch/x", [])


def test_a_run_is_resumed_by_its_address_on_shared_storage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submit, "working_tree", lambda root: Package({}))
    address = "s3://bucket/a/paper-1?region=eu-central-1"
    request = submit.prepare_resume(address, "/scratch/x y", [])
    assert request.entrypoint == f"{COMMAND} resume '{address}' --to '/scratch/x y'"
    assert request.submission_id.startswith("paper-1-2")
    for to in (None, "runs/paper-1"):
        with pytest.raises(ConfigError, match=r"--resume s3://.*give an absolute path there"):
            submit.prepare_resume(address, to, [])
    for secret in (f"s3://key:{PLANTED}@b/paper-1", f"s3://b/paper-1?secret_key={PLANTED}"):
        with pytest.raises(ConfigError) as refused:
            submit.prepare_resume(secret, "/scratch/x", [])
        assert PLANTED not in str(refused.value)
    with pytest.raises(ConfigError, match="its last part is no name of a run"):
        submit.prepare_resume("s3://b/.hidden", "/scratch/x", [])


@dataclass
class Details:
    status: str = "SUCCEEDED"
    driver_exit_code: int | None = 0
    message: str | None = None
    entrypoint: str = "exec python"
    start_time: int | None = 0
    end_time: int | None = None
    runtime_env: dict[str, Any] = field(default_factory=dict)


@dataclass
class ScriptedClient:
    """A job server's client: `connections` are what each following gets, an exception ends one."""

    connections: list[list[str | Exception | type[BaseException]]]
    ended: Details = field(default_factory=Details)
    stopped: bool = False
    submitted: dict[str, Any] = field(default_factory=dict)

    def get_job_info(self, job_id: str) -> Details:
        running = self.connections and not self.stopped
        return Details("RUNNING", None) if running else self.ended

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for part in self.connections.pop(0):
            if not isinstance(part, str):
                raise part
            yield part

    def stop_job(self, job_id: str) -> bool:
        self.stopped = True
        self.ended = Details("STOPPED", None)
        return True

    def submit_job(self, **request: Any) -> str:
        self.submitted = request
        with zipfile.ZipFile(request["runtime_env"]["working_dir"]) as archive:
            self.submitted["names"] = archive.namelist()
        return str(request["submission_id"])


def follow(client: ScriptedClient, *, stop: bool = True, **secret: str) -> int:
    return submit.follow_job(client, "j", EnvMasker(secret), stop_on_interrupt=stop)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_RETRY_SECONDS", 0.0)


def test_following_goes_on_over_a_lost_connection(capsys: pytest.CaptureFixture[str]) -> None:
    broken: list[str | Exception | type[BaseException]] = ["one\ntw", RuntimeError("closed 1006")]
    client = ScriptedClient([broken, ["one\ntwo\nthree"]], Details("FAILED", 6))
    assert follow(client) == 6
    assert capsys.readouterr().out == (
        "one\n[lost sight of job j: closed 1006; trying again]\ntwo\nthree\n"
        "job j: failed, exit code 6\n"
    )


def test_a_server_that_stays_away_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_LOST_SECONDS", -1.0)
    client = ScriptedClient([[OSError("refused")], ["never read"]])
    with pytest.raises(SubmissionError, match=r"\(refused\); the job j may still run"):
        follow(client)


def test_a_job_that_never_began_is_one_masked_line() -> None:
    message = f"runtime_env setup failed:\n  no space left, token {PLANTED}\n"
    client = ScriptedClient([[]], Details("FAILED", None, message))
    with pytest.raises(SubmissionError) as failed:
        follow(client, HF_TOKEN=PLANTED)
    assert str(failed.value) == (
        "job j failed before its command started or ended: runtime_env setup failed: no space "
        "left, token [HF_TOKEN]"
    )


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (True, "stopping job j; Ctrl-C again leaves it running"),
        (False, "no longer following; the job j goes on"),
    ],
)
def test_ctrl_c_stops_the_job_unless_it_was_detached(
    stop: bool, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = ScriptedClient([["one\n", KeyboardInterrupt], ["more\n"]])
    assert follow(client, stop=stop) == 130
    assert client.stopped is stop
    assert said in capsys.readouterr().out


def test_submitting_sends_files_and_environment_and_shows_no_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = Package(choose_files(tmp_path, tree(tmp_path, "a.py")).files, ("b: too large",))
    request = JobRequest("j", "exec true", package, {"HF_TOKEN": PLANTED})
    client = ScriptedClient([])
    submit.submit_job(client, request)
    assert client.submitted["names"] == ["a.py"]
    assert client.submitted["runtime_env"]["env_vars"] == {"HF_TOKEN": PLANTED}
    assert "metadata" not in client.submitted
    output = capsys.readouterr().out
    assert output == "left out: b: too large\nsending 1 files, 0.0 MiB\nsubmitted: j\n"


def test_status_shows_no_value_of_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    held = {"env_vars": {"HF_TOKEN": PLANTED}, "working_dir": "gcs://x.zip"}
    client = ScriptedClient([], Details("FAILED", None, f"bad {PLANTED}", runtime_env=held))
    assert submit._print_status(client, "j") == 0
    output = capsys.readouterr().out
    assert PLANTED not in output
    assert "bad [HF_TOKEN]" in output


@contextmanager
def web_server(status: int, body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    # It looks every so often whether it shall end.
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_no_server_and_a_wrong_server_are_one_line() -> None:
    with pytest.raises(SubmissionError, match=r"no Ray job server at http://127.0.0.1:9: "):
        submit.connect("http://127.0.0.1:9")
    for status, body in ((404, b""), (200, b"<html>"), (200, b"[]"), (200, b"{}")):
        with web_server(status, body) as address, pytest.raises(SubmissionError) as refused:
            submit.connect(address)
        assert "is no Ray job server" in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "give either a config, or one of"),
        (["cpu_demo", "--status", "j"], "give either a config, or one of"),
        (["cpu_demo", "--to", "/scratch/x"], "--to belongs to --resume"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], problem: str) -> None:
    parser = argparse.ArgumentParser()
    submit.configure(parser)
    with pytest.raises(ConfigError, match=problem):
        submit.run(parser.parse_intermixed_args([*words, "--address", "http://127.0.0.1:9"]))


@pytest.mark.parametrize("name", ["paper", "single_node", "cpu_demo", "cpu_learn"])
def test_every_shipped_config_can_be_submitted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    request = submit.prepare_request(name, ["runs_dir=/mnt/runs"], ["HF_TOKEN"])
    assert request.entrypoint == (f"{COMMAND} run {name} runs_dir=/mnt/runs")
    assert request.submission_id.startswith(load_config(name).name)
    assert request.env_vars["HF_TOKEN"] == PLANTED
