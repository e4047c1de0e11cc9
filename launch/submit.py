"""Submit a run to a Ray cluster as a job, follow its log and return its exit code.

What is sent: the files of the working tree that git tracks (no results, caches or files over
10 MiB) and the config. The cluster's Python must have what `make install` or `make install-gpu`
installs. runs_dir must be an absolute path on storage that stays after the job. The run uses as
many of the cluster's nodes as it needs: docs/clusters.md.

Ctrl-C stops the job, too. With --detach the command returns once the job is accepted, and the job
goes on; --follow shows its log, and Ctrl-C then ends only the following.

exit code: that of `stargate run` on the cluster; 130 if the job was stopped; 11 if it never began.

The job server's token is read by Ray: export RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH).

WARNING: on the cluster the values of --env are not secret. Ray keeps them in the job's record,
which everyone with access to the job server can read, and in its logs on the nodes. The same holds
for the overrides. Where that matters set the variable on the cluster's nodes instead.

examples:
  stargate submit configs/paper.yaml runs_dir=/mnt/shared/runs --address http://127.0.0.1:8265
  stargate submit paper runs_dir=/mnt/shared/runs --address URL --env HF_TOKEN --detach
  stargate submit --resume /mnt/shared/runs/paper-20260101-120000 --address URL
  stargate submit --resume s3://bucket/prefix/NAME --to /scratch/NAME --address URL
  stargate submit --follow ID --address URL
  stargate submit --stop ID --address URL
"""

import argparse
import asyncio
import json
import logging
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import stargate
from stargate.config.files import load_config
from stargate.errors import ConfigError
from stargate.monitoring.waiting import Waiting
from stargate.resources.submission import (
    EnvMasker,
    JobRequest,
    LogView,
    Package,
    SubmissionError,
    check_address,
    check_for_cluster,
    choose_files,
    entrypoint,
    exit_code,
    job_environment,
    new_submission_id,
    place_config,
    readable_by_others,
    resume_entrypoint,
    resumed_name,
    write_package,
)

# The folder that holds the package `stargate`: the checkout, or site-packages.
CHECKOUT = Path(stargate.__file__).resolve().parents[1]
# Seconds that the job server has to answer when it is first asked.
_ANSWER_SECONDS = 15
# Seconds without the job server after which following gives up, and between two tries.
_LOST_SECONDS = 300.0
_RETRY_SECONDS = 3.0
# Seconds that a job has to be stopped in: Ray's own limit (submission.STOP_SECONDS) and some more.
_STOPPED_SECONDS = 90.0
_TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
# These would silently win over --address inside Ray.
_OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("config", nargs="?", help="a YAML file, or the name of a packaged config")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `stargate run`")
    parser.add_argument("--address", required=True, metavar="URL", help="the job server's address")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="pass this environment variable to the job (repeatable); read the warning above",
    )
    parser.add_argument("--detach", action="store_true", help="return once the job is accepted")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run, by its path there or its address on shared storage (s3://...)",
    )
    instead.add_argument("--follow", metavar="ID", help="show the log of a job that was submitted")
    instead.add_argument("--status", metavar="ID", help="print a job's state")
    instead.add_argument("--stop", metavar="ID", help="stop a job and wait until it has ended")
    parser.add_argument(
        "--to",
        metavar="DIR",
        help="of an address to resume: the cluster's folder that it is fetched into",
    )


def run(args: argparse.Namespace) -> int:
    """Submits, or does what --follow, --status or --stop says. Raises StargateError."""
    address = check_address(args.address)
    existing = args.follow or args.status or args.stop
    if (args.config is None) == (existing is None and args.resume is None):
        raise ConfigError("give either a config, or one of --resume, --follow, --status and --stop")
    if args.to is not None and args.resume is None:
        raise ConfigError("--to belongs to --resume with an address on shared storage")
    if existing is not None:
        client = connect(address)
        if args.status:
            return _print_status(client, args.status)
        if args.stop:
            return stop_job(client, args.stop)
        return follow_job(client, args.follow, EnvMasker({}), stop_on_interrupt=False)
    if args.resume is not None:
        request = prepare_resume(args.resume, args.to, args.env)
    else:
        request = prepare_request(args.config, args.overrides, args.env)
    if readable_by_others(address):
        print(
            "note: http to another machine is not encrypted: token, files and --env values can be "
            "read on the way; use https, or an SSH tunnel to the job server"
        )
    client = connect(address)
    mask = EnvMasker(request.env_vars)
    try:
        submit_job(client, request)
    except KeyboardInterrupt:
        return _stop_after_interrupt(client, request.submission_id)
    if args.detach:
        for verb in ("follow", "stop"):
            print(
                f"{verb} it: stargate submit --{verb} {request.submission_id} --address {address}"
            )
        return 0
    return follow_job(client, request.submission_id, mask, stop_on_interrupt=True)


def prepare_request(config: str, overrides: list[str], env: list[str]) -> JobRequest:
    """The job for a config, checked here before anything is sent. Raises StargateError."""
    checked = load_config(config, overrides)
    package, name = place_config(working_tree(CHECKOUT), config)
    check_for_cluster(checked, package)
    return JobRequest(
        submission_id=new_submission_id(checked.name),
        entrypoint=entrypoint(name, overrides),
        package=package,
        env_vars=job_environment(env, os.environ),
    )


def prepare_resume(run: str, to: str | None, env: list[str]) -> JobRequest:
    """The job that goes on with a run on the cluster's storage, or on shared storage (then in the
    folder `to` there). Raises StargateError.
    """
    return JobRequest(
        entrypoint=resume_entrypoint(run, to),
        submission_id=new_submission_id(resumed_name(run)),
        package=working_tree(CHECKOUT),
        env_vars=job_environment(env, os.environ),
    )


def working_tree(root: Path) -> Package:
    """The files that git tracks under `root`; of an installed package without git, its files."""
    if not (root / ".git").exists():
        files = (file for file in (root / "stargate").rglob("*") if file.is_file())
        return choose_files(root, (file.relative_to(root).as_posix() for file in files))
    package = choose_files(root, _git_names(root, "--cached"))
    new = _git_names(root, "--others", "--exclude-standard")
    left_out = tuple(f"{name}: git does not track it" for name in new)
    return Package(package.files, package.left_out + left_out)


def _git_names(root: Path, *which: str) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "-z", *which]
    try:
        listing = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SubmissionError(f"git can't list the files of {root}: {error}") from error
    return [os.fsdecode(name) for name in listing.split(b"\0") if name]


def connect(address: str) -> Any:
    """A JobSubmissionClient. Raises SubmissionError where no Ray job server answers."""
    _probe(address)
    for name in _OVERRIDING:
        os.environ.pop(name, None)
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        # A token that was given is meant to be sent; Ray sends it in this mode only.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobSubmissionClient

    # Ray's packaging reports go to stderr line by line; what matters of them is said here.
    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)
    with _one_line_errors(f"the job server at {address}", EnvMasker({})):
        return JobSubmissionClient(address)


def _probe(address: str) -> None:
    """Asks for the version with a deadline: Ray's client would wait for an answer forever."""
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=_ANSWER_SECONDS) as answer:
            version = json.load(answer)["ray_version"]
        if not isinstance(version, str):
            raise TypeError
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            raise SubmissionError(
                f"{address} is no Ray job server: it answers {error.code} to /api/version"
            ) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise SubmissionError(
            f"no Ray job server at {address}: {reason}; is the cluster up, and is this the "
            "dashboard's port (8265 by default)?"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise SubmissionError(f"{address} is no Ray job server: no version in answer") from None


def submit_job(client: Any, request: JobRequest) -> None:
    """Packs, sends and submits. Raises SubmissionError."""
    mask = EnvMasker(request.env_vars)
    for line in request.package.left_out:
        print(f"left out: {mask.line(line)}")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "working_tree.zip"
        size = write_package(request.package, archive)
        print(f"sending {len(request.package.files)} files, {size / 2**20:.1f} MiB")
        with _one_line_errors("submitting", mask):
            client.submit_job(
                entrypoint=request.entrypoint,
                submission_id=request.submission_id,
                runtime_env={"working_dir": str(archive), "env_vars": request.env_vars},
            )
    print(f"submitted: {request.submission_id}", flush=True)


def follow_job(client: Any, job_id: str, mask: EnvMasker, *, stop_on_interrupt: bool) -> int:
    """Shows the job's log until it ends. Returns its exit code."""
    try:
        info = asyncio.run(_follow(client, job_id, mask))
    except KeyboardInterrupt:
        if stop_on_interrupt:
            return _stop_after_interrupt(client, job_id)
        print(f"\nno longer following; the job {job_id} goes on")
        return 130
    if str(info.status) == "FAILED" and info.driver_exit_code is None:
        message = mask.line(info.message or "no reason given")
        raise SubmissionError(f"job {job_id} failed before its command started or ended: {message}")
    code = exit_code(str(info.status), info.driver_exit_code)
    print(f"job {job_id}: {str(info.status).lower()}, exit code {code}")
    return code


async def _follow(client: Any, job_id: str, mask: EnvMasker) -> Any:
    """Shows the log, over lost connections, until the job has ended. Returns its details."""
    import aiohttp
    import requests

    view = LogView(mask)
    lost: float | None = None
    with _one_line_errors(f"job {job_id}", mask):
        info = client.get_job_info(job_id)  # a wrong id is said before anything is followed
    while True:
        problem = "the connection closed"
        try:
            async for chunk in client.tail_job_logs(job_id):
                lost = None
                print(view.feed(chunk), end="", flush=True)
            info = await asyncio.to_thread(client.get_job_info, job_id)
            if str(info.status) in _TERMINAL:
                print(view.flush(), end="", flush=True)
                return info
        except (RuntimeError, OSError, aiohttp.ClientError, requests.RequestException) as error:
            problem = mask.line(str(error)) or type(error).__name__
        view.restart()
        if lost is None:
            lost = time.monotonic()
            print(f"[lost sight of job {job_id}: {problem}; trying again]", flush=True)
        if time.monotonic() - lost > _LOST_SECONDS:
            raise SubmissionError(
                f"no job server for {_LOST_SECONDS:.0f} s ({problem}); the job {job_id} may still "
                "run: see it with --status when the server is back"
            )
        await asyncio.sleep(_RETRY_SECONDS)


def stop_job(client: Any, job_id: str) -> int:
    """Asks the job to stop and waits until it has. Returns 0; raises SubmissionError."""
    with _one_line_errors(f"stopping {job_id}", EnvMasker({})):
        info = client.get_job_info(job_id)
        if str(info.status) in _TERMINAL:
            print(f"job {job_id} had ended already: {str(info.status).lower()}")
            return 0
        client.stop_job(job_id)
        waiting = Waiting(partial(print, flush=True))
        while str(client.get_job_info(job_id).status) not in _TERMINAL:
            if waiting.seconds > _STOPPED_SECONDS:
                raise SubmissionError(f"job {job_id} has not stopped in {_STOPPED_SECONDS:.0f} s")
            waiting.speak(f"waiting for job {job_id} to end, {waiting.seconds:.0f} s so far")
            time.sleep(0.5)
    print(f"job {job_id}: {str(client.get_job_info(job_id).status).lower()}")
    return 0


def _stop_after_interrupt(client: Any, job_id: str) -> int:
    print(f"\ninterrupted: stopping job {job_id}; Ctrl-C again leaves it running", flush=True)
    try:
        stop_job(client, job_id)
    except KeyboardInterrupt:
        print(f"\nthe job {job_id} may still run; it was asked to stop")
    return 130


def _print_status(client: Any, job_id: str) -> int:
    """Prints state, times and exit code; never the runtime_env, which holds values of --env."""
    with _one_line_errors(f"job {job_id}", EnvMasker({})):
        info = client.get_job_info(job_id)
    mask = EnvMasker((info.runtime_env or {}).get("env_vars") or {})
    print(f"status      {str(info.status).lower()}")
    print(f"command     {mask.line(info.entrypoint)}")
    for label, stamp in (("started", info.start_time), ("ended", info.end_time)):
        if stamp:
            print(f"{label:<11} {time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime(stamp / 1000))}")
    if info.driver_exit_code is not None:
        print(f"exit code   {exit_code(str(info.status), info.driver_exit_code)}")
    elif info.message:
        print(f"message     {mask.line(info.message)}")
    return 0


@contextmanager
def _one_line_errors(what: str, mask: EnvMasker) -> Iterator[None]:
    """Turns what Ray's client raises into one line without secrets."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise SubmissionError(
            f"{what}: it wants a token and got none or a wrong one; export RAY_AUTH_TOKEN"
        ) from None
    except (RuntimeError, ValueError, OSError, requests.RequestException) as error:
        # From None: the chained exception could show a value of --env in a traceback.
        raise SubmissionError(f"{what}: {mask.line(str(error))}") from None
