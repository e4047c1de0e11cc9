"""A process whose account has no name, and no home folder that it can write."""

import getpass
import json
import os
import pwd
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stargate.errors import MachineError
from stargate.launch import cli
from stargate.resources.account import complete_account
from stargate.resources.embedded import cache_dir

VARIABLES = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "HF_HOME", "XDG_CACHE_HOME")


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An account without a passwd entry, name and home; its temporary folder."""

    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_caches_go_to_a_folder_of_ones_own(nobody: Path) -> None:
    with pytest.raises(RuntimeError, match="home directory"):
        cache_dir()
    own = nobody / f"stargate-home-{os.getuid()}"
    note = f"note: HOME is not set: caches go to {own}; set HOME to a folder that stays"
    assert complete_account() == note
    assert own.stat().st_mode & 0o777 == 0o700
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert cache_dir().is_relative_to(own)
    assert complete_account() is None  # a process that this one starts


def test_a_home_that_is_only_read_keeps_its_downloads(
    nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = nobody / "home"
    (home / ".cache/huggingface").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(home) and access(path, mode))
    assert f"HOME={home} can't be written" in (complete_account() or "")
    assert os.environ["HF_HOME"] == str(home / ".cache/huggingface")


def test_a_good_home_and_name_stay(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(nobody))
    monkeypatch.setenv("USER", "ann")
    assert complete_account() is None
    assert os.environ["HOME"] == str(nobody)
    assert getpass.getuser() == "ann"


@pytest.mark.parametrize("how", ["open", "link"])
def test_a_folder_that_others_can_change_is_refused(
    nobody: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = nobody / f"stargate-home-{os.getuid()}"
    if how == "open":
        own.mkdir()
        own.chmod(0o777)
    else:
        own.symlink_to(nobody)
    with pytest.raises(MachineError, match=f"{own} can be changed by others; set HOME"):
        complete_account()
    assert cli.main(["doctor"]) == MachineError.exit_code
    assert capsys.readouterr().err.count("\n") == 1


def in_other_account(call: Callable[[], object]) -> object:
    """What a call returns, or raises, in a process of an account that the system does not know."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said: object
        try:
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
            said = call()
        except BaseException as error:
            said = repr(error)
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another account")
def test_a_real_account_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own are root's alone
        temporary = Path(folder)
        temporary.chmod(0o1777)
        home = temporary / "home"
        home.mkdir(mode=0o755)  # root's: it can be read, not written
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("HOME", str(home))
        said = in_other_account(lambda: [complete_account(), getpass.getuser(), str(Path.home())])
    place = str(temporary / "stargate-home-54321")
    note = (
        f"note: HOME={home} can't be written: caches go to {place}; set HOME to a folder that stays"
    )
    assert said == [note, "uid54321", place]
