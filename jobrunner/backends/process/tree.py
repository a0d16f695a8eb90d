"""Which processes belong to a job, and how to signal one of them and never another."""

import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Mapping

from jobrunner.backends.process.records import Mark, RecordDirectory, StartRecord
from jobrunner.errors import BackendError
from jobrunner.identity import ProcessIdentity, ProcessStat

RECORD_VARIABLE = "JOBRUNNER_RECORD"
"""In the environment of each command: the path of its record directory."""

Table = Mapping[int, ProcessStat]


class IdentityError(BackendError):
    """It cannot be told whether a process is the one that was meant: it is not signalled."""


def processes_of(
    directory: RecordDirectory, start: StartRecord, known: Iterable[Mark], table: Table
) -> dict[Mark, ProcessStat]:
    """Return the job's live processes, without its wrapper.

    They are those of the wrapper's session (also when their parents are gone), their descendants
    (also those with a session of their own), and those of `known`, seen earlier, that still live.
    """
    by_mark = {(stat.pid, stat.started): stat for stat in table.values()}
    session = start.wrapper[0]
    rooted = [by_mark[mark] for mark in {start.command, *known} if mark in by_mark]
    # The number of a session is not given away while one of its processes is there. Where none is
    # left that we know, it may be a stranger's by now, and each process has to prove itself.
    is_ours = start.wrapper in by_mark or any(stat.session == session for stat in rooted)
    rooted += [
        stat
        for stat in table.values()
        if stat.session == session and stat.pid != session and (is_ours or _is_marked(stat, directory))
    ]
    found = _with_descendants(rooted, table)
    return {
        (stat.pid, stat.started): stat
        for stat in found
        if not stat.has_ended and (stat.pid, stat.started) != start.wrapper
    }


def send(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Signal exactly this process; return False when it is no more.

    Raises IdentityError, without a signal, when it cannot be told; PermissionError when this user may not.
    """
    try:
        handle = _open_handle(identity.pid)
    except ProcessLookupError:
        return False
    try:
        standing = identity.standing()
        if standing == "unknown":
            msg = f"it cannot be told whether process {identity.pid} is still the job's: it was not signalled"
            raise IdentityError(msg)
        if standing == "dead":
            return False
        if handle is None:
            os.kill(identity.pid, number)
        else:
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:  # it ended between the look and the signal
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def _open_handle(pid: int) -> int | None:
    """Return a handle that goes on meaning the process that has `pid` now; None where there are none."""
    if not hasattr(os, "pidfd_open"):  # macOS
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (
        OSError
    ):  # an old kernel or a sandbox without the call: then the check stands right before the kill
        return None


def _with_descendants(roots: Iterable[ProcessStat], table: Table) -> list[ProcessStat]:
    children = defaultdict(list)
    for stat in table.values():
        children[stat.parent].append(stat)
    found: dict[int, ProcessStat] = {}
    waiting = list(roots)
    while waiting:
        stat = waiting.pop()
        if stat.pid not in found:
            found[stat.pid] = stat
            # The table is no snapshot: a pid may have changed hands while it was read.
            waiting += [child for child in children[stat.pid] if child.started >= stat.started]
    return list(found.values())


def _is_marked(stat: ProcessStat, directory: RecordDirectory) -> bool:
    import psutil

    try:
        return psutil.Process(stat.pid).environ().get(RECORD_VARIABLE) == directory.path
    except (psutil.Error, OSError):  # gone, or another user's: then it has proved nothing
        return False
