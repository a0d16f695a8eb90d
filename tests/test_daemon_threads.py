"""Threads for calls that may hang: neither an event loop nor the interpreter waits for them at its end."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from jobrunner.aside import Late, within
from jobrunner.daemon_threads import DaemonThreads

HANGS = """
import asyncio, threading
from jobrunner.daemon_threads import DaemonThreads

async def main():
    asyncio.get_running_loop().set_default_executor(DaemonThreads(4, "io"))
    asyncio.create_task(asyncio.to_thread(threading.Event().wait))
    print(await asyncio.to_thread(lambda: "done"), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """What calls hang on, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_a_call_that_hangs_keeps_neither_a_loop_nor_the_interpreter_from_ending() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_as_many_calls_as_allowed_are_under_way_and_the_next_one_waits(go: threading.Event) -> None:
    threads = DaemonThreads(3, "some")
    hanging = [threads.submit(go.wait, 60) for _ in range(2)]
    for number in range(200):  # one place is left, and is used again and again
        assert threads.submit(abs, -number).result(30) == number
    hanging.append(threads.submit(go.wait, 60))
    waiting = threads.submit(lambda: "at last")
    assert not waiting.done()
    assert len([each for each in threading.enumerate() if each.name.startswith("some_")]) == 3
    go.set()
    assert waiting.result(30) == "at last"
    assert all(each.result(30) for each in hanging)
    threads.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(print)


def test_what_a_call_raises_is_raised_where_it_is_waited_for() -> None:
    async def main() -> None:
        def leave() -> None:
            raise ValueError("no")

        threads = DaemonThreads(1, "one")
        with pytest.raises(ValueError, match="no"):
            await asyncio.get_running_loop().run_in_executor(threads, leave)
        threads.shutdown()

    asyncio.run(main())


def test_calls_that_have_not_begun_are_taken_back_and_those_that_hang_are_left(go: threading.Event) -> None:
    threads = DaemonThreads(1, "one")
    begun = threading.Event()

    def hang() -> None:
        begun.set()
        go.wait(60)

    hanging = threads.submit(hang)
    assert begun.wait(30)
    waiting = threads.submit(lambda: 5)
    began_s = time.monotonic()
    threads.shutdown(cancel_futures=True)
    assert time.monotonic() - began_s < 20
    assert waiting.cancelled()
    assert not hanging.done()


def test_a_call_from_elsewhere_is_bounded_in_time(go: threading.Event) -> None:
    assert within(30.0, lambda: 5) == 5
    with pytest.raises(Late, match=r"not returned within 0\.1 s"):
        within(0.1, go.wait)

    def leave() -> None:
        raise SystemExit(4)

    with pytest.raises(SystemExit):
        within(30.0, leave)
