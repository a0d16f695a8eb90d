"""The guardian of a job's own code: the parent of all that the code leaves without one.

A daemon that forked twice, made a session of its own and cleared its environment can be recognized by
nothing but its parent. The guardian is a process of its own that does nothing else: the code waits for its
children by itself, and must not meet strangers among them.
"""

import os
import resource
import signal
import sys
from contextlib import suppress

from jobrunner.reaping import fork_to_reap, reaped_until

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def go_on_under_guardian() -> int:
    """Go on in a child, and return the pid of its guardian: what the code starts descends from that.

    This process becomes the guardian. It ends as the child ends, and the child ends with it. Where the
    system has no such thing, nothing happens, and the process's own pid is returned. It has to be called
    before any thread is started.
    """
    guardian = os.getpid()
    if not _prctl(_PR_SET_CHILD_SUBREAPER, 1):
        return guardian
    child = fork_to_reap()
    if child == 0:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:  # it was ended before it could be told
            os._exit(128 + signal.SIGKILL)
        return guardian
    for number in _IGNORED:  # they are meant for the code, which gets them as well
        signal.signal(number, signal.SIG_IGN)
    _end_with(reaped_until(child))
    raise AssertionError  # it has ended


def _end_with(code: int) -> None:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has dumped its own
        with suppress(OSError):  # SIGKILL has no handler to be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _prctl(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):  # a Python without ctypes: the environment shows most
        return False
