"""The first process of a container: it reaps what nobody waits for, and has the command in a child.

The kernel gives every process that has lost its parent to the process with the pid 1. A worker in that
place could not tell such a process from one of its own whose exit code it still needs; so it leaves the
place to this one, which waits for all.
"""

import os
import signal
import sys
from contextlib import suppress

from jobrunner.reaping import fork_to_reap, reaped_until

OWN_PROCESS = object()
"""The object of a context whose command line is that of its process, and not called by another program."""

_PASSED_ON = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGCONT, signal.SIGWINCH),
)


def leave_pid_1() -> None:
    """Go on in a child where this process has the pid 1; that one reaps, passes signals on, and ends with it.

    It has to be called before any thread is started.
    """
    if os.getpid() != 1:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or None
            stream.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # none is lost before there is a child
    child = fork_to_reap()
    if child == 0:
        # A group of its own: Ctrl-C at a terminal would reach it twice, from there and from us.
        os.setpgid(0, 0)
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return
    _reap_until_the_end_of(child)


def _take_terminal() -> None:
    with suppress(OSError, ValueError, AttributeError):  # there is none
        descriptor = sys.stdin.fileno()
        if os.isatty(descriptor):
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(descriptor, os.getpid())
            signal.signal(signal.SIGTTOU, before)


def _reap_until_the_end_of(child: int) -> None:
    def pass_on(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    code = reaped_until(child)
    os._exit(code if code >= 0 else 128 - code)
