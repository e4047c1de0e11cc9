"""Processes that share a cache, and processes that are killed: no answer is paid twice."""

import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from stargate.oracle.cache import AnswerCache
from stargate.oracle.database import Database, RangeLocks
from tests.fakes.misbehaving_server import MisbehavingServer, answer_to
from tests.fakes.oracle_worker import CONCURRENCY
from tests.unit.oracle.test_cache import REQUEST, nothing, reply, run_and_die, with_cache

pytestmark = pytest.mark.integration

NUMBER = 300
ROOT = Path(__file__).parents[2]


def start(server: MisbehavingServer, cache: Path, *more: object) -> "subprocess.Popen[str]":
    arguments = [server.url, cache, *more] if more else [server.url, cache, 0, NUMBER]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.oracle_worker", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def stored(cache: Path) -> dict[str, str]:
    """The answers on the disk, by the text of their question."""
    if not cache.exists():
        return {}
    with closing(sqlite3.connect(cache)) as connection:
        rows = connection.execute("SELECT 'question ' || record, text FROM answers").fetchall()
    assert len(rows) == len(dict(rows))
    return dict(rows)


def asked(server: MisbehavingServer) -> Counter[str]:
    return Counter(seen.text for seen in list(server.seen))


def everything() -> dict[str, str]:
    return {f"question {n}": answer_to(f"question {n}") for n in range(NUMBER)}


@pytest.mark.parametrize("max_cost", [None, 1.0])
def test_killed_at_any_moment_it_goes_on_without_paying_twice(
    tmp_path: Path, max_cost: float | None
) -> None:
    rng = random.Random(4)
    cache = tmp_path / "cache.sqlite"
    more = () if max_cost is None else (0, NUMBER, max_cost)
    kills = 0
    with MisbehavingServer(delay=0.05) as server:
        # 300 answers at 16 a time, 50 ms each, take about a second.
        while kills < 4 and len(stored(cache)) < NUMBER:
            process = start(server, cache, *more)
            assert process.stdout is not None
            kept, before = stored(cache), asked(server)
            deadline = time.monotonic() + 30
            while asked(server) == before and process.poll() is None:  # it imports, then it asks
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.4))
            process.kill()
            process.wait()
            process.stdout.close()
            kills += 1
            # What was on the disk before this process started was not asked again by it.
            assert not kept.keys() & (asked(server) - before).keys()
        assert kills >= 2
        process = start(server, cache, *more)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and output.split() == ["started", str(NUMBER)]
        total = sum(asked(server).values())

    assert stored(cache) == everything()
    # Each kill costs at most what was in flight.
    assert NUMBER <= total <= NUMBER + kills * CONCURRENCY
    with closing(sqlite3.connect(cache)) as connection:
        meter = dict(connection.execute("SELECT confirmed, calls FROM meter").fetchall())
        held = connection.execute("SELECT count(*) FROM reservations").fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert meter[1] == NUMBER
    if max_cost is not None:
        # With a cap, also the calls whose answers died with their process are on the bill.
        assert total <= meter[1] + meter.get(0, 0) <= NUMBER + kills * CONCURRENCY
        assert held == (0,)


def test_two_processes_at_once_share_the_work(tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    with MisbehavingServer(delay=0.01) as server:
        processes = [start(server, cache, 0, NUMBER) for _ in range(2)]
        outputs = [process.communicate(timeout=60)[0].split() for process in processes]
        assert outputs == [["started", str(NUMBER)]] * 2
        assert set(asked(server).values()) == {1} and len(asked(server)) == NUMBER
    assert stored(cache) == everything()


def test_a_cap_holds_for_two_processes_together(tmp_path: Path) -> None:
    # Each call costs 140 millionths: 0.01 is enough for 70 of them, less what the last may cost at
    # most.
    cache = tmp_path / "cache.sqlite"
    with MisbehavingServer(delay=0.01) as server:
        halves = ((0, NUMBER // 2), (NUMBER // 2, NUMBER))
        processes = [start(server, cache, *half, 0.01) for half in halves]
        for process in processes:
            process.communicate(timeout=60)
        assert [process.returncode for process in processes] == [1, 1]
        total = sum(asked(server).values())
    assert 65 <= total <= 71
    assert len(stored(cache)) <= total


def _store_many(path: Path, first: int, number: int) -> None:
    async def work(cache: AnswerCache, _: Database) -> None:
        for index in range(first, first + number):
            key = index.to_bytes(32, "big")
            await cache.store(key, "{}", REQUEST, reply(f"{os.getpid()}"), nothing)

    with_cache(path, work)


def test_processes_share_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    context = multiprocessing.get_context("spawn")
    # All create the file at once; each writes 40 answers, half of them also written by the next.
    processes = [context.Process(target=_store_many, args=(path, 20 * n, 40)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]

    async def work(_: AnswerCache, database: Database) -> None:
        keys = [key for (key,) in database.read("SELECT key FROM answers ORDER BY key")]
        assert keys == [index.to_bytes(32, "big") for index in range(100)]

    with_cache(path, work)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _lock_and_die(path: Path) -> None:
    assert RangeLocks(path).try_lock(7)
    os._exit(9)


def test_locks_die_with_their_process(tmp_path: Path) -> None:
    path = tmp_path / "c.lock"
    run_and_die(_lock_and_die, path)
    mine, other = RangeLocks(path), RangeLocks(path)
    assert mine.try_lock(7)
    assert not other.try_lock(7)
    assert other.try_lock(8)
    mine.unlock(7)
    assert other.try_lock(7)
    mine.close()
    other.close()
