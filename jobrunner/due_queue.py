"""The queue behind a poller: who is due next, for 100,000 jobs without looking through them."""

import heapq
import math

_STALE_MOST = 1000


class Watch:
    """One watched job. `entry` numbers its valid entry in the queue; 0: asked about now, or forgotten."""

    __slots__ = (
        *("asked_s", "due_s", "entry", "errors", "external_id", "hurried", "interval_s", "job_id"),
        "twin",
    )

    def __init__(self, job_id: int, external_id: str, interval_s: float) -> None:
        self.job_id = job_id
        self.external_id = external_id
        self.interval_s = interval_s
        self.due_s = math.inf
        self.entry = 0
        self.errors = 0
        self.hurried = False
        self.asked_s = -math.inf
        """When it was asked about last."""
        self.twin: Watch | None = None
        """The next watch of the same external id: jobs may share one."""


class DueQueue:
    """Watches by due time. An entry that was superseded stays until it comes up, or until there are many."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Watch]] = []
        self._numbers = 0
        self._stale = 0

    def put(self, watch: Watch, due_s: float) -> None:
        """Let a watch be due at `due_s`, and at no other time."""
        self.drop(watch)
        self._numbers += 1
        watch.entry, watch.due_s = self._numbers, due_s
        heapq.heappush(self._heap, (due_s, watch.entry, watch))

    def drop(self, watch: Watch) -> None:
        """Let a watch not be due at all."""
        if not watch.entry:
            return
        watch.entry = 0
        self._stale += 1
        if self._stale > _STALE_MOST and self._stale * 2 > len(self._heap):
            self._heap = [each for each in self._heap if each[1] == each[2].entry]
            heapq.heapify(self._heap)
            self._stale = 0

    def first(self) -> Watch | None:
        """Return who is due first."""
        while self._heap and self._heap[0][1] != self._heap[0][2].entry:
            heapq.heappop(self._heap)
            self._stale -= 1
        return self._heap[0][2] if self._heap else None

    def pop_first(self) -> None:
        """Take out what `first` returned just now."""
        heapq.heappop(self._heap)[2].entry = 0
