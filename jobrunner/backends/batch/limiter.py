"""One limiter around every call of a connection."""

import random
import threading

from jobrunner.clock import monotonic_s

_SLOWEST_PER_S = 0.5
_FASTER = 1.05
_BACK_OFF_S = 1.0  # refusals of calls that left together are one refusal


class Limiter:
    """Spaces calls so that at most `per_s` leave in a second, after a first `burst` at once.

    Half as many after each refusal, and slowly more again while calls succeed. For any thread.
    """

    def __init__(self, per_s: float, *, burst: int = 1) -> None:
        self._most_per_s = per_s
        self._per_s = per_s
        self._burst = burst
        self._next_s = 0.0
        self._refused_s = float("-inf")
        self._lock = threading.Lock()

    @property
    def per_s(self) -> float:
        """How many calls may leave in a second now."""
        return self._per_s

    def reserve_s(self) -> float:
        """Take the next place, and return how many seconds from now it is."""
        with self._lock:
            now_s = monotonic_s()
            gap_s = 1.0 / self._per_s
            self._next_s = max(self._next_s, now_s - (self._burst - 1) * gap_s)
            wait_s = self._next_s - now_s
            # Jittered, and only ever later, so that several runners do not fall into step.
            self._next_s += gap_s * random.uniform(1.0, 1.2)  # noqa: S311  # jitter, not a secret
        return max(0.0, wait_s)

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
