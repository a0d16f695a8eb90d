"""The guardian of a job's own code: the parent of all that the code leaves without one.

A daemon that forked twice, made a session of its own and cleared its environment can be recognized by
nothing but its parent. The guardian is a process of its own that does nothing else: the code waits for its
children by itself, and must not meet strangers among them.

In the foreground the guardian has the pid that others know. Signals that they send it go on to the code;
those of the terminal reach the code by themselves.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from jobrunner.reaping import fork_to_reap, reaped_now, reaped_until

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_MEANT_FOR_CODE = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
)


def go_on_under_guardian() -> int:
    """Go on in a child, and return the pid of its guardian: what the code starts descends from that.

    This process becomes the guardian. It ends as the child ends, and the child ends with it. Where the
    system has no such thing, nothing happens, and the process's own pid is returned. It has to be called
    before any thread is started.
    """

    def wait(child: int) -> int:
        for number in _MEANT_FOR_CODE:  # the code gets them as well
            signal.signal(number, signal.SIG_IGN)
        return reaped_until(child)

    return _go_on(wait, ())


def go_on_in_foreground_under_guardian() -> int:
    """Go on in a child as `go_on_under_guardian` does; signals sent to the guardian reach the child."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or None
            stream.flush()
    return _go_on(_passing_on, {*_MEANT_FOR_CODE, signal.SIGCHLD})


def _go_on(wait: Callable[[int], int], blocked: Iterable[int]) -> int:
    guardian = os.getpid()
    if not _prctl(_PR_SET_CHILD_SUBREAPER, 1):
        return guardian
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # none is lost before there is a child
    child = fork_to_reap()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:  # it was ended before it could be told
            os._exit(128 + signal.SIGKILL)
        return guardian
    _end_with(wait(child))
    raise AssertionError  # it has ended


def _passing_on(child: int) -> int:
    """Reap what ends, and pass on what others send, until `child` ends; return its exit code."""
    while True:
        told = signal.sigwaitinfo({*_MEANT_FOR_CODE, signal.SIGCHLD})
        if told.si_signo != signal.SIGCHLD:
            is_of_a_process = (
                told.si_code <= 0
            )  # what the kernel sends for the terminal, the child gets as well
            if is_of_a_process:
                with suppress(ProcessLookupError):
                    os.kill(child, told.si_signo)
            continue
        code = reaped_now(child)
        if code is not None:
            return code


def _end_with(code: int) -> None:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has dumped its own
        with suppress(OSError):  # SIGKILL has no handler to be set
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
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
