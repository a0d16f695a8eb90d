"""What failed is left alone for a while: twice as long each time, up to a minute."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from jobrunner.clock import monotonic_s

_K = TypeVar("_K", bound=Hashable)

_MOST_S = 60.0


class Resting(Generic[_K]):
    """What is resting, by its key, and how often it has failed."""

    def __init__(self) -> None:
        self._until: dict[_K, tuple[float, int]] = {}

    def is_resting(self, key: _K) -> bool:
        """Whether it failed not long ago."""
        return self._until.get(key, (0.0, 0))[0] > monotonic_s()

    def rest(self, key: _K) -> float:
        """Take note that it failed, and return for how many seconds it rests."""
        count = self._until.get(key, (0.0, 0))[1] + 1
        rest_s = min(_MOST_S, 2.0 ** min(count, 10))
        self._until[key] = (monotonic_s() + rest_s, count)
        return rest_s

    def forget(self, key: _K) -> None:
        """Take note that it succeeded."""
        self._until.pop(key, None)
