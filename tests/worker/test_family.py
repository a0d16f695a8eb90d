"""What own code has started is found and ended, or it is said that it could not be."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobrunner import procfs
from jobrunner.executors import children, family
from jobrunner.executors.child import Order
from jobrunner.executors.family import Family
from jobrunner.identity import CHILD_VARIABLE
from tests.backends.test_process_kill_reach import HEADLESS, headless

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def headless_pid() -> Iterator[int]:
    """A process in a session of its own that is known by its environment alone, and deaf to SIGTERM."""
    command = [sys.executable, "-c", HEADLESS.format(deaf=True)]
    environment = {**os.environ, CHILD_VARIABLE: "mine"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        headless(process.pid)
        yield process.pid
        process.kill()


@pytest.fixture
def parent() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


class Shortage:
    """This process can open nothing in /proc, so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: float) -> None:
        self.left = times
        monkeypatch.setattr(procfs, "open", self, raising=False)

    def __call__(self, *given: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Path(given[0]).open("rb")


def test_what_a_child_has_started_is_ended_also_where_its_main_thread_has_ended(
    parent: int, headless_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "_TERMINATE_S", 0.1)
    it = headless(headless_pid)
    assert Family.of(parent, "mine").see_off() == ""
    assert it.standing() == "dead"


def test_a_passing_shortage_of_descriptors_leaves_nothing_alive(
    parent: int, headless_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = headless(headless_pid)
    mine = Family.of(parent, "mine")
    Shortage(monkeypatch, times=3)
    mine.kill()
    assert it.standing() == "dead"


def test_what_cannot_be_looked_for_is_not_called_ended(parent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Family.of(parent, "mine")
    monkeypatch.setattr(family, "_READ_WITHIN_S", 0.0)
    monkeypatch.setattr(family, "_TERMINATE_S", 0.0)
    Shortage(monkeypatch, times=float("inf"))
    words = "whatever it has started: the processes cannot be listed (Too many open files)"
    assert mine.see_off() == words


def test_a_child_that_could_not_be_ended_gets_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    real = subprocess.Popen

    def popen(*given: Any, **more: Any) -> Any:
        begun.append(process := real(*given, **more))
        Shortage(monkeypatch, times=float("inf"))
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(OSError, match="Too many open files"):
        children._begun(Order(1, "mine", "LocalExecutor", {}))
    assert begun[0].returncode is not None
