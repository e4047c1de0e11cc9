"""`stargate scale`: a request's way through files, what is refused, what the run makes of it."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stargate.actors import scaler as scaler_module
from stargate.actors import spawn
from stargate.actors.posts import HeldWeights, Post
from stargate.actors.scaler import Scaler
from stargate.actors.spawn import Crew, CrewPlan
from stargate.cluster import Bundle, Node
from stargate.config import RunConfig
from stargate.errors import ConfigError, DataError, EngineError, MachineError
from stargate.launch import scale, scaling
from stargate.launch.cli import main
from stargate.launch.scaling import following
from stargate.lock import hold, is_held
from stargate.placement import cores_for_more, place
from stargate.progress import PlainProgress
from stargate.scaling import (
    ANSWER_FILE,
    REQUEST_FILE,
    answer,
    parse_engines,
    read_answer,
    send_request,
    take_request,
    withdraw_request,
    write_answer,
)
from stargate.seating import NodeFacts, Seat, full_nodes, seat_more
from tests.unit.test_keeper import FakeActor, ping

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
    write_answer(tmp_path, answer(second, "working", "two\nlines " + "x" * 5000))
    assert read_answer(tmp_path, first) is None
    found = read_answer(tmp_path, second)
    assert found is not None
    assert (found.state, found.message[:12], len(found.message)) == (
        "working",
        "two lines xx",
        2000,
    )


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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "POLL_SECONDS", 0.002)
    monkeypatch.setattr(scale, "_LOOK_SECONDS", 0.002)


@contextmanager
def going_on(root: Path, scaler: FakeScaler, said: list[str]) -> Iterator[Callable[[], None]]:
    """A run that looks for requests, in a thread; gives what ends it."""
    (root / "config.yaml").write_text("")
    ending, ready = threading.Event(), threading.Event()

    async def play() -> None:
        async with following(root, scaler, said.append):
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


def test_a_request_is_done_and_told(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    scaler, said = FakeScaler(), list[str]()
    with going_on(tmp_path, scaler, said):
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
    assert said[:2] == [told[0], f"scale: done: {told[1]}"]


def test_what_can_not_be_done_is_one_line_and_the_run_goes_on(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    scaler, said = FakeScaler(), list[str]()
    scaler.problem = MachineError("needs 9 GPUs, this machine has 8 \x1b[2J")
    with going_on(tmp_path, scaler, said):
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
    assert f"scale: refused: {tmp_path / REQUEST_FILE}: not valid JSON" in said
    assert said[-1] == "scale: done: now questioner=1 roleplayer=2"


def test_one_request_at_a_time(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    scaler, said = FakeScaler(), list[str]()
    scaler.go.clear()
    with going_on(tmp_path, scaler, said):
        assert command(tmp_path, "questioner=2", "--no-wait") == 0
        assert command(tmp_path, "questioner=3") == 5
        assert "an earlier request is not done yet" in capsys.readouterr().err
        scaler.go.set()
        while "scale: done: now questioner=2 roleplayer=1" not in said:
            time.sleep(0.001)
    assert scaler.asked == [{"questioner": 2}]


def test_a_run_that_ends_first_says_so(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    scaler, said = FakeScaler(), list[str]()
    scaler.go.clear()
    with going_on(tmp_path, scaler, said) as end:
        request = send_request(tmp_path, {"questioner": 2})
        scale.await_taken(tmp_path, request)
        threading.Timer(0.05, end).start()
        with pytest.raises(MachineError, match="refused: the run ended before it was done"):
            scale.await_done(tmp_path, request)
    assert command(tmp_path, "questioner=2") == 3
    assert "no process works on it" in capsys.readouterr().err
    assert scaler.counts == {"questioner": 1, "roleplayer": 1}


def test_what_was_asked_before_the_run_began_is_dropped(tmp_path: Path, quick: None) -> None:
    old = send_request(tmp_path, {"questioner": 2})
    scaler, said = FakeScaler(), list[str]()
    with going_on(tmp_path, scaler, said):
        pass
    assert scaler.asked == []
    assert said == ["scale: dropped a request from before: questioner=2"]
    found = read_answer(tmp_path, old)
    assert found is not None and found.state == "refused"


def test_runs_that_do_not_go_on_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    tmp_path: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scale, "TAKE_SECONDS", 0.05)
    (tmp_path / "config.yaml").write_text("")
    with hold(tmp_path):
        assert command(tmp_path, "questioner=2") == 5
    assert "its engines have not started yet" in capsys.readouterr().err
    assert not (tmp_path / REQUEST_FILE).exists()  # it is not done later, unasked
    assert not (tmp_path / ANSWER_FILE).exists()


# --- places


def test_engines_that_join_get_cores_that_nobody_holds() -> None:
    cores = list(range(6))
    assert cores_for_more([None, None], cores, ["0,1", "2"]) == ["3,4", "5"]
    assert cores_for_more([None], cores, ["0-1", "2-3"]) == ["4,5"]
    assert cores_for_more(["0", None, "0"], cores, ["0", "1-4"]) == ["0", "5", "0"]
    with pytest.raises(MachineError, match=r"2 more engines need a core each .* has 1 of 6 left"):
        cores_for_more([None, None], cores, ["0-4"])


def facts(name: str, num_cpus: float = 4) -> NodeFacts:
    return NodeFacts(Node(name, 0, num_cpus, 64), name, "10.0.0.1", name, (0, 1, 2, 3))


def test_seats_of_engines_that_join_a_cluster() -> None:
    first = Seat("questioner-0", "a", 0.0, 1.0, "0,1,2,3", 4)
    nodes = [facts("a"), facts("b")]
    assert full_nodes(nodes, [first]) == {"a"}
    like = [Seat(f"questioner-{n}", "a", 0.0, 1.0, "0,1,2,3", 4) for n in (1, 2)]
    on_b = [Bundle(seat.actor, "b", 0.0, 1.0, 0.0) for seat in like]
    assert seat_more(like, [None, None], on_b, nodes, [first]) == [
        Seat("questioner-1", "b", 0.0, 1.0, "0,1", 2),
        Seat("questioner-2", "b", 0.0, 1.0, "2,3", 2),
    ]
    assert [s.cores for s in seat_more(like, ["0", "0"], on_b, nodes, [first])] == ["0", "0"]
    with pytest.raises(MachineError, match="0 of 4 left"):
        on_a = [Bundle("questioner-1", "a", 0.0, 1.0, 0.0)]
        seat_more(like[:1], [None], on_a, nodes, [first])
    gpu = [Seat("questioner-1", "a", 1.0, 1.0, None, 4)]
    assert seat_more(gpu, [None], on_b[:1], nodes, [first])[0].cores is None


# --- the scaler


class Engine(FakeActor):
    async def do_stats(self) -> Any:
        return SimpleNamespace(num_requests=7)


class World:
    """A crew of fakes on a machine with literal cores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_cores: int, **changes: Any) -> None:
        config = RunConfig.model_validate(changes)
        num_gpus = num_cores if config.device == "cuda" else 0
        cores = list(range(num_cores))
        placement = place(config, cores, num_gpus)
        self.plan = CrewPlan(config, placement, Path("m0"), Path("m0"), Path("logs"))
        self.crew = Crew(
            questioners=[Engine(f"questioner-{n}") for n in range(len(placement.questioner_cores))],
            roleplayers=[Engine(f"roleplayer-{n}") for n in range(len(placement.roleplayer_cores))],
        )
        self.said: list[str] = []
        self.killed: list[str] = []
        self.hired: dict[str, str | None] = {}  # the cores of each
        monkeypatch.setattr(spawn.ray, "kill", lambda actor: self.killed.append(actor.name))
        monkeypatch.setattr(scaler_module, "engine_post", self.post)
        posts = [
            Post(role, self.crew.engines(role), (n,), list, ping, role == "questioner")
            for role in ("questioner", "roleplayer")
            for n in range(len(self.crew.engines(role)))
        ]
        self.crew.keeper = spawn.Keeper(
            posts,
            HeldWeights("m0"),
            3,
            lambda actor: self.killed.append(actor.name),
            self.said.append,
        )
        self.keeper = self.crew.keeper
        self.scaler = Scaler(self.plan, self.crew, cores, num_gpus, self.said.append)
        self.prepare: Callable[[FakeActor], None] = lambda actor: None

    def post(self, plan: Any, crew: Crew, role: str, number: int, cores: str | None) -> Post:
        def hire() -> list[Any]:
            actor = Engine(f"{role}-{number}")
            self.prepare(actor)
            self.hired[actor.name] = cores
            return [actor]

        return Post(role, crew.engines(role), (number,), hire, ping, role == "questioner")

    def scale(self, **targets: int) -> str:
        return asyncio.run(self.scaler.scale(targets))

    @property
    def names(self) -> list[str]:
        return [actor.name for actor in (*self.crew.questioners, *self.crew.roleplayers)]


SHARED = {
    "questioner": {"engine": {"cpu_cores": "0"}},
    "roleplayer": {"engine": {"cpu_cores": "1"}},
}


def test_up_and_down_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 2, **SHARED)
    world.keeper.weights.current = ("models/m1", 1)
    assert world.scale(questioner=3) == "now questioner=3 roleplayer=1"
    assert world.names == ["questioner-0", "questioner-1", "questioner-2", "roleplayer-0"]
    assert world.hired == {"questioner-1": "0", "questioner-2": "0"}
    assert world.crew.questioners[2].calls == [("start",), ("load_weights", "models/m1", 1)]
    assert world.said[0] == "starting questioner-1, questioner-2; the others go on"
    last = world.crew.questioners[2]
    assert world.scale(questioner=1, roleplayer=1) == "now questioner=1 roleplayer=1"
    assert world.names == ["questioner-0", "roleplayer-0"]
    assert last.methods[-1] == "shutdown"  # in order, then its process
    assert world.killed == ["questioner-2", "questioner-1"]
    assert world.crew.leaving == []
    assert world.said[-3:] == [
        "questioner-2 has left, after 7 requests",
        "questioner-1 gets no new requests and ends those that it has",
        "questioner-1 has left, after 7 requests",
    ]
    assert world.scale(questioner=1) == "now questioner=1 roleplayer=1"
    assert (world.keeper.tally.joined, world.keeper.tally.left) == (
        {"questioner": 2},
        {"questioner": 2},
    )


def test_cores_of_those_that_leave_are_for_those_that_join(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 4, questioner={"engine": {"num_engines": 3}})
    with pytest.raises(MachineError, match=r"1 more engines need a core each .* has 0 of 4 left"):
        world.scale(roleplayer=2)
    assert (world.hired, world.killed, world.said) == ({}, [], [])
    with pytest.raises(MachineError, match=r"3 more engines need a core each .* has 2 of 4 left"):
        world.scale(questioner=1, roleplayer=4)
    assert world.killed == []  # refused before anybody left
    assert world.scale(questioner=1, roleplayer=3) == "now questioner=1 roleplayer=3"
    assert world.hired == {"roleplayer-1": "1", "roleplayer-2": "2"}
    assert world.killed == ["questioner-2", "questioner-1"]


def test_gpus_are_counted_with_those_of_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 4, device="cuda", trainer={"num_gpus_per_rank": 1})
    assert world.scale(questioner=2) == "now questioner=2 roleplayer=1"
    assert world.hired == {"questioner-1": None}
    with pytest.raises(MachineError, match="needs 5 GPUs, this machine has 4"):
        world.scale(questioner=3)


def test_one_that_can_not_start_leaves_its_place_free(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 4, questioner={"engine": {"num_engines": 3}})
    world.prepare = lambda actor: setattr(actor, "dies_in", "start")
    with pytest.raises(EngineError, match="roleplayer-1 is gone"):
        world.scale(questioner=2, roleplayer=2)
    assert world.names == ["questioner-0", "questioner-1", "roleplayer-0"]
    world.prepare = lambda actor: None
    assert world.scale(roleplayer=2) == "now questioner=2 roleplayer=2"
    assert world.hired == {"roleplayer-1": "2"}
    world.keeper.check()


def test_waiting_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaler_module, "_SPEAK_SECONDS", 0.01)
    world = World(monkeypatch, 2, **SHARED)
    hold = asyncio.Event()
    world.prepare = lambda actor: setattr(actor, "hold", hold)

    async def run() -> None:
        scaling = asyncio.create_task(world.scaler.scale({"questioner": 2}))
        while "questioner-1: not all there yet" not in world.said:
            await asyncio.sleep(0.001)
        hold.set()
        await scaling

    asyncio.run(run())


def test_a_run_that_ends_ends_one_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 2, **SHARED)
    world.prepare = lambda actor: setattr(actor, "hold", asyncio.Event())

    async def run() -> None:
        scaling = asyncio.create_task(world.scaler.scale({"questioner": 2}))
        await asyncio.sleep(0.01)
        scaling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scaling

    asyncio.run(run())
    assert set(world.killed) == {"questioner-1"}
    assert world.names == ["questioner-0", "roleplayer-0"]


class FakeCluster:
    """Has room for `room` engines more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.seats: list[str] = []

    async def seat_more(self, wanted: Mapping[str, str | None]) -> None:
        if len(wanted) > self.room:
            raise MachineError("no node has room for questioner-1: needs 2 CPUs")
        self.seats += wanted

    def leave_seat(self, actor: str) -> None:
        if actor in self.seats:
            self.seats.remove(actor)


def test_on_a_cluster_places_are_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 2)
    cluster = FakeCluster(room=1)
    world.scaler._plan = SimpleNamespace(  # type: ignore[assignment]
        config=world.plan.config, placement=world.plan.placement, cluster=cluster
    )
    with pytest.raises(MachineError, match="no node has room"):
        world.scale(questioner=3)
    assert world.scale(questioner=2) == "now questioner=2 roleplayer=1"
    assert (cluster.seats, world.hired) == (["questioner-1"], {"questioner-1": None})
    world.scale(questioner=1)
    assert cluster.seats == []
    world.prepare = lambda actor: setattr(actor, "dies_in", "start")
    with pytest.raises(EngineError):
        world.scale(roleplayer=2)
    assert cluster.seats == []


def test_what_the_command_prints_can_not_move_the_cursor(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    request = send_request(tmp_path, {"questioner": 2})
    write_answer(tmp_path, answer(request, "working", "a\x1b[2Jb"))
    with hold(tmp_path):
        PlainProgress().say(scale.await_taken(tmp_path, request).message)
    assert capsys.readouterr().out == "a\\x1b[2Jb\n"
