"""One limiter around every call of a connection."""

import asyncio
import random
import threading
from collections import deque
from enum import Enum

from jobrunner.clock import monotonic_s

_SLOWEST_PER_S = 0.5
_FASTER = 1.05
_BACK_OFF_S = 1.0  # refusals of calls that left together are one refusal
_LOOK_S = 0.1  # how often one that waits looks for its turn, at most
_SOON_S = 1e-3  # what is due within this time is due


class Lane(Enum):
    """Which calls wait in one line: where both lines are long, each has half of the calls."""

    WATCH = "watch"
    """Looking at jobs and ending them: few calls for very many jobs."""
    SUBMIT = "submit"
    """Submitting, and looking for what was submitted: a call a job."""


class Limiter:
    """Spaces calls so that at most `per_s` leave in a second, after a first `burst` at once.

    Half as many after each refusal, and slowly more again while calls succeed. For any thread and loop.
    Whoever gives up waiting leaves the line: it delays nobody behind it.
    """

    def __init__(self, per_s: float, *, burst: int = 1) -> None:
        self._most_per_s = per_s
        self._per_s = per_s
        self._burst = burst
        self._next_s = 0.0
        self._refused_s = float("-inf")
        self._lock = threading.Lock()
        self._lines: dict[Lane, deque[object]] = {lane: deque() for lane in Lane}
        self._last = Lane.SUBMIT

    @property
    def per_s(self) -> float:
        """How many calls may leave in a second now."""
        return self._per_s

    async def turn(self, lane: Lane) -> None:
        """Wait until a call may leave."""
        me = object()
        with self._lock:
            self._lines[lane].append(me)
        try:
            while (wait_s := self._take_s(lane, me)) is not None:  # noqa: ASYNC110  # the turn is a matter of time
                await asyncio.sleep(wait_s)
        finally:
            with self._lock:
                if me in self._lines[lane]:  # it gave up
                    self._lines[lane].remove(me)

    def _take_s(self, lane: Lane, me: object) -> float | None:
        """Take the next place, where that is due and mine; else return for how many seconds to wait."""
        with self._lock:
            now_s = monotonic_s()
            gap_s = 1.0 / self._per_s
            self._next_s = max(self._next_s, now_s - (self._burst - 1) * gap_s)
            before = self._before(lane, me)
            wait_s = max(self._next_s - now_s, 0.0) + before * gap_s
            if wait_s > _SOON_S:
                # Those before it may give up meanwhile: it looks again after half of the time.
                return min(wait_s, max(_LOOK_S, wait_s / 2))
            self._lines[lane].remove(me)
            self._last = lane
            # Jittered, and only ever later, so that several runners do not fall into step.
            self._next_s += gap_s * random.uniform(1.0, 1.2)  # noqa: S311  # jitter, not a secret
            return None

    def _before(self, lane: Lane, me: object) -> int:
        """Return how many calls leave before mine: the lines take turns."""
        place = self._lines[lane].index(me)
        others = sum(len(line) for each, line in self._lines.items() if each is not lane)
        return place + min(others, place + (lane is self._last))

    def slow_down(self) -> None:
        """Take note of a refusal."""
        with self._lock:
            now_s = monotonic_s()
            if now_s - self._refused_s >= _BACK_OFF_S:
                self._refused_s = now_s
                self._per_s = max(min(_SLOWEST_PER_S, self._most_per_s), self._per_s / 2)

    def speed_up(self) -> None:
        """Take note of a call that was let in."""
        with self._lock:
            self._per_s = min(self._most_per_s, self._per_s * _FASTER)
