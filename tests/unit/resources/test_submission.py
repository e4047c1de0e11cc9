"""What a job sends to a cluster, what is refused, and what of its log is shown."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.resources.submission import (
    EnvMasker,
    JobRequest,
    LogView,
    Package,
    check_address,
    check_for_cluster,
    choose_files,
    entrypoint,
    exit_code,
    job_environment,
    new_submission_id,
    place_config,
    readable_by_others,
    write_package,
)

COMMAND = "exec python -m stargate.launch.cli"
PLANTED = "sk-planted-0123456789"


def tree(root: Path, *names: str) -> list[str]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return list(names)


def test_results_caches_and_environments_are_never_sent(tmp_path: Path) -> None:
    sent = ["stargate/run.py", "configs/runs/a.yaml"]
    kept = ["runs/x/config.yaml", ".venv/bin/python", "a/__pycache__/b.pyc", ".git/config"]
    names = tree(tmp_path, *sent, *kept)
    assert sorted(choose_files(tmp_path, names).files) == sorted(sent)


def test_a_link_to_a_folder_is_sent_as_the_folder(tmp_path: Path) -> None:
    names = tree(
        tmp_path, "actors/engines/engine.py", "actors/deep/pool.py", "stargate/text/chat.py"
    )
    (tmp_path / "stargate/actors").symlink_to("../actors")
    package = choose_files(tmp_path, [*names, "stargate/actors"])
    assert sorted(package.files) == [
        "actors/deep/pool.py",
        "actors/engines/engine.py",
        "stargate/actors/deep/pool.py",
        "stargate/actors/engines/engine.py",
        "stargate/text/chat.py",
    ]


def test_links_that_lead_out_are_left_out_and_named(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(PLANTED)
    root = tmp_path / "tree"
    names = tree(root, "a.py")
    (root / "link.txt").symlink_to(secret)
    package = choose_files(root, [*names, "link.txt"])
    assert list(package.files) == ["a.py"]
    assert package.left_out == ("link.txt: a link that leads out of the working tree",)


def test_large_files_are_left_out_and_named(tmp_path: Path) -> None:
    names = tree(tmp_path, "a.py", "weights.bin")
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(11 * 2**20)
    package = choose_files(tmp_path, names)
    assert list(package.files) == ["a.py"]
    assert package.left_out == ("weights.bin: 11 MiB, more than 10",)


def test_the_same_files_make_the_same_package(tmp_path: Path) -> None:
    package = choose_files(tmp_path, tree(tmp_path, "a.py", "b/c.py"))
    sizes = [write_package(package, tmp_path / f"{number}.zip") for number in (1, 2)]
    (tmp_path / "a.py").touch()
    write_package(package, tmp_path / "3.zip")
    assert sizes[0] == sizes[1] > 0
    assert len({(tmp_path / f"{number}.zip").read_bytes() for number in (1, 2, 3)}) == 1


def test_a_config_is_named_as_it_lies_in_the_package(tmp_path: Path) -> None:
    package = choose_files(tmp_path, tree(tmp_path, "configs/a.yaml"))
    assert place_config(package, "cpu_demo") == (package, "cpu_demo")
    assert place_config(package, str(tmp_path / "configs/a.yaml"))[1] == "configs/a.yaml"
    other = tmp_path / "mine.yaml"
    other.write_text("seed: 1")
    grown, name = place_config(package, str(other))
    assert name == "submitted/mine.yaml"
    assert grown.files[name] == other


def test_a_relative_runs_dir_would_lose_the_run_and_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"runs_dir is relative, got 'runs'.*runs_dir=/mnt/shared"
    ):
        check_for_cluster(RunConfig(), Package({}))
    check_for_cluster(RunConfig(runs_dir=Path("/mnt/shared/runs")), Package({}))


def test_data_that_is_not_sent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path, "data/mine/tasks.jsonl")
    changes = {"runs_dir": "/mnt/runs", "data": {"source": "./data/mine"}}
    config = RunConfig.model_validate(changes)
    with pytest.raises(ConfigError, match=r"data.source: ./data/mine is here but is not sent"):
        check_for_cluster(config, Package({}))
    check_for_cluster(config, choose_files(tmp_path, ["data/mine/tasks.jsonl"]))


def test_the_entrypoint_survives_the_shell() -> None:
    got = entrypoint("paper", ["data.train={tasks: 2}", "name=a'b", "x=$(id); rm -rf /"])
    words = subprocess.run(
        ["sh", "-c", got.replace("python", "printf '%s\\n'", 1)], capture_output=True, text=True
    )
    assert words.stdout.splitlines() == [
        *("-m", "stargate.launch.cli", "run", "paper"),
        *("data.train={tasks: 2}", "name=a'b", "x=$(id); rm -rf /"),
    ]
    assert got.startswith(f"{COMMAND} run paper ")


def test_environment_goes_only_if_asked_for_and_is_never_shown() -> None:
    environment = {"HF_TOKEN": PLANTED, "OTHER": "no"}
    always = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    assert job_environment(["HF_TOKEN"], environment) == {**always, "HF_TOKEN": PLANTED}
    assert job_environment([], environment) == always
    request = JobRequest("id", "exec true", Package({}), {"HF_TOKEN": PLANTED})
    assert PLANTED not in repr(request)
    with pytest.raises(ConfigError, match="--env NOPE: this variable is not set here"):
        job_environment(["NOPE"], environment)
    with pytest.raises(ConfigError) as refused:
        job_environment([f"HF_TOKEN={PLANTED}"], environment)
    assert PLANTED not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "driver", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("STOPPED", None, 130),
        ("FAILED", 3, 3),
        ("FAILED", None, 1),
        ("FAILED", -9, 137),
    ],
)
def test_exit_codes(status: str, driver: int | None, expected: int) -> None:
    assert exit_code(status, driver) == expected


@given(driver=st.none() | st.integers(-64, 300))
def test_a_failed_job_never_looks_like_a_success(driver: int | None) -> None:
    assert 1 <= exit_code("FAILED", driver) <= 255


def test_addresses() -> None:
    assert check_address("http://127.0.0.1:8265/") == "http://127.0.0.1:8265"
    for bad in ("auto", "localhost:6379", "ray://head:10001", "http://", "http://h:x"):
        with pytest.raises(ConfigError, match="expected the job server's URL"):
            check_address(bad)
    with pytest.raises(ConfigError) as refused:
        check_address(f"http://me:{PLANTED}@head:8265")
    assert PLANTED not in str(refused.value)
    assert readable_by_others("http://head:8265")
    assert not readable_by_others("https://head:8265")
    assert not readable_by_others("http://127.0.0.1:8265")


def test_ids_differ_and_are_readable() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    first, second = new_submission_id("paper", now), new_submission_id("paper", now)
    assert first.startswith("paper-20260102-030405-")
    assert first != second


def test_the_log_masks_values_and_escapes_the_terminal() -> None:
    view = LogView(EnvMasker({"HF_TOKEN": PLANTED, "FLAG": "1"}))
    assert view.feed(f"1 key {PLANTED[:6]}") == ""  # a value may be cut by the chunks
    assert view.feed(f"{PLANTED[6:]} \x1b[31mred\r\n\tend") == "1 key [HF_TOKEN] \\x1b[31mred\n"
    assert view.flush() == "    end\n"
    assert view.flush() == ""


@given(text=st.text("ab\n", max_size=40), data=st.data())
def test_every_line_is_shown_once_over_lost_connections(text: str, data: st.DataObject) -> None:
    view = LogView(EnvMasker({}))
    shown = ""
    for _ in range(data.draw(st.integers(0, 3))):
        end = data.draw(st.integers(0, len(text)))  # this connection breaks here
        for start in range(0, end, 3):
            shown += view.feed(text[start : min(start + 3, end)])
        view.restart()
    for start in range(0, len(text), 5):
        shown += view.feed(text[start : start + 5])
    shown += view.flush()
    assert shown == (text if text.endswith("\n") or not text else text + "\n")
