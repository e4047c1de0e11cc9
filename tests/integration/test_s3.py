"""Records over the real S3 protocol, against a server on loopback: land, fetch, outage, secrets."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow.fs import FileSystem

from stargate.config.uri import parse_uri
from stargate.errors import ConfigError
from stargate.records.store import RunStore
from stargate.remote.fetch import fetch
from stargate.remote.storage import StorageError, open_storage
from tests.fakes.remote_run import (
    add_scores,
    fetched_ids,
    land_and_merge,
    new_run,
    score_ids,
    start,
    without_pauses,
)
from tests.integration.s3_server import s3_server, server_command

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        server_command() is None, reason="moto is not installed: make install, or moto_server"
    ),
]
KEY, SECRET = "AKIAPLANTEDKEY000000", "planted/secret+key/0123456789abcdef01234"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        pytest.MonkeyPatch.context() as patch,
        s3_server(tmp_path_factory.mktemp("s3") / "log") as address,
    ):
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        bucket(address)
        yield address


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch, 0.1, 0.2)


def query(address: str) -> str:
    return f"scheme=http&endpoint_override={address}&region=us-east-1"


def bucket(address: str) -> None:
    system, _ = FileSystem.from_uri(f"s3://records?{query(address)}&allow_bucket_creation=true")
    system.create_dir("records")


def at(address: str, name: str) -> str:
    return f"s3://records/prefix/{name}?{query(address)}"


def test_a_run_lands_is_merged_and_comes_back(server: str, tmp_path: Path) -> None:
    storage, said = open_storage(parse_uri(at(server, "one"))), []
    model = tmp_path / "run" / "models" / "m1"
    model.mkdir(parents=True)
    weights = os.urandom(12_000_000)  # more than one part of a multipart upload
    (model / "model.safetensors").write_bytes(weights)
    land_and_merge(storage, tmp_path / "run", said.append)
    there = tmp_path / "there"
    fetched = fetch(storage, there, said.append, models=True)
    assert fetched.damaged == () and score_ids(there) == ["d0", "d1", "d2"]
    assert (there / "models/m1/model.safetensors").read_bytes() == weights
    storage.put_bytes("t0/scores.parquet", b"torn")
    fetched = fetch(storage, there, said.append, models=False)
    assert [name for name, _, _ in fetched.damaged] == ["t0/scores.parquet"]
    assert said == []


def test_a_server_that_goes_and_comes_back(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    store = new_run(tmp_path / "run")
    with s3_server(tmp_path / "log") as address:
        bucket(address)
        storage = open_storage(parse_uri(at(address, "two")))
        work = start(storage, store.root, said.append)
    add_scores(store, *range(4))  # the server is gone
    with pytest.raises(StorageError) as caught:
        work.finish(3.0)
    assert "not there: t0/scores/part-000000.parquet" in str(caught.value)
    port = int(address.partition(":")[2])
    with s3_server(tmp_path / "log", port) as again:  # it has forgotten all
        assert again == address
        bucket(address)
        start(storage, store.root, said.append).finish()
        assert fetched_ids(storage, tmp_path / "there") == ["d0", "d1", "d2", "d3"]
    assert SECRET not in "".join(said) and KEY not in "".join(said)


def test_what_can_not_be_written_is_one_line(server: str) -> None:
    with pytest.raises(StorageError, match="bucket does not exist"):
        open_storage(parse_uri(f"s3://nobody/x?{query(server)}")).check_writable()
    with pytest.raises(StorageError):
        open_storage(parse_uri(f"s3://nobody/x?{query('127.0.0.1:9')}")).check_writable()
    with pytest.raises(ConfigError):
        parse_uri(f"s3://{KEY}:{SECRET}@records/x?{query(server)}")


_DRIVER = """
    import asyncio, os, sys
    from pathlib import Path
    from tests.fakes.remote_run import add_scores, start
    from stargate.remote import lease
    from stargate.remote.storage import open_storage
    from stargate.config.uri import parse_uri
    from stargate.records.store import RunStore
    lease._SETTLE_SECONDS = 0.0
    root = Path(sys.argv[2])
    store = RunStore(root)
    start(open_storage(parse_uri(sys.argv[1])), root)
    for number in range(1000):
        add_scores(store, number)
        if number % 10 == 9:
            store.compact("t0")
        print(number, flush=True)
"""


def test_a_driver_that_is_killed_and_its_disk_with_it(server: str, tmp_path: Path) -> None:
    store = new_run(tmp_path / "run")
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_DRIVER), at(server, "three"), str(store.root)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    for line in driver.stdout:
        if int(line) == 60:
            break
    driver.kill()
    driver.wait()
    storage, said = open_storage(parse_uri(at(server, "three"))), []
    there = tmp_path / "there"
    ids = fetched_ids(storage, there)
    assert ids and ids == [f"d{i}" for i in range(len(ids))]
    work = start(storage, there, said.append)  # the lease is of a dead process of this machine
    add_scores(RunStore(there), *range(len(ids), 70))
    RunStore(there).compact("t0")
    work.finish()
    assert fetched_ids(storage, tmp_path / "third") == [f"d{i}" for i in range(70)]
