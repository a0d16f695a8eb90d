"""Back-off with jitter, for what is tried until it succeeds."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jobrunner.clock import monotonic_s
from jobrunner.driver_errors import is_held
from jobrunner.errors import DatabaseError, DatabaseRefused
from jobrunner.log_limits import Seldom
from jobrunner.logs import get_logger

log = get_logger(__name__)

_T = TypeVar("_T")

_HELD_FIRST_S = 0.02  # our own beat may hold the row, and lets it go at once
_HELD_MOST_S = 5.0  # a thousand rows that somebody holds are then a few hundred tries a second
_HELD_SAID_S = 5.0  # until then it is nothing to speak of


class Retry:
    """Pauses that double from `first_s` to `most_s` seconds, each shortened at random by up to a half."""

    def __init__(self, *, first_s: float = 0.05, most_s: float = 30.0) -> None:
        self.count = 0
        self._first_s = first_s
        self._most_s = most_s

    def next_s(self) -> float:
        """Return how long to wait before the next try."""
        self.count += 1
        # The exponent is bounded: after days of trying, 2 ** count would be a number of kilobytes.
        whole_s: float = min(self._most_s, self._first_s * 2.0 ** min(self.count - 1, 30))
        return whole_s * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret

    async def pause(self, at_least_s: float | None = None) -> None:
        """Wait before the next try, and no less than the other side asked for."""
        await asyncio.sleep(max(self.next_s(), at_least_s or 0.0))


async def until_taken(write: Callable[[], Awaitable[_T]], what: str, most_s: float, seldom: Seldom) -> _T:
    """Try a write again and again until the database has taken it; that it does not is said by `seldom`.

    `most_s`: seconds between two tries at most. Only for what changes nothing when it comes late, or twice.
    Raises `DatabaseRefused` at once: the same values would be refused for ever.
    """
    retry, held = Retry(most_s=most_s), Retry(first_s=_HELD_FIRST_S, most_s=min(most_s, _HELD_MOST_S))
    held_until_s = monotonic_s() + _HELD_SAID_S
    while True:
        try:
            return await write()
        except DatabaseRefused:
            raise
        except DatabaseError as error:
            trouble, pause = error, held if is_held(error) else retry
        if pause.count == 0 if pause is retry else monotonic_s() >= held_until_s:
            held_until_s = math.inf
            seldom.warning(log, "the database does not take it yet", about=what, what=what, error=trouble)
        await pause.pause()
