"""What keeps a log readable: what happens again and again is logged once, or once a minute.

The cause of a hundred messages a second may be one server that is away, seen by each of its jobs. What is
left out is counted, and the next message of its kind says how often it happened.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Hashable
from itertools import takewhile
from typing import Any

from jobrunner.clock import monotonic_s
from jobrunner.logs import Logger

AGAIN_S = 60.0
"""Seconds after which the same is logged again."""
EVENT_MOST = 10
"""Messages of one event within that time, whatever they are about."""


class Once:
    """Knows what is new: each subject is, once, and of a flood of them, only the first `most`."""

    def __init__(self, most: int = 100) -> None:
        self._most = most
        self._seen: set[Hashable] = set()

    def is_new(self, subject: Hashable) -> bool:
        """Whether it comes for the first time."""
        if subject in self._seen or len(self._seen) >= self._most:
            return False
        self._seen.add(subject)
        return True


class Trouble:
    """Trouble that comes and goes: its beginning is logged, and its end, at most once a minute each.

    What fails and works in turn would else be said to do so with each try. Trouble that lasts is logged in
    any case, and an end only after its beginning.
    """

    def __init__(self, clock: Callable[[], float] = monotonic_s) -> None:
        self._clock = clock
        self._is_said = False
        self._said_s = -math.inf

    def begins(self) -> bool:
        """Take note of a failure; True: it is to be logged."""
        now_s = self._clock()
        if self._is_said or now_s - self._said_s < AGAIN_S:
            return False
        self._is_said, self._said_s = True, now_s
        return True

    def ends(self) -> bool:
        """Take note of a success; True: that the trouble is over is to be logged."""
        was_said, self._is_said = self._is_said, False
        return was_said


class Seldom:
    """Logs each event about each subject once a minute, and ten messages of one event. For any thread."""

    def __init__(self, clock: Callable[[], float] = monotonic_s) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._said_s: dict[tuple[str, Hashable], float] = {}
        """What may not be said again yet, the longest unsaid first; a flood of events bounds it."""
        self._of_event: dict[str, deque[float]] = {}
        self._left_out: dict[str, int] = {}

    def warning(self, log: Logger, event: str, about: Hashable = None, **fields: Any) -> None:
        """Say what a person may have to look at, with `times` where it has happened more often."""
        self._say(log.warning, event, about, fields)

    def error(self, log: Logger, event: str, about: Hashable = None, **fields: Any) -> None:
        """Say what a person has to look at, with `times` where it has happened more often."""
        self._say(log.error, event, about, fields)

    def _say(self, say: Callable[..., None], event: str, about: Hashable, fields: dict[str, Any]) -> None:
        with self._lock:
            times = self._times(event, about)
        if times == 1:
            say(event, **fields)
        elif times:
            say(event, times=times, **fields)

    def _times(self, event: str, about: Hashable) -> int:
        """Return how often it has happened since the last message of the event; 0: it is not logged now."""
        now_s = self._clock()
        self._forget_old(now_s)
        said = self._of_event.setdefault(event, deque())
        if len(said) >= EVENT_MOST or (event, about) in self._said_s:
            self._left_out[event] = self._left_out.get(event, 0) + 1
            return 0
        said.append(now_s)
        self._said_s[event, about] = now_s
        return 1 + self._left_out.pop(event, 0)

    def _forget_old(self, now_s: float) -> None:
        """Forget what may be said again."""
        for subject in list(takewhile(lambda each: now_s - self._said_s[each] >= AGAIN_S, self._said_s)):
            del self._said_s[subject]
        for event, said in list(self._of_event.items()):
            while said and now_s - said[0] >= AGAIN_S:
                said.popleft()
            if not said:
                del self._of_event[event]
