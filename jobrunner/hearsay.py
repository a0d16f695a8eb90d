"""What was heard of jobs from outside: hints that may be late, doubled, too many, or lies."""

import math
from collections.abc import Callable, Iterable
from itertools import islice

from jobrunner.due_queue import Watch

GAP_S = 0.25
"""The least time between two rounds of hints: so much can all the world's hints add to the calls."""
REST_S = 1.0
"""How long a job that was asked about is left alone, whatever is heard of it."""

_SCANNED = 10  # times the bulk: how many are looked through in one round for those that have rested


class Hearsay:
    """The watches by external id, and those of which something was heard and that are not asked about yet.

    A round takes at most one bulk of ids. So a flood costs at most one call more in `GAP_S`, and each
    job one look more in `REST_S`; what has to wait is kept, once for each id.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: dict[str, Watch] = {}  # the others of an id follow as twins: most have none
        self._heard: dict[str, None] = {}
        self._next_s = -math.inf

    def add(self, watch: Watch) -> None:
        """Know a watch by its external id."""
        watch.twin = self._first.get(watch.external_id)
        self._first[watch.external_id] = watch

    def remove(self, watch: Watch) -> None:
        """Know a watch no longer."""
        first = self._first[watch.external_id]
        if first is not watch:
            while first.twin is not watch:
                assert first.twin is not None  # it was added
                first = first.twin
            first.twin = watch.twin
        elif watch.twin is not None:
            self._first[watch.external_id] = watch.twin
        else:
            del self._first[watch.external_id]
            self._heard.pop(watch.external_id, None)

    def clear(self) -> None:
        """Know nobody."""
        self._first.clear()
        self._heard.clear()

    def hear(self, external_id: str) -> bool:
        """Take note that something was heard of a job; True: nothing had been waiting until now."""
        if external_id not in self._first or external_id in self._heard:
            return False
        self._heard[external_id] = None
        return len(self._heard) == 1

    def wait_s(self) -> float:
        """Return how long it is to the next round; infinite where nothing was heard."""
        return max(0.0, self._next_s - self._clock()) if self._heard else math.inf

    def take(self, most: int) -> list[Watch]:
        """Return whom to ask about now: the watches of at most `most` ids."""
        now_s = self._clock()
        self._next_s = now_s + GAP_S
        taken: list[Watch] = []
        count = 0
        for external_id in list(islice(self._heard, _SCANNED * most)):
            del self._heard[external_id]
            watches = list(self._of(external_id))
            # One that is being asked about now may have been answered before what was heard.
            if any(not watch.entry or watch.asked_s > now_s - REST_S for watch in watches):
                self._heard[external_id] = None
                continue
            taken += watches
            count += 1
            if count == most:
                break
        return taken

    def _of(self, external_id: str) -> Iterable[Watch]:
        watch = self._first.get(external_id)
        while watch is not None:
            yield watch
            watch = watch.twin
