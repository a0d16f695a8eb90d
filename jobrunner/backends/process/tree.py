"""Which processes belong to a job, and how to signal one of them and never another."""

import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from jobrunner.backends.process.records import Mark, RecordDirectory, RecordError, StartRecord
from jobrunner.backends.process.spec import DEFAULT_STOP_GRACE_S
from jobrunner.errors import BackendError
from jobrunner.identity import (
    PIDS,
    ProcessIdentity,
    ProcessStat,
    arguments_of,
    host_id,
    process_table,
    variable_of,
)

RECORD_VARIABLE = "JOBRUNNER_RECORD"
"""In the environment of each command and of its wrapper: the path of its record directory."""

_WRAPPER = "/jobrunner/backends/process/wrapper.py"

Table = Mapping[int, ProcessStat]


class IdentityError(BackendError):
    """It cannot be told whether a process is the one that was meant: it is not signalled."""


class Snapshot:
    """The processes of the host at one moment; whose they are is looked up at most once for all jobs."""

    def __init__(self, table: Table | None = None) -> None:
        self.table = process_table() if table is None else table
        self.by_mark = {(stat.pid, stat.started): stat for stat in self.table.values()}

    @cached_property
    def children(self) -> Mapping[int, list[ProcessStat]]:
        """The processes by the pid of their parent."""
        children = defaultdict(list)
        for stat in self.table.values():
            children[stat.parent].append(stat)
        return children

    @cached_property
    def sessions(self) -> Mapping[int, list[ProcessStat]]:
        """The processes by the number of their session."""
        sessions = defaultdict(list)
        for stat in self.table.values():
            sessions[stat.session].append(stat)
        return sessions

    @cached_property
    def records(self) -> Mapping[int, str]:
        """The record directory that each process carries in its environment, as far as it can be read."""
        found = ((stat.pid, variable_of(stat.pid, RECORD_VARIABLE)) for stat in self.table.values())
        return {pid: path for pid, path in found if path}

    @cached_property
    def carriers(self) -> Mapping[str, list[ProcessStat]]:
        """The processes by the record directory that they carry."""
        carriers = defaultdict(list)
        for pid, path in self.records.items():
            carriers[path].append(self.table[pid])
        return carriers


def processes_of(
    directory: RecordDirectory, start: StartRecord, known: Iterable[Mark], snapshot: Snapshot
) -> dict[Mark, ProcessStat]:
    """Return the job's live processes, without its wrapper.

    They are those that carry its record in their environment, those of the wrapper's session, those that
    the kernel gave to the wrapper when their parents ended, those of `known`, seen earlier, that still
    live, and the descendants of all these. Of them, those that belong to another job are left out: a job
    that one of its processes has started outlives it.
    """
    by_mark, session = snapshot.by_mark, start.wrapper[0]
    rooted = [by_mark[mark] for mark in {start.command, *known} if mark in by_mark]
    carrying = snapshot.carriers.get(directory.path, [])
    if start.wrapper in by_mark:
        rooted += snapshot.children.get(session, [])
    # The number of a session is not given away while one of its processes is there. Where none is
    # left that we know, it may be a stranger's by now, and each process has to prove itself.
    if session > 0 and (
        start.wrapper in by_mark or any(stat.session == session for stat in (*rooted, *carrying))
    ):
        rooted += [stat for stat in snapshot.sessions.get(session, []) if stat.pid != session]
    found = _with_descendants((*rooted, *carrying), directory, snapshot)
    return {
        (stat.pid, stat.started): stat
        for stat in found
        if not stat.has_ended and (stat.pid, stat.started) != start.wrapper
    }


def carried(paths: Iterable[str | None]) -> set[str]:
    """Return those of these record directories that live processes carry in their environment."""
    carriers = Snapshot().carriers
    return {
        path
        for path in paths
        if path is not None and not all(each.has_ended for each in carriers.get(path, []))
    }


def stand_in(directory: RecordDirectory, known: Iterable[Mark], snapshot: Snapshot) -> StartRecord | None:
    """Return what the record `start` of a job says, as far as its live processes show it; None: none lives.

    For a job whose records are gone. Its processes are those that carry them, and those of `known`, which
    were seen of it earlier. The grace of its stop is not known: it is the usual one.
    """
    carrying = snapshot.carriers.get(directory.path, [])
    seen = [snapshot.by_mark[mark] for mark in known if mark in snapshot.by_mark]
    live = sorted((*carrying, *seen), key=lambda each: (each.started, each.pid))
    live = [each for each in live if not each.has_ended]
    if not live:
        return None
    wrappers = [each for each in live if _is_wrapper(each.pid)]
    commands = [each for each in live if each not in wrappers]
    # The command started the rest: what it started in the same tick of the clock may have a lower pid.
    pids = {each.pid for each in commands}
    commands.sort(key=lambda each: each.parent in pids)
    return StartRecord(
        by="wrapper",
        at="",
        host=host_id(),
        wrapper=_first_mark(wrappers),
        command=_first_mark(commands),
        stop_grace_s=DEFAULT_STOP_GRACE_S,
    )


def _first_mark(stats: Sequence[ProcessStat]) -> Mark:
    return (stats[0].pid, stats[0].started) if stats else (0, 0)


def _is_wrapper(pid: int) -> bool:
    # By its end alone: it may have been started from another installation.
    return [word.endswith(_WRAPPER) for word in arguments_of(pid)[-1:]] == [True]


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
    if pid not in PIDS:
        raise ProcessLookupError(pid)
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


def _with_descendants(
    roots: Iterable[ProcessStat], directory: RecordDirectory, snapshot: Snapshot
) -> list[ProcessStat]:
    found: dict[int, ProcessStat] = {}
    waiting = list(roots)
    while waiting:
        stat = waiting.pop()
        if stat.pid not in found and not _is_of_another(stat, directory, snapshot):
            found[stat.pid] = stat
            # The table is no snapshot: a pid may have changed hands while it was read.
            waiting += [
                child for child in snapshot.children.get(stat.pid, []) if child.started >= stat.started
            ]
    return list(found.values())


def _is_of_another(stat: ProcessStat, directory: RecordDirectory, snapshot: Snapshot) -> bool:
    path = snapshot.records.get(stat.pid)
    if path in {None, directory.path}:
        return False
    try:
        other = RecordDirectory(str(path)).start()
    except RecordError:
        return False
    # Anybody can set a variable: only the record of a job that was really started says whose it is.
    return other is not None and other.by == "wrapper"
