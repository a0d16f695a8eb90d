"""The queue behind a poller: who is due next, for 100,000 jobs without looking through them."""

import heapq
import math
from typing import Generic, TypeVar

_STALE_MOST = 1000


class Due:
    """What a job is waiting for. `entry` numbers its valid entry in the queue; 0: it has none."""

    __slots__ = ("due_s", "entry", "job_id")

    def __init__(self, job_id: int) -> None:
        self.job_id = job_id
        self.due_s = math.inf
        self.entry = 0


_T = TypeVar("_T", bound=Due)


class Watch(Due):
    """One watched job. Without an entry it is being asked about now, or forgotten."""

    __slots__ = ("asked_s", "errors", "external_id", "hurried", "interval_s", "twin")

    def __init__(self, job_id: int, external_id: str, interval_s: float) -> None:
        super().__init__(job_id)
        self.external_id = external_id
        self.interval_s = interval_s
        self.errors = 0
        self.hurried = False
        self.asked_s = -math.inf
        """When it was asked about last."""
        self.twin: Watch | None = None
        """The next watch of the same external id: jobs may share one."""


class DueQueue(Generic[_T]):
    """By due time. An entry that was superseded stays until it comes up, or until there are many."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _T]] = []
        self._numbers = 0
        self._stale = 0

    def __len__(self) -> int:
        return len(self._heap) - self._stale

    def put(self, due: _T, due_s: float) -> None:
        """Let it be due at `due_s`, and at no other time."""
        self.drop(due)
        self._numbers += 1
        due.entry, due.due_s = self._numbers, due_s
        heapq.heappush(self._heap, (due_s, due.entry, due))

    def drop(self, due: _T) -> None:
        """Let it not be due at all."""
        if not due.entry:
            return
        due.entry = 0
        self._stale += 1
        if self._stale > _STALE_MOST and self._stale * 2 > len(self._heap):
            self._heap = [each for each in self._heap if each[1] == each[2].entry]
            heapq.heapify(self._heap)
            self._stale = 0

    def first(self) -> _T | None:
        """Return what is due first."""
        while self._heap and self._heap[0][1] != self._heap[0][2].entry:
            heapq.heappop(self._heap)
            self._stale -= 1
        return self._heap[0][2] if self._heap else None

    def pop_first(self) -> None:
        """Take out what `first` returned just now."""
        heapq.heappop(self._heap)[2].entry = 0
