"""Ending the processes of jobs: SIGTERM first, SIGKILL after the grace, to nobody else."""

import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jobrunner.backends.process import wrapper
from jobrunner.backends.process.looking import why_not_here
from jobrunner.backends.process.records import (
    CancelRecord,
    Mark,
    RecordDirectory,
    StartRecord,
)
from jobrunner.backends.process.tree import IdentityError, Snapshot, processes_of, send, stand_in
from jobrunner.bounded import Bounded
from jobrunner.clock import monotonic_s
from jobrunner.errors import BackendError
from jobrunner.identity import ProcessStat, boot_id, described, unixname

_REASON_LENGTH = 200  # with it the record fits into its spare room
_FREEZE_ROUNDS = 10  # a tree that forks faster than this is met again by the next call


@dataclass(slots=True)
class _Doomed:
    """A job whose grace is over: all that is left of it gets SIGKILL."""

    directory: RecordDirectory
    start: StartRecord
    asked: CancelRecord
    live: dict[Mark, ProcessStat]
    frozen: set[Mark] = field(default_factory=set)
    trouble: str | None = None


class Canceller:
    """Does, at each call, what is due for each job; remembers whom it sent SIGTERM already."""

    def __init__(self) -> None:
        self._asked: Bounded[str, set[Mark]] = Bounded()
        self.unwritten: Bounded[str, CancelRecord] = Bounded()
        """The cancellations of jobs whose record directories are gone."""

    def forget(self, external_ids: Iterable[str]) -> None:
        """Forget jobs that have ended: as they were seen to have, no call comes for them any more."""
        for external_id in external_ids:
            self._asked.pop(external_id, None)
            self.unwritten.pop(external_id, None)

    def cancel(self, external_ids: Sequence[str], reason: str) -> Mapping[str, str]:
        """Ask jobs to end, or kill what is left of them; return by job what stood in the way, if anything.

        Raises nothing: trouble with one job must not keep the others from being cancelled.
        """
        troubles, doomed = dict[str, str](), list[_Doomed]()
        try:
            snapshot = Snapshot()
        except OSError as error:
            return dict.fromkeys(external_ids, _trouble(error))
        for external_id in external_ids:
            directory = RecordDirectory(external_id)
            trouble = _guarded(lambda: self._cancel(directory, reason, snapshot, doomed))  # noqa: B023  # run at once
            if trouble is not None:
                troubles[external_id] = trouble
        return troubles | self._kill(doomed)

    def _cancel(
        self, directory: RecordDirectory, reason: str, snapshot: Snapshot, doomed: list[_Doomed]
    ) -> str | None:
        start, asked = directory.start(), directory.cancel() or self.unwritten.get(directory.path)
        if start is None:
            start = stand_in(directory, () if asked is None else asked.tree, snapshot)
        if start is None or start.by == "refused":
            return None
        if asked is None and directory.exit() is not None:
            return None  # it ended by itself: that stays its outcome
        doubt = why_not_here(start)
        if doubt is not None or start.identity(start.wrapper).boot_id != boot_id():
            return doubt  # after a restart of the host nothing of it lives
        return self._end(directory, start, asked, reason, snapshot, doomed)

    def _end(
        self,
        directory: RecordDirectory,
        start: StartRecord,
        asked: CancelRecord | None,
        reason: str,
        snapshot: Snapshot,
        doomed: list[_Doomed],
    ) -> str | None:
        known = asked.tree if asked is not None else frozenset[Mark]()
        live = processes_of(directory, start, known, snapshot)
        self._wake_wrapper(start, snapshot)
        now_s = monotonic_s()
        if not live and asked is None:
            return _doubt(start)
        # Written before the first signal, so that an end by it is never taken for the job's own.
        asked = asked or CancelRecord(
            at=wrapper.utc_text(), reason=wrapper.readable(reason)[:_REASON_LENGTH], asked_s=now_s
        )
        is_due = now_s - asked.asked_s >= start.stop_grace_s
        # Also where nothing is seen alive: what is left unseen is waited for no longer than the rest.
        noted = asked.model_copy(
            update={
                "tree": asked.tree.union(live),
                "killed_s": now_s if is_due and asked.killed_s is None else asked.killed_s,
            }
        )
        if noted != asked:
            self._write(directory, noted)
        if start.command in noted.tree - known and start.identity(start.command).standing() == "dead":
            # It ended by itself while that was written, before any signal: its true outcome stays.
            noted = noted.model_copy(update={"tree": noted.tree - {start.command}})
            self._write(directory, noted)
        if not live:
            self._asked.pop(directory.path, None)
            return _doubt(start)
        if is_due:
            doomed.append(_Doomed(directory, start, noted, live))
            return None
        return self._terminate(directory, start, live.values())

    def _write(self, directory: RecordDirectory, noted: CancelRecord) -> None:
        """Write the record `cancel`; where its directory is gone, keep it here."""
        try:
            directory.write_cancel(noted)
        except (FileNotFoundError, NotADirectoryError):
            if directory.exists():
                raise
            self.unwritten[directory.path] = noted

    def _terminate(
        self, directory: RecordDirectory, start: StartRecord, live: Iterable[ProcessStat]
    ) -> str | None:
        # Once each: many programs take a second SIGTERM for "drop everything".
        done = self._asked.setdefault(directory.path, set())
        troubles = []
        # Parents first: a shell whose child is ended before it would go on to its next line.
        for stat in sorted(live, key=lambda stat: (stat.started, stat.pid)):
            mark = (stat.pid, stat.started)
            if mark not in done:
                troubles.append(_signal(start, mark, signal.SIGTERM))
                done.add(mark)
            if stat.is_stopped:
                troubles.append(_signal(start, mark, signal.SIGCONT))
        return _first(troubles)

    @staticmethod
    def _kill(doomed: list[_Doomed]) -> dict[str, str]:
        """Freeze all that is left of these jobs before any of it is killed: so nothing forks meanwhile."""
        for _ in range(_FREEZE_ROUNDS):
            fresh = False
            for job in doomed:
                for mark in job.live.keys() - job.frozen:
                    fresh |= _signal(job.start, mark, signal.SIGSTOP) is None
                job.frozen |= job.live.keys()
            if not fresh:
                break
            try:
                snapshot = Snapshot()
                for job in doomed:
                    job.live = processes_of(job.directory, job.start, job.asked.tree | job.frozen, snapshot)
            except OSError:  # what is frozen is known; what else there is, the next call meets
                break
        for job in doomed:
            for mark in job.frozen | job.live.keys():
                job.trouble = _signal(job.start, mark, signal.SIGKILL) or job.trouble
        return {job.directory.path: job.trouble for job in doomed if job.trouble is not None}

    @staticmethod
    def _wake_wrapper(start: StartRecord, snapshot: Snapshot) -> None:
        """Let a stopped wrapper go on: it alone can record the end."""
        stat = snapshot.table.get(start.wrapper[0])
        if stat is not None and stat.is_stopped:
            send(start.identity(start.wrapper), signal.SIGCONT)


def _doubt(start: StartRecord) -> str | None:
    """Return why it cannot be said that nothing of a job lives, of which nothing was seen."""
    is_unknown = start.identity(start.command).standing() == "unknown"
    return f"it cannot be told whether process {start.command[0]} lives" if is_unknown else None


def _guarded(step: Callable[[], str | None]) -> str | None:
    """Return what stood in the way of a step, or None."""
    try:
        return step()
    except BackendError as error:
        return str(error)
    except OSError as error:
        return _trouble(error)


def _trouble(error: OSError) -> str:
    return f"it could not be cancelled ({error})"


def _signal(start: StartRecord, mark: Mark, number: signal.Signals) -> str | None:
    """Signal one process of a job; return why it was not, or None: one of them must not shield the others."""
    if mark[0] == os.getpid():
        return f"process {mark[0]} is part of the job and is the one that cancels it"
    try:
        send(start.identity(mark), number)
    except PermissionError:
        return f"{described(mark[0])} may not be signalled by {unixname()}: end it as its own user"
    except IdentityError as error:
        return str(error)
    return None


def _first(troubles: Iterable[str | None]) -> str | None:
    return next((trouble for trouble in troubles if trouble is not None), None)
