"""How many jobs of each connection may be on their way to their submission at once.

A connection that takes nothing keeps its own jobs waiting, and those of no other: beyond a few that try, they
stay queued. A connection that takes jobs is given more at a time, as far as it keeps up.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from jobrunner.clock import monotonic_s
from jobrunner.owned import OwnedJob

LEAST = 100
"""Jobs of one connection that may wait for their submission, at first and while it takes none."""
MOST = 2_500
"""... and while it takes jobs: some places are always left to others."""
SLOW_S = 10.0
"""Seconds without a submission after which a connection takes none, where jobs have waited for as long."""
_GROWTH = 16  # places more for each job that has work: a connection that takes jobs waits for no place
_FORGET_S = 60.0


@dataclass(slots=True)
class _Window:
    most: int
    used_s: float
    took_s: float
    """When the connection was last seen to take a job."""
    begun: int = 0
    """Jobs that had work as they were claimed, since the last look."""
    jobs: list[OwnedJob] = field(default_factory=list)
    """Those that are not submitted yet, the oldest first."""


class Windows:
    """Counts, for each group of jobs that share a connection, those that are not submitted yet.

    `capacity`: jobs that the worker watches at most; a group without success takes a tenth of it at most.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = monotonic_s) -> None:
        self._least = max(1, min(LEAST, capacity // 10))
        self._clock = clock
        self._windows: dict[Hashable, _Window] = {}

    def add(self, group: Hashable, owned: OwnedJob) -> None:
        """Count a job that was just claimed."""
        now_s = self._clock()
        window = self._windows.setdefault(group, _Window(self._least, now_s, now_s))
        if owned.external_id is None:
            window.jobs.append(owned)
        else:
            window.begun += 1

    def settle(self) -> None:
        """Take note of what has been submitted, or has ended, since the last time."""
        now_s = self._clock()
        for group, window in list(self._windows.items()):
            before = window.jobs
            window.jobs = [owned for owned in before if _is_on_its_way(owned)]
            submitted = sum(owned.external_id is not None for owned in before)
            begun, window.begun = submitted + window.begun, 0
            if before or begun:
                window.used_s = now_s
            elif now_s - window.used_s > _FORGET_S:
                del self._windows[group]
            if submitted or not before:
                window.took_s = now_s
            if self._takes_none(window):
                window.most = self._least
            else:
                window.most = min(max(MOST, self._least), window.most + _GROWTH * begun)

    def room(self, group: Hashable) -> int:
        """Return how many more jobs of a group may be claimed now."""
        window = self._windows.get(group)
        return self._least if window is None else max(0, window.most - len(window.jobs))

    def why_full(self, group: Hashable) -> str | None:
        """Return why a group gets no more jobs for now, where its connection takes none; None: it does."""
        window = self._windows.get(group)
        if window is None or self.room(group) > 0 or not self._takes_none(window):
            return None
        return (
            f"its connection takes no jobs at present: {len(window.jobs)} wait to be submitted, and "
            f"the message of job {window.jobs[0].job_id} says why"
        )

    @property
    def slow(self) -> int:
        """How many jobs wait for long to be submitted: they take no place from those of other connections."""
        return sum(len(self._slow_in(window)) for window in self._windows.values())

    @property
    def stuck(self) -> int:
        """How many of them wait for connections that take none."""
        stuck = (window for window in self._windows.values() if self._takes_none(window))
        return sum(len(self._slow_in(window)) for window in stuck)

    def _takes_none(self, window: _Window) -> bool:
        return self._clock() - window.took_s > SLOW_S and bool(self._slow_in(window))

    def _slow_in(self, window: _Window) -> list[OwnedJob]:
        limit_s = self._clock() - SLOW_S
        return [owned for owned in window.jobs if owned.taken_s < limit_s]


def _is_on_its_way(owned: OwnedJob) -> bool:
    return owned.external_id is None and not (owned.over or owned.concluding)
