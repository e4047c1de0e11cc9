"""The cache file: durable, exactly once (test_oracle_processes.py: shared by processes)."""

import asyncio
import multiprocessing
import sqlite3
from collections.abc import Awaitable, Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from stargate.errors import DataError, StargateError
from stargate.oracle.cache import AnswerCache
from stargate.oracle.database import Database
from stargate.oracle.records import ChatRequest, Reply, Usage, chat

REQUEST = ChatRequest(chat(("user", "hi")), "m", 5, purpose="gold", record="t1:p1")


def reply(text: str) -> Reply:
    return Reply(text, None, "stop", Usage(3, 1), "fake")


def with_cache(path: Path, work: Callable[[AnswerCache, Database], Awaitable[None]]) -> None:
    async def run() -> None:
        database = Database(path)
        try:
            await work(AnswerCache(database), database)
        finally:
            await asyncio.to_thread(database.close)

    asyncio.run(run())


def count(database: Database) -> int:
    ((number,),) = database.read("SELECT count(*) FROM answers")
    return int(number)


def run_and_die(target: Callable[[Path], None], path: Path) -> None:
    """Runs `target` in a process of its own, which ends by os._exit(9)."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=(path,))
    process.start()
    process.join(30)
    assert process.exitcode == 9


def nothing(connection: sqlite3.Connection) -> None:
    pass


def test_answers_survive_and_the_first_one_stays(tmp_path: Path) -> None:
    async def write(cache: AnswerCache, _: Database) -> None:
        assert cache.get(b"k" * 32) is None
        for text in ("one", "two"):
            kept, _ = await cache.store(b"k" * 32, "{}", REQUEST, reply(text), nothing)
            assert kept == reply("one")

    async def read(cache: AnswerCache, database: Database) -> None:
        assert cache.get(b"k" * 32) == reply("one")
        assert cache.get(b"x" * 32) is None
        assert count(database) == 1

    with_cache(tmp_path / "sub" / "c.sqlite", write)
    with_cache(tmp_path / "sub" / "c.sqlite", read)


def test_commits_are_synchronous(tmp_path: Path) -> None:
    async def work(_: AnswerCache, database: Database) -> None:
        pragmas = await database.submit(
            lambda connection: [
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous")
            ]
        )
        assert pragmas == ["wal", 2]  # 2: FULL, the log is synced at each commit

    with_cache(tmp_path / "c.sqlite", work)


def test_many_answers_share_a_commit(tmp_path: Path) -> None:
    async def work(cache: AnswerCache, database: Database) -> None:
        commits: list[str] = []
        await database.submit(
            lambda connection: connection.set_trace_callback(
                lambda sql: commits.append(sql) if sql == "COMMIT" else None
            )
        )
        keys = [bytes([index]) * 32 for index in range(200)]
        stores = [cache.store(key, "{}", REQUEST, reply("x"), nothing) for key in keys]
        await asyncio.gather(*stores)
        assert count(database) == 200
        assert len(commits) < 40

    with_cache(tmp_path / "c.sqlite", work)


def test_a_defect_in_an_operation_reaches_its_caller(tmp_path: Path) -> None:
    async def work(cache: AnswerCache, database: Database) -> None:
        with pytest.raises(ZeroDivisionError):
            await database.submit(lambda connection: 1 // 0)
        await cache.store(b"k" * 32, "{}", REQUEST, reply("x"), nothing)  # the writer lives on
        assert count(database) == 1

    with_cache(tmp_path / "c.sqlite", work)


def test_a_claim_excludes_others_until_released(tmp_path: Path) -> None:
    async def work(cache: AnswerCache, _: Database) -> None:
        other = Database(tmp_path / "c.sqlite")
        order: list[str] = []

        async def second() -> None:
            async with AnswerCache(other).claim(b"k" * 32):
                order.append("second")

        async with cache.claim(b"k" * 32), AnswerCache(other).claim(b"x" * 32):
            task = asyncio.create_task(second())
            await asyncio.sleep(0.15)
            order.append("first")
        await asyncio.wait_for(task, 5)
        assert order == ["first", "second"]
        await asyncio.to_thread(other.close)

    with_cache(tmp_path / "c.sqlite", work)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a database, but long enough to look at" * 50, "not a database"),
        (None, "not an Oracle"),
    ],
)
def test_other_files_are_refused_in_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "c.sqlite"
    if content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE other (x)")
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Database(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StargateError, match="can't be opened"):
        Database(tmp_path / "file" / "c.sqlite")


def _open_each(folder: Path, ready: Barrier, problems: "Queue[list[str]]") -> None:
    found = []
    for attempt in range(40):
        ready.wait()
        try:
            Database(folder / f"{attempt}.sqlite").close()
        except StargateError as error:
            found.append(str(error))
    problems.put(found)


def test_processes_that_open_a_new_file_at_the_same_moment_all_get_it(tmp_path: Path) -> None:
    # Without the lock, one of four was refused ("database is locked") in a third of the attempts.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # or each would import it for itself
    ready, problems = context.Barrier(4), context.Queue()
    openers = [
        context.Process(target=_open_each, args=(tmp_path, ready, problems)) for _ in range(4)
    ]
    for opener in openers:
        opener.start()
    assert [problems.get() for _ in openers] == [[]] * 4
    for opener in openers:
        opener.join()
