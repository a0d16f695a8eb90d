"""What failed is left alone for a while: twice as long each time, up to a minute."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from jobrunner.clock import monotonic_s

_K = TypeVar("_K", bound=Hashable)

_MOST_S = 60.0
_FORGET_S = 600.0
"""Seconds after its rest, after which what has not failed again counts as new."""


class Resting(Generic[_K]):
    """What is resting, by its key, and how often it has failed."""

    def __init__(self, clock: Callable[[], float] = monotonic_s) -> None:
        self._clock = clock
        self._until: dict[_K, tuple[float, int]] = {}
        self._sweep_at_s = 0.0

    def __len__(self) -> int:
        return len(self._until)

    def is_resting(self, key: _K) -> bool:
        """Whether it failed not long ago."""
        return self._until.get(key, (0.0, 0))[0] > self._clock()

    def resting(self) -> list[_K]:
        """Return all that rest."""
        now_s = self._clock()
        return [key for key, (until_s, _) in self._until.items() if until_s > now_s]

    def failed(self) -> list[_K]:
        """Return all that failed and have not succeeded since, also those that have rested."""
        return list(self._until)

    def rest(self, key: _K) -> float:
        """Take note that it failed, and return for how many seconds it rests."""
        self._forget_old()
        count = self._until.get(key, (0.0, 0))[1] + 1
        rest_s = min(_MOST_S, 2.0 ** min(count, 10))
        self._until[key] = (self._clock() + rest_s, count)
        return rest_s

    def forget(self, key: _K) -> None:
        """Take note that it succeeded."""
        self._until.pop(key, None)

    def _forget_old(self) -> None:
        """Forget what rested long ago: others took it, or it is gone."""
        now_s = self._clock()
        if now_s < self._sweep_at_s:
            return
        self._sweep_at_s = now_s + _MOST_S
        for key in [key for key, (until_s, _) in self._until.items() if now_s - until_s > _FORGET_S]:
            del self._until[key]
