"""A child process and all that it has started, however that has detached itself."""

import os
import signal
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from jobrunner.clock import monotonic_s
from jobrunner.identity import (
    CHILD_VARIABLE,
    ProcessIdentity,
    ProcessStat,
    described,
    process_table,
    variable_of,
)

_RECORD_VARIABLE = "JOBRUNNER_RECORD"
_TERMINATE_S = 3.0  # what a job has started may take to end by itself, once the job is killed
_KILL_WITHIN_S = 5.0  # what SIGKILL has not ended by then is another user's, or stuck in the kernel
_LOOK_S = 0.1
_READ_WITHIN_S = 3.0  # a shortage of descriptors passes, as a rule

_Mark = tuple[int, int]


@dataclass(slots=True)
class Family:
    """The processes of one child: its descendants, its session, and whatever carries its runner_id.

    The wrapper of a command that the child supervises is not among them, nor is the command: that is a
    job of its own, and outlives this one.
    """

    child: ProcessIdentity | None
    runner_id: str
    spared: frozenset[int] = frozenset()
    """Processes of it that are left alone."""
    _known: set[_Mark] = field(default_factory=set)

    @classmethod
    def of(cls, pid: int, runner_id: str) -> Self:
        """Return the family of a child that has just been started."""
        return cls(ProcessIdentity.of(pid), runner_id)

    @classmethod
    def around(cls, guardian: int, runner_id: str) -> Self:
        """Return the family of this process, but for itself and its guardian."""
        return cls(ProcessIdentity.of(guardian), runner_id, frozenset({os.getpid(), guardian}))

    @classmethod
    def of_this_process(cls, guardian: int) -> Self:
        """Return the family of this process, as `around`; what it starts from now on is marked."""
        mark = os.environ[CHILD_VARIABLE] = uuid.uuid4().hex
        return cls.around(guardian, mark)

    def signal(self, number: signal.Signals) -> None:
        """Signal each process that lives now, parents first."""
        with suppress(OSError):  # they cannot be looked for: `left` says so
            for stat in self._live():
                _send(stat, number)

    def kill(self) -> None:
        """End what lives, and what it starts meanwhile; return when nothing does, or nothing more helps."""
        give_up_s = monotonic_s() + _KILL_WITHIN_S
        with suppress(OSError):
            while live := self._live():
                for number in (signal.SIGSTOP, signal.SIGKILL):  # what is stopped starts nothing more
                    for stat in live:
                        _send(stat, number)
                if monotonic_s() > give_up_s:
                    return
                time.sleep(_LOOK_S)

    def see_off(self) -> str:
        """End all but the spared, with SIGTERM first; return what still lives, as `left` does."""
        give_up_s = monotonic_s() + _TERMINATE_S
        self.signal(signal.SIGTERM)
        with suppress(OSError):
            while self._live() and monotonic_s() < give_up_s:
                time.sleep(_LOOK_S)
        self.kill()
        return self.left()

    def left(self) -> str:
        """Return the processes that still live, for people; empty: there are none."""
        try:
            return ", ".join(described(stat.pid) for stat in self._live())
        except OSError as error:
            return f"whatever it has started: the processes cannot be listed ({error.strerror})"

    def _live(self) -> list[ProcessStat]:
        """Look for them; raises OSError where a shortage of descriptors or memory does not pass."""
        give_up_s = monotonic_s() + _READ_WITHIN_S
        while True:
            try:
                return self._look()
            except OSError:
                if monotonic_s() > give_up_s:
                    raise
            time.sleep(_LOOK_S)

    def _look(self) -> list[ProcessStat]:
        if self.child is None:
            return []
        table = process_table()
        own_record = os.environ.get(_RECORD_VARIABLE)
        ours: set[int] = set()
        for stat in sorted(table.values(), key=lambda stat: (stat.started, stat.pid)):
            mark = (stat.pid, stat.started)
            is_root = mark in self._known or mark == (self.child.pid, self.child.started)
            if (
                is_root
                or stat.parent in ours
                or stat.session == self.child.pid
                or variable_of(stat.pid, CHILD_VARIABLE) == self.runner_id
            ) and (is_root or variable_of(stat.pid, _RECORD_VARIABLE) in {None, own_record}):
                ours.add(stat.pid)
        live = [table[pid] for pid in ours if not table[pid].has_ended and pid not in self.spared]
        self._known |= {(stat.pid, stat.started) for stat in live}
        return sorted(live, key=lambda stat: (stat.started, stat.pid))


def _send(stat: ProcessStat, number: signal.Signals) -> None:
    try:
        it = ProcessIdentity.of(stat.pid)
        if it is None or it.started != stat.started:
            return
        os.kill(stat.pid, number)
    except (ProcessLookupError, PermissionError):  # it ended, or is another user's: `left` names it
        return
