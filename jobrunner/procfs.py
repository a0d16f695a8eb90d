"""What Linux says of its processes, read from /proc.

A process goes on while any of its threads does. Once its main thread has ended, /proc/PID/stat says "Z",
as of a zombie, and /proc/PID/environ cannot be read: then the other threads are asked.
"""

import errno
import os
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

# The flaw is ours and passes: what cannot be read for it must not count as gone.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_ENDED = (b"Z", b"X", b"x")
_LISTINGS = 4  # of the threads at most, where each has ended before it could be asked
_ASKED_MOST = 8  # threads of a process for the environment that all of them share


class Stat(NamedTuple):
    """One process. `started`: kernel ticks since boot. `state`: of a thread that lives, where one does."""

    parent: int
    session: int
    state: bytes
    started: int


def pids() -> set[int]:
    """Return the numbers of all processes that this user may look at."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208  (names only)


def stat_of(pid: int) -> Stat | None:
    """Return a process; None where there is none, or none that this user may look at.

    Raises OSError where it cannot be told for want of descriptors or memory, as all of these.
    """
    fields = _stat_fields(f"/proc/{pid}/stat")
    if fields is None:
        return None
    state = fields[0]
    if state in _ENDED:
        state = next((each for each in _other_states(pid) if each not in _ENDED), state)
    return Stat(int(fields[1]), int(fields[3]), state, int(fields[19]))


def environment_of(pid: int) -> bytes | None:
    """Return the environment that a process was started with, each variable with a NUL behind it.

    None: it cannot be read (another user's, hidden, ended). It is empty where it was cleared.
    """
    text = _read(f"/proc/{pid}/environ")
    if text:
        return text
    threads = islice(_other_threads(pid), _ASKED_MOST)
    others = (_read(f"/proc/{pid}/task/{thread}/environ") for thread in threads)
    return next((each for each in others if each), text)


def _other_states(pid: int) -> Iterable[bytes]:
    """Yield the states of a process's threads, but for its main one."""
    seen: set[int] = set()
    # Of a process whose threads take turns, each may have ended before it is asked.
    for _ in range(_LISTINGS):
        fresh = set(_other_threads(pid)) - seen
        if not fresh:
            return
        seen |= fresh
        for thread in fresh:
            fields = _stat_fields(f"/proc/{pid}/task/{thread}/stat")
            if fields is not None:
                yield fields[0]


def _other_threads(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  (names only)
    except OSError as error:
        pass_over(error)
        return []
    return [int(thread) for thread in threads if int(thread) != pid]


def _stat_fields(path: str) -> list[bytes] | None:
    """Return the fields of a process or thread from the third on, which is its state."""
    text = _read(path)
    # The second field is the program's name in brackets, and may hold spaces and brackets itself.
    return text[text.rfind(b")") + 2 :].split() if text else None


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  (read for thousands at a time)
            return file.read()
    except OSError as error:
        pass_over(error)
        return None


def pass_over(error: OSError) -> None:
    """Take what cannot be read for gone or hidden; raises where this process lacks the means to read it."""
    if error.errno in _SHORTAGES:
        raise error
