"""Addresses of shared storage: what they may hold, and that a secret in one is never shown."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stargate.config.run import RunConfig
from stargate.config.uri import StorageUri, is_uri, parse_uri, run_name
from stargate.errors import ConfigError

SECRET = "wJalrXUtnFEMI0K7MDENG"


def test_addresses_that_are_taken() -> None:
    assert parse_uri("s3://bucket/a/b/?region=eu-central-1") == StorageUri(
        "s3", "bucket/a/b", "region=eu-central-1"
    )
    assert str(parse_uri("gs://anonymous@bucket/x")) == "gs://anonymous@bucket/x"
    assert str(parse_uri("hdfs://name:8020/x")) == "hdfs://name:8020/x"
    assert str(parse_uri("file:///mnt/shared/")) == "file:///mnt/shared"
    assert (
        str(parse_uri("s3://b?scheme=http&endpoint_override=127.0.0.1:9000").child("run-1"))
        == "s3://b/run-1?scheme=http&endpoint_override=127.0.0.1:9000"
    )


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIA:{SECRET}@bucket/x",
        f"s3://AKIA:{SECRET[:5]}/{SECRET[5:]}@bucket/x",
        f"s3://AKIA:{SECRET}",
        f"s3://bucket/x?secret_key={SECRET}",
        f"s3://bucket/x?access_key=AKIA&secret_key={SECRET}",
        f"s3://bucket/x?{SECRET}",
        f"s3://bucket/x?endpoint_override=http://u:{SECRET}@host",
        f"gs://{SECRET}@bucket/x",
        f"gs://bucket/x?access_token={SECRET}",
        f"file:///x?token={SECRET}",
        f"s3://bucket/x#{SECRET}",
        f"abfs://container@account/x?sas={SECRET}",
        f"s3://[{SECRET}/x",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_uri(text)
    assert SECRET not in str(caught.value) and SECRET[5:] not in str(caught.value)
    with pytest.raises(ValueError) as wrapped:  # as a config reports it
        RunConfig.model_validate({"records": {"uri": text}})
    assert SECRET not in str(wrapped.value)


@pytest.mark.parametrize(
    "text",
    ["bucket/x", "s3://", "s3:///x", "file://host/x", "file:///", "s3://b/../x", "s3://b/a b",
     "s3://b/%2e%2e/x", "s3://b\\x/y", "s3://b/x\n"],
)  # fmt: skip
def test_odd_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_uri(text)


@given(st.text(max_size=60), st.sampled_from(["s3", "gs", "file", "memory", ""]))
def test_any_text_is_an_address_or_one_line(text: str, scheme: str) -> None:
    try:
        uri = parse_uri(f"{scheme}://{text}")
    except ConfigError:
        return
    assert parse_uri(str(uri)) == uri
    assert ".." not in uri.place.split("/")


def test_a_folder_is_no_address() -> None:
    assert not is_uri("runs/x") and not is_uri("/a/b") and not is_uri(str(Path("c:/x")))
    assert is_uri("s3://b/x") and is_uri("file:///x")
    assert run_name(parse_uri("s3://b/demo-1?region=x")) == "demo-1"
    with pytest.raises(ConfigError, match="no name of a run"):
        run_name(parse_uri("s3://b/.hidden"))
