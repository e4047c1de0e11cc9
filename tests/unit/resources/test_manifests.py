"""The shipped ways to a cluster are valid and fit the paper config; docs/security.md is true."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stargate.config.files import load_config, packaged_configs_dir
from stargate.resources.cluster import Node, nodes_for
from stargate.resources.submission import JOB_VARIABLES, STOP_SECONDS, cluster_address, entrypoint

CHECKOUT = Path(__file__).resolve().parents[3]
SLURM = CHECKOUT / "launch/slurm.sh"


@pytest.fixture
def job() -> Any:
    return yaml.safe_load((CHECKOUT / "launch/kuberay.yaml").read_text(encoding="utf-8"))


def test_the_manifest_has_what_a_rayjob_must_have(job: Any) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert spec.keys() <= {
        *("submissionMode", "entrypoint", "runtimeEnvYAML", "backoffLimit"),
        *("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"),
    }
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]
    assert head.keys() == {"rayStartParams", "serviceType", "template"}
    # The CRD takes strings only; YAML would make numbers and booleans of them.
    assert all(isinstance(value, str) for value in head["rayStartParams"].values())
    [workers] = cluster["workerGroupSpecs"]
    assert workers.keys() == {
        *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template")
    }
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (head, workers):
        pod = group["template"]["spec"]
        # The image's user can write the claim, and is not root.
        assert pod["securityContext"] == {"runAsNonRoot": True, "fsGroup": 0}
        [container] = pod["containers"]
        assert container["name"] and container["image"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]
    # Of one and the same image, or the nodes would not run the same code.
    assert len({c["image"] for c in containers(job)}) == 1


def containers(job: Any) -> list[Any]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for g in groups for container in g["template"]["spec"]["containers"]]


def test_the_manifest_runs_the_paper_config_and_ends_in_order(job: Any) -> None:
    spec = job["spec"]
    overrides = ["runs_dir=/mnt/shared/runs", "cluster.wait_s=600"]
    assert spec["entrypoint"] == entrypoint("paper", overrides)
    words = shlex.split(spec["entrypoint"])
    config = load_config("paper", words[words.index("paper") + 1 :])
    assert config.runs_dir == Path("/mnt/shared/runs")
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    }
    for container in containers(job):
        places = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        assert any(config.runs_dir.is_relative_to(place) for place in places)
    cluster = spec["rayClusterSpec"]
    head = Node("head", 0, float(cluster["headGroupSpec"]["rayStartParams"]["num-cpus"]))
    limits = containers(job)[1]["resources"]["limits"]
    pods = [
        Node(f"pod-{number}", int(limits["nvidia.com/gpu"]), float(limits["cpu"]))
        for number in range(cluster["workerGroupSpecs"][0]["replicas"])
    ]
    found = nodes_for(config, [head, *pods])
    assert len(found) == 6
    assert set(found.values()) == {"pod-0", "pod-1"}
    # And it is the job's cluster that the run attaches to.
    assert cluster_address(config, {JOB_VARIABLES[0]: "{}"}) == "auto"


def test_the_manifest_holds_no_secret(job: Any) -> None:
    for container in containers(job):
        secret = [entry for entry in container["env"] if "TOKEN" in entry["name"]]
        assert secret and all("value" not in entry for entry in secret)


def test_the_slurm_script_is_valid_and_fits_the_paper_config() -> None:
    checked = subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    text = SLURM.read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    # Slurm reads no option after the first command.
    assert text.index("set -euo") > text.rindex("#SBATCH")
    assert (options["nodes"], options["ntasks-per-node"]) == ("1", "1")
    assert options["signal"] == "B:TERM@180"  # to the script, which tells the run and not Ray
    node = Node("n", int(options["gpus-per-node"]), float(options["cpus-per-task"]))
    assert len(nodes_for(load_config("paper"), [node])) == 6
    assert os.access(SLURM, os.X_OK)


def slurm(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(folder)}
    command = ["bash", str(SLURM), *overrides]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_slurm_script_refuses_what_would_lose_the_run(tmp_path: Path) -> None:
    missing = slurm(tmp_path, "runs_dir=/shared/runs")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "run: make install-gpu" in missing.stderr
    stargate, srun = tmp_path / ".venv/bin/stargate", tmp_path / "srun"
    stargate.parent.mkdir(parents=True)
    for program, line in ((stargate, "exit 9"), (srun, 'printf "%s\\n" "$@"')):
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    assert "give runs_dir=/ABSOLUTE/FOLDER" in slurm(tmp_path, "seed=1").stderr
    good = slurm(tmp_path, "runs_dir=/shared/runs", "data.train={tasks: 2}")
    assert good.stdout.splitlines() == [
        *("--kill-on-bad-exit=1", str(stargate), "run", "paper"),
        *("runs_dir=/shared/runs", "data.train={tasks: 2}"),
    ], good.stderr


def test_every_test_that_the_security_page_names_exists() -> None:
    page = (CHECKOUT / "docs/security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    sources = "".join(f.read_text(encoding="utf-8") for f in (CHECKOUT / "tests").rglob("*.py"))
    assert len(named) >= 15
    assert sorted(name for name in named if f"def {name}(" not in sources) == []


def test_no_module_of_ours_reads_pickles() -> None:
    reading = re.compile(
        r"\b(?:import|from) (?:c?pickle|cloudpickle|dill|joblib|shelve|marshal)\b"
        r"|\b(?:torch|np|numpy)\.load\(|\bread_pickle\(|allow_pickle=True|yaml\.(?:unsafe_|full_)?load\("
    )
    files = [
        f for name in ("stargate", "actors", "launch") for f in (CHECKOUT / name).rglob("*.py")
    ]
    assert len(files) > 100
    found = [f for f in files if reading.search(f.read_text(encoding="utf-8"))]
    # Between a run's own processes, as Ray itself does. It can't reach a file: bytes in, bytes out.
    wire = CHECKOUT / "actors/rpc/wire.py"
    assert {f.resolve() for f in found} == {wire.resolve()}
    assert not re.search(r"\bopen\(|\bPath\b|read_bytes|\bos\b", wire.read_text(encoding="utf-8"))
    # The pattern does find one.
    assert reading.search("weights = torch.load(file)") and reading.search("import pickle")


def test_remote_code_is_off_in_every_shipped_config(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from stargate.resources import models

    configs = sorted(packaged_configs_dir().glob("*.yaml"))
    assert configs
    assert not any(load_config(file).trust_remote_code for file in configs)
    asked: list[list[str]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for trusted in (False, True):
        with pytest.raises(models.ModelError):
            models.resolve_model("org/name", trust_remote_code=trusted)
    assert ["*.py" in patterns for patterns in asked] == [False, True]
    assert not any("bin" in pattern for pattern in asked[1])
