"""The commands and shared storage: checked first, landed to the end, read from another machine."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stargate.config.run import RecordsConfig, RunConfig
from stargate.config.uri import parse_uri
from stargate.errors import ConfigError, DataError
from stargate.launch.cli import main
from stargate.launch.session import run_session
from stargate.monitoring.progress import PlainProgress
from stargate.records.store import RunStore, load_run_config
from stargate.remote import lease as lease_module
from stargate.remote.landing import check_records, landing
from stargate.remote.lease import LEASE, LeaseHeld
from stargate.remote.storage import StorageError, open_storage
from tests.fakes.report_run import build_run

SECRET = "planted/secret+key/0123456789abcdef01234"
_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_OAUTH_ACCESS_TOKEN")


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_SETTLE_SECONDS", 0.0)
    for name in _VARIABLES:
        monkeypatch.setenv(name, SECRET)


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A finished run whose records landed, and its address."""
    folder = tmp_path_factory.mktemp("landed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_module, "_SETTLE_SECONDS", 0.0)
        for name in _VARIABLES:
            patch.setenv(name, SECRET)
        root = build_run(folder)
        (root / "models").mkdir(exist_ok=True)
        store = RunStore(root)
        store.write_json("summary.json", {**(store.read_json("summary.json") or {}),
                                          "status": "finished"})  # fmt: skip
        with landing(with_records(root, f"file://{folder}/shared"), root, PlainProgress()):
            store.append_metrics({"event": "evaluation", "version": 2})
        yield root, f"file://{folder}/shared/{root.name}"


def with_records(root: Path, uri: str) -> RunConfig:
    return load_run_config(root).model_copy(update={"records": RecordsConfig(uri=uri)})


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_report_from_the_storage_is_the_report_of_the_run(
    landed: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, uri = landed
    assert main(["report", str(root), "--text"]) == 0
    expected = capsys.readouterr().out
    there = tmp_path / root.name
    assert main(["report", uri, "--to", str(there), "--text"]) == 0
    said, _, text = capsys.readouterr().out.partition("\n")
    assert said.startswith("fetched ") and said.endswith(f"into {there}")
    assert text.replace(str(there), "RUN") == expected.replace(str(root), "RUN")


def test_a_finished_run_is_fetched_and_nothing_is_done(
    landed: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, uri = landed
    there = tmp_path / "there"
    assert main(["resume", uri, "--to", str(there)]) == 0
    assert "has finished; there is nothing to do" in capsys.readouterr().out
    assert open_storage(parse_uri(uri)).read(LEASE, 1000) is None  # given back
    assert main(["report", uri, "--to", str(there)]) == 3  # it was worked on there
    assert "is there already" in capsys.readouterr().err


def test_a_driver_that_lives_elsewhere_is_not_disturbed(
    landed: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = open_storage(parse_uri(landed[1]))
    holder = {"owner": "a" * 32, "host": "elsewhere", "pid": 7, "beat": 0.0}
    storage.put_bytes(LEASE, json.dumps(holder).encode())
    try:
        there = tmp_path / "there"
        for command in ("resume", "eval"):
            assert main([command, landed[1], "--to", str(there)]) == LeaseHeld.exit_code
            problem = capsys.readouterr().err
            assert "pid 7 on elsewhere" in problem and "--take-over" in problem
            assert not there.exists()
        assert main(["report", landed[1], "--to", str(there), "--text"]) == 0  # reads only
        assert main(["resume", landed[1], "--to", str(there), "--take-over"]) == 0
    finally:
        storage.delete(LEASE)


def test_no_credential_is_in_any_file(landed: tuple[Path, str]) -> None:
    root, uri = landed
    shared = Path(parse_uri(uri).place)
    assert len(files_of(shared)) > 10
    for file in [*files_of(root), *files_of(shared)]:
        assert SECRET.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("command", ["resume", "report", "eval"])
def test_a_secret_in_an_address_is_not_shown(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, f"s3://AKIA:{SECRET}@bucket/run"]) == 2
    captured = capsys.readouterr()
    assert SECRET not in captured.err + captured.out and captured.err.count("\n") == 1
    assert main(["run", "cpu_demo", f"records.uri=s3://AKIA:{SECRET}@bucket/x"]) == 2
    captured = capsys.readouterr()
    assert SECRET not in captured.err + captured.out and "records.uri" in captured.err


def test_a_storage_that_can_not_be_written_stops_a_run_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = RunConfig(
        runs_dir=tmp_path / "runs", records=RecordsConfig(uri=f"file://{tmp_path}/file/x")
    )
    with pytest.raises(StorageError, match="can't be used, nothing was started: file://"):
        run_session(config)
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(ConfigError, match="nosuch:// addresses"):
        check_records(RunConfig(records=RecordsConfig(uri="nosuch://x/y")))
    check_records(RunConfig(records=RecordsConfig(uri=f"file://{tmp_path}/new")))
    assert files_of(tmp_path / "new") == []
    with pytest.raises(ConfigError, match=r"records\.models"):
        check_records(
            RunConfig(trust_remote_code=True, records=RecordsConfig(uri=f"file://{tmp_path}/x"))
        )


def test_an_error_of_the_run_is_not_hidden_and_its_records_land(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run-2"
    root.mkdir()
    config = RunConfig(records=RecordsConfig(uri=f"file://{tmp_path}/shared", interval_s=0.05))
    with (
        pytest.raises(DataError, match="of the run"),
        landing(config, root, PlainProgress()),
    ):
        RunStore(root).write_text("config.yaml", "name: x\n")
        raise DataError("of the run")
    assert (tmp_path / "shared" / "run-2" / "config.yaml").read_text() == "name: x\n"
    assert f"records land on file://{tmp_path}/shared/run-2" in capsys.readouterr().out
    assert main(["resume", str(root), "--to", "x"]) == 2
    assert "--to is for a run on shared storage" in capsys.readouterr().err


def test_without_an_address_nothing_is_landed(tmp_path: Path) -> None:
    with landing(RunConfig(), tmp_path, PlainProgress()):
        pass
    assert files_of(tmp_path) == []
