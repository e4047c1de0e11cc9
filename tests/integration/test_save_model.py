"""A saved model is durable before its folder has its name, and a full disk leaves the older one."""

import errno
import os
from pathlib import Path

import pytest

from stargate.actors.modeling import model as modeling
from stargate.errors import MachineError
from stargate.records import files

pytestmark = pytest.mark.integration


class FakeModel:
    """Saves one file, as a transformers model would."""

    generation_config: object = None

    def save_pretrained(self, folder: Path, state_dict: dict[str, object]) -> None:
        (folder / "model.safetensors").write_bytes(b"new")


@pytest.fixture
def companions(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    (folder / "additional_chat_templates").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "additional_chat_templates/tool.jinja"):
        (folder / name).write_text("{}")
    return folder


def test_everything_is_synced_before_the_rename_and_the_name_after(
    tmp_path: Path, companions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        done.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    monkeypatch.setattr(files, "sync", lambda path: done.append(path.name))
    modeling.save_model(FakeModel(), {}, str(companions), str(tmp_path / "models/m1"))
    partial = f".m1.{os.getpid()}.tmp"
    assert done[-2:] == [f"rename {partial} m1", "models"]
    assert done[-3] == partial
    assert sorted(done[:-3]) == [
        "additional_chat_templates",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tool.jinja",
        "weight-sums.json",
    ]


def test_a_full_disk_is_named_and_the_older_model_stays(
    tmp_path: Path, companions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "models/m1"
    old.mkdir(parents=True)
    (old / "model.safetensors").write_bytes(b"old")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(MachineError, match=r"models: the disk is full .* m1 can't be written"):
        modeling.save_model(FakeModel(), {}, str(companions), str(old))
    assert [file.name for file in old.parent.iterdir()] == ["m1"]
    assert (old / "model.safetensors").read_bytes() == b"old"
