"""Which variables of the environment hold secrets."""

import pytest

from stargate.text.masking import secret_values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "hf_abcdefgh"),
        ("AWS_SECRET_ACCESS_KEY", "abcdefgh"),
        ("MY_DB_PASSWORD", "abcdefgh"),
        ("wandb_api_key", "abcdefgh"),
        ("AZURE_STORAGE_CONNECTION_STRING", "abcdefgh"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "abcdefgh"),
        ("STORE", "DefaultEndpointsProtocol=https;AccountKey=abcdefgh;"),
        ("DATABASE_URL", "postgres://me:abcdefgh@db/x"),
    ],
)
def test_a_secret_is_known_by_its_name_or_its_form(name: str, value: str) -> None:
    assert secret_values({"PATH": "/bin:/usr/bin", name: value}) == [value]


def test_what_everybody_may_see_is_none() -> None:
    plain = {"HOME": "/home/me", "LANG": "C.UTF-8", "PROXY": "http://proxy:3128", "MODE": "key=1"}
    assert secret_values(plain) == []
