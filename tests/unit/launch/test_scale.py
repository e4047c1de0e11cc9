"""`stargate scale`: a request's way through files, what is refused, what the run makes of it."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from stargate.errors import ConfigError, DataError, MachineError
from stargate.launch import scale, scaling
from stargate.launch.cli import main
from stargate.launch.scaling import following
from stargate.monitoring.progress import PlainProgress
from stargate.records.files import hold, is_held
from stargate.resources.scale_request import (
    ANSWER_FILE,
    REQUEST_FILE,
    parse_engines,
    read_answer,
    send_request,
    take_request,
    withdraw_request,
    write_answer,
)

Capture = pytest.CaptureFixture[str]
ID = "0123456789abcdef" * 2

# --- the command line and the files


def test_roles_and_counts_are_read() -> None:
    assert parse_engines(["questioner=3", "roleplayer=2"]) == {"questioner": 3, "roleplayer": 2}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "name a role"),
        (["scorer=2"], "'scorer=2': expected ROLE=COUNT with a role of questioner, roleplayer"),
        (["questioner"], "questioner: expected a count of 1 to 1024, got ''"),
        (["questioner=0"], "questioner: expected a count of 1 to 1024, got '0'"),
        (["questioner=-1"], "got '-1'"),
        (["questioner=1025"], "got '1025'"),
        (["questioner=2.5"], "got '2.5'"),
        (["questioner=2", "questioner=3"], "questioner is named twice"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_engines(words)


def test_a_request_is_taken_once_and_leaves_nothing(tmp_path: Path) -> None:
    assert take_request(tmp_path) is None
    sent = send_request(tmp_path, {"questioner": 2})
    values = json.loads((tmp_path / REQUEST_FILE).read_text())
    assert values == {"id": sent.id, "engines": {"questioner": 2}}
    with pytest.raises(DataError, match="another request waits"):
        send_request(tmp_path, {"questioner": 3})
    assert take_request(tmp_path) == sent
    assert take_request(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert not withdraw_request(tmp_path)


def test_an_answer_belongs_to_its_request(tmp_path: Path) -> None:
    first = send_request(tmp_path, {"questioner": 2})
    assert read_answer(tmp_path, first) is None
    assert withdraw_request(tmp_path)
    second = send_request(tmp_path, {"questioner": 3})
    write_answer(tmp_path, second, "working", "two\nlines " + "x" * 5000)
    assert read_answer(tmp_path, first) is None
    found = read_answer(tmp_path, second)
    assert found is not None
    cut = (found.state, found.message[:12], len(found.message))
    assert cut == ("working", "two lines xx", 2000)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 9000, "not valid JSON"),
        (b"[]", "scale.json"),
        (b"{}", r"id: .*\(and 1 more\)"),
        (b"x" * 20_000, "not a small file"),
        (json.dumps({"id": ID, "engines": {}}).encode(), "engines"),
        (json.dumps({"id": ID, "engines": {"questioner": 0}}).encode(), "engines.questioner"),
        (json.dumps({"id": ID, "engines": {"questioner": "2"}}).encode(), "engines.questioner"),
        (json.dumps({"id": ID, "engines": {"questioner": True}}).encode(), "engines.questioner"),
        (json.dumps({"id": ID, "engines": {"../x": 2}}).encode(), "engines"),
        (json.dumps({"id": "../../x", "engines": {"questioner": 2}}).encode(), "id"),
        (json.dumps({"id": ID, "engines": {"questioner": 2}, "run": "rm"}).encode(), "unknown key"),
    ],
)
def test_any_other_file_is_refused_with_one_line_and_taken_away(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / REQUEST_FILE).write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        take_request(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / REQUEST_FILE) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_neither_links_nor_pipes_are_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"id": ID, "engines": {"questioner": 2}}))
    (tmp_path / REQUEST_FILE).symlink_to(secret)
    with pytest.raises(DataError, match="not a small file"):
        take_request(tmp_path)
    os.mkfifo(tmp_path / REQUEST_FILE)
    with pytest.raises(DataError, match="not a small file"):
        take_request(tmp_path)
    assert list(tmp_path.iterdir()) == [secret]


def test_a_lock_is_seen_and_not_taken(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with hold(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with hold(tmp_path):
        pass


# --- the run's side


class FakeScaler:
    """Scales when it is let; `problem` is what it raises."""

    def __init__(self) -> None:
        self.counts = {"questioner": 1, "roleplayer": 1}
        self.said: list[str] = []  # by the run
        self.asked: list[dict[str, int]] = []
        self.go = threading.Event()
        self.go.set()
        self.problem: Exception | None = None

    async def scale(self, targets: Mapping[str, int]) -> str:
        self.asked.append(dict(targets))
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        if self.problem is not None:
            raise self.problem
        self.counts.update(targets)
        return "now " + " ".join(f"{role}={count}" for role, count in self.counts.items())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "POLL_SECONDS", 0.002)
    monkeypatch.setattr(scale, "_LOOK_SECONDS", 0.002)


@contextmanager
def going_on(root: Path, scaler: FakeScaler) -> Iterator[Callable[[], None]]:
    """A run that looks for requests, in a thread; gives what ends it."""
    (root / "config.yaml").write_text("")
    ending, ready = threading.Event(), threading.Event()

    async def play() -> None:
        async with following(root, scaler, scaler.said.append):
            ready.set()
            while not ending.is_set():
                await asyncio.sleep(0.001)

    def run() -> None:
        with hold(root):
            asyncio.run(play())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield ending.set
    finally:
        ending.set()
        thread.join()


def command(root: Path, *words: str) -> int:
    return main(["scale", str(root), *words])


def test_a_request_is_done_and_told(tmp_path: Path, capsys: Capture) -> None:
    scaler = FakeScaler()
    with going_on(tmp_path, scaler):
        scaler.go.clear()
        threading.Timer(0.2, scaler.go.set).start()  # so that its first answer is seen, too
        assert command(tmp_path, "questioner=2") == 0
        out = capsys.readouterr().out.splitlines()
        assert command(tmp_path, "questioner=2") == 0  # at once: told of in one line or two
        assert capsys.readouterr().out.count("now questioner=2") == 1
    assert scaler.asked == [{"questioner": 2}] * 2
    told = [
        "scale: asked for questioner=2, there is questioner=1 roleplayer=1",
        "now questioner=2 roleplayer=1",
    ]
    assert out == told
    assert scaler.said[:2] == [told[0], f"scale: done: {told[1]}"]


def test_what_can_not_be_done_is_one_line_and_the_run_goes_on(
    tmp_path: Path, capsys: Capture
) -> None:
    scaler = FakeScaler()
    scaler.problem = MachineError("needs 9 GPUs, this machine has 8 \x1b[2J")
    with going_on(tmp_path, scaler):
        assert command(tmp_path, "questioner=9") == 5
        assert capsys.readouterr().err.splitlines() == [
            "stargate scale: refused: needs 9 GPUs, this machine has 8 \\x1b[2J; there is "
            "questioner=1 roleplayer=1"
        ]
        scaler.problem = ZeroDivisionError("a defect")
        assert command(tmp_path, "questioner=3") == 5
        assert "see logs/driver.log" in capsys.readouterr().err
        (tmp_path / REQUEST_FILE).write_text("nonsense")
        while (tmp_path / REQUEST_FILE).exists():
            time.sleep(0.001)
        scaler.problem = None
        assert command(tmp_path, "roleplayer=2") == 0
    assert f"scale: refused: {tmp_path / REQUEST_FILE}: not valid JSON" in scaler.said
    assert scaler.said[-1] == "scale: done: now questioner=1 roleplayer=2"


def test_one_request_at_a_time(tmp_path: Path, capsys: Capture) -> None:
    scaler = FakeScaler()
    scaler.go.clear()
    with going_on(tmp_path, scaler):
        assert command(tmp_path, "questioner=2", "--no-wait") == 0
        assert command(tmp_path, "questioner=3") == 5
        assert "an earlier request is not done yet" in capsys.readouterr().err
        scaler.go.set()
        while "scale: done: now questioner=2 roleplayer=1" not in scaler.said:
            time.sleep(0.001)
    assert scaler.asked == [{"questioner": 2}]


def test_a_run_that_ends_first_says_so(tmp_path: Path, capsys: Capture) -> None:
    scaler = FakeScaler()
    scaler.go.clear()
    with going_on(tmp_path, scaler) as end:
        request = send_request(tmp_path, {"questioner": 2})
        scale.await_taken(tmp_path, request)
        threading.Timer(0.05, end).start()
        with pytest.raises(MachineError, match="refused: the run ended before it was done"):
            scale.await_done(tmp_path, request)
    assert command(tmp_path, "questioner=2") == 3
    assert "no process works on it" in capsys.readouterr().err
    assert scaler.counts == {"questioner": 1, "roleplayer": 1}


def test_what_was_asked_before_the_run_began_is_dropped(tmp_path: Path) -> None:
    old = send_request(tmp_path, {"questioner": 2})
    scaler = FakeScaler()
    with going_on(tmp_path, scaler):
        pass
    assert scaler.asked == []
    assert scaler.said == ["scale: dropped a request from before: questioner=2"]
    found = read_answer(tmp_path, old)
    assert found is not None and found.state == "refused"


def test_runs_that_do_not_go_on_are_refused(tmp_path: Path, capsys: Capture) -> None:
    def problem(*words: str) -> str:
        assert command(tmp_path, *words) in (2, 3, 5)
        [line] = capsys.readouterr().err.splitlines()
        return line.removeprefix(f"stargate scale: {tmp_path}: ")

    assert problem("questioner=2") == "not a run directory: it has no config.yaml"
    (tmp_path / "config.yaml").write_text("")
    assert problem("questioner=2").startswith("no process works on it; `stargate resume ")
    (tmp_path / "summary.json").write_text('{"status": "finished"}')
    assert problem("questioner=2") == "has finished; there are no engines to change"
    (tmp_path / "ablation.json").write_text("{}")
    assert problem("questioner=2").startswith("is an ablation")
    assert "expected a count" in problem("questioner=many")
    assert not (tmp_path / REQUEST_FILE).exists()


def test_a_process_that_takes_no_request_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(scale, "TAKE_SECONDS", 0.05)
    (tmp_path / "config.yaml").write_text("")
    with hold(tmp_path):
        assert command(tmp_path, "questioner=2") == 5
    assert "its engines have not started yet" in capsys.readouterr().err
    assert not (tmp_path / REQUEST_FILE).exists()  # it is not done later, unasked
    assert not (tmp_path / ANSWER_FILE).exists()


def test_what_the_command_prints_can_not_move_the_cursor(tmp_path: Path, capsys: Capture) -> None:
    request = send_request(tmp_path, {"questioner": 2})
    write_answer(tmp_path, request, "working", "a\x1b[2Jb")
    with hold(tmp_path):
        PlainProgress().say(scale.await_taken(tmp_path, request).message)
    assert capsys.readouterr().out == "a\\x1b[2Jb\n"
