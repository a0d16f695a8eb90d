"""Ending a job's processes: SIGTERM first, SIGKILL after the grace, to nobody else."""

import signal
from collections.abc import Iterable

from jobrunner.backends.process import wrapper
from jobrunner.backends.process.looking import why_not_here
from jobrunner.backends.process.records import (
    CancelRecord,
    Mark,
    RecordDirectory,
    StartRecord,
)
from jobrunner.backends.process.tree import Table, processes_of, send
from jobrunner.clock import monotonic_s
from jobrunner.errors import BackendError
from jobrunner.identity import ProcessStat, boot_id, process_table

_REASON_LENGTH = 200  # with it the record fits into its spare room
_KILL_ROUNDS = 5  # a tree that forks while it is being killed is met again by the next call


class Canceller:
    """Does, at each call, what is due for one job; remembers whom it sent SIGTERM already."""

    def __init__(self) -> None:
        self._asked: dict[str, set[Mark]] = {}

    def cancel(self, external_id: str, reason: str, table: Table) -> str | None:
        """Ask one job to end, or kill what is left of it; return what stood in the way, or None.

        Raises nothing: trouble with one job must not keep the others from being cancelled.
        """
        try:
            return self._cancel(RecordDirectory(external_id), reason, table)
        except BackendError as error:
            return str(error)
        except PermissionError as error:
            return f"its processes may not be signalled ({error.strerror}): cancel it as the user who runs it"
        except OSError as error:
            return f"it could not be cancelled ({error})"

    def _cancel(self, directory: RecordDirectory, reason: str, table: Table) -> str | None:
        start = directory.start()
        if start is None or start.by == "refused":
            return None
        asked = directory.cancel()
        if asked is None and directory.exit() is not None:
            return None  # it ended by itself: that stays its outcome
        doubt = why_not_here(start)
        if doubt is not None or start.identity(start.wrapper).boot_id != boot_id():
            return doubt  # after a restart of the host nothing of it lives
        return self._end(directory, start, asked, reason, table)

    def _end(
        self,
        directory: RecordDirectory,
        start: StartRecord,
        asked: CancelRecord | None,
        reason: str,
        table: Table,
    ) -> str | None:
        known = asked.tree if asked is not None else frozenset[Mark]()
        live = processes_of(directory, start, known, table)
        self._wake_wrapper(start, table)
        if not live:
            self._asked.pop(directory.path, None)
            doubtful = start.identity(start.command).standing() == "unknown"
            return f"it cannot be told whether process {start.command[0]} lives" if doubtful else None
        now_s = monotonic_s()
        # Written before the first signal, so that an end by it is never taken for the job's own.
        if asked is None or not known.issuperset(live):
            asked_s = now_s if asked is None else asked.asked_s
            at = wrapper.utc_text() if asked is None else asked.at
            why = wrapper.readable(reason)[:_REASON_LENGTH]
            asked = CancelRecord(at=at, reason=why, asked_s=asked_s, tree=known.union(live))
            directory.write_cancel(asked)
        if now_s - asked.asked_s >= start.stop_grace_s:
            self._kill(directory, start, asked, live)
        else:
            self._terminate(directory, start, live.values())
        return None

    def _terminate(self, directory: RecordDirectory, start: StartRecord, live: Iterable[ProcessStat]) -> None:
        # Once each: many programs take a second SIGTERM for "drop everything".
        done = self._asked.setdefault(directory.path, set())
        # Parents first: a shell whose child is ended before it would go on to its next line.
        for stat in sorted(live, key=lambda stat: (stat.started, stat.pid)):
            mark = (stat.pid, stat.started)
            if mark not in done:
                send(start.identity(mark), signal.SIGTERM)
                done.add(mark)
            if stat.is_stopped:
                send(start.identity(mark), signal.SIGCONT)

    @staticmethod
    def _kill(
        directory: RecordDirectory, start: StartRecord, asked: CancelRecord, live: dict[Mark, ProcessStat]
    ) -> None:
        killed: set[Mark] = set()
        for _ in range(_KILL_ROUNDS):
            for mark in live.keys() - killed:
                send(start.identity(mark), signal.SIGKILL)
            killed |= live.keys()
            live = processes_of(directory, start, asked.tree | killed, process_table())
            if killed.issuperset(live):
                return

    @staticmethod
    def _wake_wrapper(start: StartRecord, table: Table) -> None:
        """Let a stopped wrapper go on: it alone can record the end."""
        stat = table.get(start.wrapper[0])
        if stat is not None and stat.is_stopped:
            send(start.identity(start.wrapper), signal.SIGCONT)
