"""Waiting for one child while reaping whatever else the kernel gives to this process."""

import os
import signal


def fork_to_reap() -> int:
    """Fork, as `os.fork` does; in the parent `reaped_until` has to follow.

    The parent of this process may have had SIGCHLD ignored, and then nothing would have an exit code.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return os.fork()


def reaped_until(child: int) -> int:
    """Reap every process that ends, until `child` does; return its exit code, negative for a signal."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def reaped_now(child: int) -> int | None:
    """Reap what has ended; return the exit code of `child`, as `reaped_until`, or None: it goes on."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None
