"""What the record of a job and the process table say together: the answer of `fetch`."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from jobrunner.backends.base import Gone, Observation, RemoteError
from jobrunner.backends.process.records import (
    CancelRecord,
    ExitRecord,
    RecordDirectory,
    RecordError,
    StartRecord,
)
from jobrunner.backends.process.tree import Snapshot, processes_of, stand_in
from jobrunner.clock import monotonic_s
from jobrunner.identity import (
    ProcessStat,
    boot_id,
    can_name_processes,
    described,
    host_id,
    may_signal,
    pid_namespace,
    same_machine,
    unixname,
)
from jobrunner.states import Phase

_LEFT_S = 15.0
"""Seconds after SIGKILL, after which a process that is still there is no longer waited for."""
_NAMED_MOST = 3


class Look:
    """One look at many jobs: the process table is read at most once, and only when it is needed.

    `unwritten`: the cancellations of jobs whose record directories are gone.
    """

    def __init__(self, unwritten: Mapping[str, CancelRecord] | None = None) -> None:
        self._unwritten = unwritten or {}

    @cached_property
    def snapshot(self) -> Snapshot:
        """The processes of the host."""
        return Snapshot()

    def at(self, external_id: str) -> Observation | Gone | RemoteError:
        """Say where one job is."""
        directory = RecordDirectory(external_id)
        try:
            start = directory.start()
            if start is None:
                return self._of_unrecorded(directory)
            if start.by == "refused":
                return Gone(reason="it was proved absent and so may never start", certain=True)
            return self._of_started(directory, start)
        except RecordError as error:
            return RemoteError(str(error))
        except OSError as error:  # for want of descriptors, or of ps(1)
            return RemoteError(f"the processes of this host cannot be listed now ({error.strerror})")

    def _of_started(self, directory: RecordDirectory, start: StartRecord) -> Observation | Gone | RemoteError:
        ended, cancel = directory.exit(), directory.cancel()
        if ended is not None and cancel is None:
            return _ended(directory, start, ended, None)
        doubt = why_not_here(start)
        if doubt is not None:
            return RemoteError(doubt)
        restarted = start.identity(start.wrapper).boot_id != boot_id()
        if cancel is not None and not restarted:
            stopping = self._of_stopping(directory, start, ended, cancel)
            if stopping is not None:
                return stopping
        if ended is not None:
            return _ended(directory, start, ended, cancel)
        if restarted:
            return Gone(reason="the host restarted before an exit code was recorded", certain=True)
        return self._of_unended(directory, start, cancel)

    def _of_unrecorded(self, directory: RecordDirectory) -> Observation | Gone | RemoteError:
        """Say where a job is whose record `start` is gone: what carries the path of its records lives on."""
        if directory.exists():
            gone = "its record directory holds no record of a start"
        else:
            gone = "its record directory is not there"
        ended = directory.exit()
        cancel = directory.cancel() or self._unwritten.get(directory.path)
        if ended is not None and cancel is None:
            return _ended(directory, None, ended, None)
        start = stand_in(directory, () if cancel is None else cancel.tree, self.snapshot)
        if start is None:
            return _of_gone(directory, ended, cancel, gone)
        if cancel is None:
            message = f"{gone}: its processes live and it goes on, but its outcome may stay unknown"
            return _live(directory, start, "running", message)
        found = processes_of(directory, start, cancel.tree, self.snapshot)
        left = sorted(found.values(), key=lambda stat: (stat.started, stat.pid))
        if not left:
            return _live(directory, start, "stopping", f"its last processes have not ended yet; {gone}")
        observation = _of_left(directory, start, ended, cancel, left)
        return replace(observation, message=f"{observation.message}; {gone}")

    def _of_stopping(
        self, directory: RecordDirectory, start: StartRecord, ended: ExitRecord | None, cancel: CancelRecord
    ) -> Observation | None:
        """Say where a cancelled job is of which something is left; None: nothing is."""
        found = processes_of(directory, start, cancel.tree, self.snapshot)
        left = sorted(found.values(), key=lambda stat: (stat.started, stat.pid))
        if left:
            return _of_left(directory, start, ended, cancel, left)
        if not _has_unseen(start, self.snapshot):
            return None
        if not _is_overdue(cancel):
            return _live(directory, start, "stopping", "its last processes have not ended yet")
        if ended is None and start.identity(start.command).standing() == "dead":
            return None  # its end is yet to be recorded
        wrapper = start.wrapper[0]
        words = f"what process {wrapper}, its wrapper, waits for: {unixname()} cannot see it"
        return _left_behind(directory, start, ended, cancel, words)

    @staticmethod
    def _of_unended(
        directory: RecordDirectory, start: StartRecord, cancel: CancelRecord | None
    ) -> Observation | Gone | RemoteError:
        wrapper = start.identity(start.wrapper).standing()
        if wrapper == "alive":
            return _live(directory, start, "running")
        command = start.identity(start.command).standing()
        if "unknown" in {wrapper, command}:
            return RemoteError(
                f"it cannot be told whether its process {start.command[0]} lives: look as its user"
            )
        if command == "alive":
            return _live(
                directory,
                start,
                "running",
                "its wrapper was killed: it goes on, but its exit code will be unknown",
            )
        ended = directory.exit()  # it may have been written after the first look, before the wrapper's end
        if ended is not None:
            return _ended(directory, start, ended, cancel)
        if cancel is not None and start.command in cancel.tree:
            message = "it ended after it was cancelled; its wrapper was killed, so its exit code is unknown"
            return Observation(Phase.CANCELLED, "ended", message, _detail(directory, start, None))
        return Gone(reason="its wrapper was killed before the exit code was recorded", certain=True)


def _of_gone(
    directory: RecordDirectory, ended: ExitRecord | None, cancel: CancelRecord | None, gone: str
) -> Observation | Gone:
    """Say where a job is whose record `start` is gone, and of which nothing lives."""
    if ended is not None:
        return _ended(directory, None, ended, cancel)
    if cancel is None:
        return Gone(reason=f"{gone}, and none of its processes lives")
    message = f"it ended after it was cancelled; {gone}, so its exit code is unknown"
    return Observation(Phase.CANCELLED, "ended", message, _detail(directory, None, None))


def why_not_here(start: StartRecord) -> str | None:
    """Return why a job's pids cannot be looked up from here, or None when they can."""
    _, boot, namespace = start.host.split("/")
    if not same_machine(start.host, host_id()):
        return "it was started on another host: look from there"
    if boot == boot_id() and (namespace != pid_namespace() or not can_name_processes()):
        return "it was started in another container (pid namespace) of this host: look from there"
    return None


def _of_left(
    directory: RecordDirectory,
    start: StartRecord,
    ended: ExitRecord | None,
    cancel: CancelRecord,
    left: list[ProcessStat],
) -> Observation:
    """Say where a cancelled job is of which processes are left."""
    if not _is_given_up(cancel, left):
        number = "1 process has" if len(left) == 1 else f"{len(left)} processes have"
        return _live(directory, start, "stopping", f"{number} not ended yet")
    named = [f"{described(stat.pid)}, {_why_left(stat)}" for stat in left[:_NAMED_MOST]]
    more = f"; and {len(left) - _NAMED_MOST} more" if len(left) > _NAMED_MOST else ""
    return _left_behind(directory, start, ended, cancel, f"{'; '.join(named)}{more}")


def _left_behind(
    directory: RecordDirectory, start: StartRecord, ended: ExitRecord | None, cancel: CancelRecord, what: str
) -> Observation:
    words = f"left behind: {what}"
    if ended is None:
        return Observation(Phase.CANCELLED, "left behind", words, _detail(directory, start, None))
    observation = _ended(directory, start, ended, cancel)
    message = f"{observation.message}; {words}" if observation.message else words
    return replace(observation, message=message)


def _has_unseen(start: StartRecord, snapshot: Snapshot) -> bool:
    """Whether the wrapper of a cancelled job still waits for processes that no look at the table has met.

    It stays as long as it has any: they may start one another, and end, faster than the table is read.
    """
    # Those that are seen, and are not of this job, are wrappers of jobs that it has started.
    has_seen = any(not stat.has_ended for stat in snapshot.children.get(start.wrapper[0], []))
    return not has_seen and start.identity(start.wrapper).standing() == "alive"


def _is_overdue(cancel: CancelRecord) -> bool:
    """Whether SIGKILL was due so long ago that what is left is waited for no more."""
    return cancel.killed_s is not None and monotonic_s() - cancel.killed_s >= _LEFT_S


def _is_given_up(cancel: CancelRecord, left: list[ProcessStat]) -> bool:
    """Whether SIGKILL was due, and does not end what is left: another user's, or stuck in the kernel."""
    if cancel.killed_s is None:
        return False
    return _is_overdue(cancel) or not any(may_signal(stat.pid) for stat in left)


def _why_left(stat: ProcessStat) -> str:
    if stat.pid == os.getpid():
        return "which cancelled the job itself"
    if not may_signal(stat.pid):
        return f"which {unixname()} may not signal"
    return f"which SIGKILL does not end (state {stat.state})"


def _live(directory: RecordDirectory, start: StartRecord, word: str, message: str = "") -> Observation:
    return Observation(Phase.RUNNING, word, message, _detail(directory, start, None))


def _ended(
    directory: RecordDirectory, start: StartRecord | None, ended: ExitRecord, cancel: CancelRecord | None
) -> Observation:
    detail = _detail(directory, start, ended)
    if ended.error is not None:
        return Observation(Phase.FAILED, "not started", ended.error, detail)
    name = ended.signal_name
    word = f"exited {ended.code}" if name is None else name if name.startswith("signal") else f"signal {name}"
    # Seen alive by whoever cancelled it, so it ended by that, whatever it made of SIGTERM.
    if cancel is not None and (start is None or start.command in cancel.tree):
        message = f"it exited {ended.code} after SIGTERM" if name is None else f"ended by {name}"
        return Observation(Phase.CANCELLED, word, message, detail)
    if ended.code == 0:
        return Observation(Phase.SUCCEEDED, word, "", detail)
    message = f"exit code {ended.code}" if name is None else f"killed by {name}"
    if ended.disk_full:
        message += f"; the disk of its log was full: free space under {directory.path}"
    return Observation(Phase.FAILED, word, message, detail)


def _detail(
    directory: RecordDirectory, start: StartRecord | None, ended: ExitRecord | None
) -> dict[str, str | int | None]:
    return {
        "pid": None if start is None else start.command[0] or start.wrapper[0],
        "exit_code": None if ended is None else ended.code,
        "signal": None if ended is None else ended.signal_name,
        "log": directory.log,
        "started_at": None if start is None else start.at or None,
        "ended_at": None if ended is None else ended.at,
    }
