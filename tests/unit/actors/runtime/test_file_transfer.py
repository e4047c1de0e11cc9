"""Folders between the driver and nodes: real agents and files, calls instead of Ray."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from stargate.actors.runtime import node_agent
from stargate.actors.runtime.file_transfer import FileTransfer
from stargate.actors.runtime.node_agent import NodeAgent, file_sizes, sources_digest
from stargate.errors import DataError, EngineError, MachineError


class Handle:
    """An agent as an actor handle shows it; `dies_in` ends it in a method."""

    def __init__(self, dies_in: str | None = None) -> None:
        self.agent = NodeAgent()
        self.dies_in = dies_in
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> Any:
        async def call(*arguments: Any) -> Any:
            self.calls.append(method)
            await asyncio.sleep(0)
            if method == self.dies_in:
                raise RayActorError()
            return getattr(self.agent, method)(*arguments)

        return type("Method", (), {"remote": staticmethod(call)})


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(node_agent, "SHARED_MEMORY", folder)
    monkeypatch.setattr(node_agent.tempfile, "gettempdir", lambda: str(tmp_path))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "m1"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(10_000))
    (folder / "config.json").write_text("{}")
    (folder / "empty.jinja").touch()
    (folder / ".hidden").write_text("no")
    return folder


def contents(folder: str | Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await story()
        while len(asyncio.all_tasks()) > 1:  # what goes on in the background
            await asyncio.sleep(0.01)

    asyncio.run(whole())


def test_a_folder_is_sent_once_per_node_however_many_ask(shm: Path, model: Path) -> None:
    handles = {"a": Handle(), "b": Handle()}
    puts: list[int] = []

    def put(chunk: Any) -> Any:
        puts.append(len(chunk))
        return chunk

    file_transfer = FileTransfer(handles, put, chunk_bytes=4000)
    places: list[str] = []

    async def use(node: str) -> None:
        async with file_transfer.lend(str(model), node) as place:
            sent = contents(place)
            assert sent == {k: v for k, v in contents(model).items() if k != ".hidden"}
            places.append(place)
            await asyncio.sleep(0.02)

    async def story() -> None:
        await asyncio.gather(use("a"), use("b"), use("a"), use("a"))

    play(story)
    assert sorted(puts) == [2, 2000, 4000, 4000]  # read once for both nodes
    assert len(set(places)) == 2
    assert handles["a"].calls.count("write") == 4
    assert file_transfer.num_sent == 2
    assert not any(Path(place).exists() for place in places)
    for handle in handles.values():
        handle.agent.shutdown()
    assert list(shm.iterdir()) == []


def test_a_node_that_dies_does_not_hold_the_others(shm: Path, model: Path) -> None:
    handles = {"a": Handle(dies_in="write"), "b": Handle()}
    file_transfer = FileTransfer(handles, lambda chunk: chunk, chunk_bytes=4000)
    said: list[str] = []

    async def use(node: str) -> None:
        try:
            async with file_transfer.lend(str(model), node) as place:
                said.append(f"{node} has {len(contents(place))}")
        except EngineError as error:
            said.append(f"{node}: {str(error)[:13]}")

    async def story() -> None:
        await asyncio.gather(use("a"), use("b"))
        handles["a"].dies_in = None  # the agent was started anew
        await use("a")

    play(story)
    assert sorted(said[:2]) == ["a: an actor died", "b has 3"]
    assert said[2:] == ["a has 3"]


def test_a_folder_that_does_not_fit_is_refused(
    shm: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(node_agent.shutil, "disk_usage", lambda path: usage)
    file_transfer = FileTransfer({"a": Handle()}, lambda chunk: chunk)

    async def story() -> None:
        with pytest.raises(MachineError, match="don't fit"):
            async with file_transfer.lend(str(model), "a"):
                pass

    play(story)


def test_a_folder_that_is_not_there_reaches_nobody(shm: Path, tmp_path: Path) -> None:
    file_transfer = FileTransfer({"a": Handle()}, lambda chunk: chunk)

    async def story() -> None:
        with pytest.raises(FileNotFoundError):
            async with file_transfer.lend(str(tmp_path / "none"), "a"):
                pass

    play(story)


def test_who_gives_up_and_who_asks_again_share_one_copy(shm: Path, model: Path) -> None:
    handle = Handle()
    file_transfer = FileTransfer({"a": handle}, lambda chunk: chunk)

    async def use() -> None:
        async with file_transfer.lend(str(model), "a") as place:
            await asyncio.sleep(0.02)
            assert len(contents(place)) == 3

    async def story() -> None:
        first = asyncio.create_task(use())
        await asyncio.sleep(0.001)
        first.cancel()
        await use()
        last = asyncio.create_task(use())
        await asyncio.sleep(0.001)
        last.cancel()

    play(story)
    assert file_transfer.num_sent == handle.calls.count("remove") == 2
    assert file_transfer._loans == {}
    handle.agent.shutdown()


def test_what_was_saved_there_is_fetched_whole_or_not_at_all(
    shm: Path, model: Path, tmp_path: Path
) -> None:
    handle = Handle()
    file_transfer = FileTransfer({"a": handle}, lambda chunk: chunk, chunk_bytes=4000)
    target = tmp_path / "models" / "m1"

    async def story() -> None:
        place = Path(handle.agent.scratch("m1"))
        place.mkdir()
        for name, data in contents(model).items():
            (place / name).write_bytes(data)
        handle.dies_in = "read"
        with pytest.raises(EngineError):
            await file_transfer.fetch("a", str(place), target)
        assert list(target.parent.iterdir()) == []
        handle.dies_in = None
        await file_transfer.fetch("a", str(place), target)
        assert not place.exists()

    play(story)
    assert contents(target) == {k: v for k, v in contents(model).items() if k != ".hidden"}
    assert [path.name for path in target.parent.iterdir()] == ["m1"]
    handle.agent.shutdown()


def test_an_agent_touches_its_own_folders_only(shm: Path, model: Path) -> None:
    agent = NodeAgent()
    agent.remove(str(model))
    assert model.exists()
    with pytest.raises(DataError, match="not a folder of this agent"):
        agent.read(str(model), "config.json", 0, 10)
    with pytest.raises(DataError, match="not a folder of this agent"):
        agent.write(str(model), "config.json", 0, b"x")
    with pytest.raises(DataError, match="not a plain file name"):
        agent.open_folder({"../evil": 1})
    folder = agent.open_folder({"a": 3})
    agent.write(folder, "a", 0, b"ab")
    with pytest.raises(DataError, match="2 bytes of 3 arrived"):
        agent.close_folder(folder, {"a": 3})
    agent.shutdown()
    agent.shutdown()


def test_what_a_killed_agent_left_is_removed_by_the_next_one(shm: Path) -> None:
    alive, dead = NodeAgent(), NodeAgent()
    kept = alive.open_folder({})
    lost = dead.open_folder({})
    os.close(dead._stage._lock)  # what the end of a process does
    NodeAgent().start()
    assert Path(kept).exists()
    assert not Path(lost).exists()
    alive.shutdown()
    assert list(shm.iterdir()) == []


def test_a_shared_folder_is_told_by_what_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / ".shared"
    agent = NodeAgent()
    assert not agent.sees(str(file), "content")
    file.write_text("content")
    assert agent.sees(str(file), "content")
    assert not agent.sees(str(file), "another run's")


def test_sources_are_those_of_this_package() -> None:
    assert len(sources_digest()) == 64
    assert sources_digest() == sources_digest()


def test_hidden_files_and_folders_do_not_travel(model: Path) -> None:
    (model / "folder").mkdir()
    assert file_sizes(model) == {"config.json": 2, "empty.jinja": 0, "model.safetensors": 10_000}
