"""Records on Google Cloud Storage's protocol, against an emulator on loopback if there is one.

It is no requirement of ours: pip install gcp-storage-emulator, into an environment on the PATH.
"""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from stargate.config.uri import parse_uri
from stargate.remote.fetch import fetch
from stargate.remote.storage import open_storage
from tests.fakes.remote_run import land_and_merge, score_ids, without_pauses
from tests.integration.s3_server import loopback_server

_EMULATOR = "gcp-storage-emulator"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which(_EMULATOR) is None, reason=f"no {_EMULATOR} on the PATH"),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    def command(port: int) -> list[str]:
        return [_EMULATOR, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]

    def make_bucket(address: str) -> urllib.request.Request:
        return urllib.request.Request(
            f"http://{address}/storage/v1/b?project=test",
            data=json.dumps({"name": "records"}).encode(),
            headers={"Content-Type": "application/json"},
        )

    with loopback_server(command, make_bucket, tmp_path / "log") as address:
        yield address


def test_a_run_lands_is_merged_and_comes_back(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pauses(monkeypatch, 0.1, 0.2)
    said: list[str] = []
    query = f"scheme=http&endpoint_override={server}&retry_limit_seconds=5"
    storage = open_storage(parse_uri(f"gs://anonymous@records/prefix/run?{query}"))
    land_and_merge(storage, tmp_path / "run", said.append)
    fetched = fetch(storage, tmp_path / "there", said.append, models=True)
    assert fetched.damaged == () and score_ids(tmp_path / "there") == ["d0", "d1", "d2"]
    assert said == []
