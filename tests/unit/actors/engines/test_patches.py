"""vLLM's readers sleep instead of spinning: what is passed to vLLM's own wait."""

import time

from stargate.actors.engines.patches import sleeping


class Reader:
    """The part of vLLM's SpinCondition that decides how it waits."""

    def __init__(self, idle_seconds: float) -> None:
        self.busy_loop_s = 1.0
        self.last_read = time.monotonic() - idle_seconds
        self.timeouts: list[int | None] = []

    def wait(self, timeout_ms: int | None = None) -> None:
        assert self.busy_loop_s == 0.0, "it would spin"
        self.timeouts.append(timeout_ms)


def test_a_reader_sleeps_briefly_while_messages_are_frequent() -> None:
    reader = Reader(idle_seconds=0.1)
    wait = sleeping(Reader.wait)
    wait(reader)
    wait(reader, timeout_ms=5_000)
    wait(reader, timeout_ms=2)
    assert reader.timeouts == [5, 5, 2]


def test_a_reader_without_messages_sleeps_as_long_as_vllm_says() -> None:
    reader = Reader(idle_seconds=60.0)
    wait = sleeping(Reader.wait)
    wait(reader)
    wait(reader, timeout_ms=5_000)
    assert reader.timeouts == [None, 5_000]
