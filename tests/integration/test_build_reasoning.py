"""A build by a reasoning model, against a made-up server: what is sent, and what it thinks."""

from pathlib import Path
from typing import Any

import pytest

from stargate.data.build.config import BuildConfig
from tests.fakes.build_answers import answer, behave, build_config, kind_of
from tests.fakes.misbehaving_server import MisbehavingServer, completion
from tests.integration.test_build import FILES, make, make_with

pytestmark = pytest.mark.integration


def test_a_reasoning_model_can_write_a_data_set(tmp_path: Path) -> None:
    with MisbehavingServer(behave()) as server:
        tree = build_config(server.url, tmp_path).model_dump()
        tree["oracle"]["max_tokens_parameter"] = "max_completion_tokens"
        tree["personas"] |= {"temperature": None, "top_p": None}
        tree["personas"]["facts"]["temperature"] = tree["golds"]["temperature"] = None
        make(BuildConfig.model_validate(tree))
    assert {kind_of(seen.body) for seen in server.seen} == {"persona", "facts", "gold"}
    for seen in server.seen:
        assert not seen.body.keys() & {"temperature", "top_p", "max_tokens"}
        assert seen.body["max_completion_tokens"] in (300, 400, 500)


def test_reasoning_never_becomes_a_gold_a_persona_or_a_fact(tmp_path: Path) -> None:
    def think(body: dict[str, Any]) -> bytes:
        return completion(f"<think>\nName: Nobody\nI am a secret.\n</think>\n\n{answer(body)}")

    server, report = make_with(think, tmp_path)
    assert report["golds"] == {"A": 9, "B": 4, "test": 1}
    written = "".join((tmp_path / "out" / name).read_text() for name in FILES)
    assert "think" not in written and "secret" not in written and "Nobody" not in written
    assert len(server.seen) == report["cost"]["calls"]
