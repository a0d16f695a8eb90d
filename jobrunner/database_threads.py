"""The threads on which a runner writes, and whether they get on with what they were given."""

import asyncio
import math
import threading
from collections.abc import Callable
from typing import TypeVar

from jobrunner.clock import monotonic_s
from jobrunner.daemon_threads import DaemonThreads
from jobrunner.settings import Settings

_T = TypeVar("_T")

_THREADS = 4
_SLACK_S = 15.0


class DatabaseThreads:
    """Runs calls to the database beside the event loop, a few at once; the others wait their turn.

    A job that waits here is not stuck as long as `is_making_progress`: in a burst, thousands wait.
    """

    def __init__(self, settings: Settings) -> None:
        self._threads = DaemonThreads(_THREADS, "jobrunner-database")
        # A call has a few statements, and each of them ends by itself within its timeout.
        self._call_s = 2 * max(settings.call_timeout_s, settings.sqlite_busy_timeout_s) + _SLACK_S
        self._waiting = 0
        self._next_by_s = math.inf
        self._begun_s: dict[int, float] = {}

    async def run(self, call: Callable[[], _T]) -> _T:
        """Run a call on a thread and return what it returns; raises what it raises."""

        def run() -> _T:
            self._begun_s[threading.get_ident()] = monotonic_s()
            try:
                return call()
            finally:
                del self._begun_s[threading.get_ident()]

        if not self._waiting:
            self._next_by_s = monotonic_s() + self._call_s
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        finally:
            self._waiting -= 1
            self._next_by_s = monotonic_s() + self._call_s if self._waiting else math.inf

    def is_making_progress(self) -> bool:
        """Whether each call under way, and the next answer to the event loop, are on time; for any thread."""
        now_s = monotonic_s()
        return now_s <= self._next_by_s and all(
            now_s - begun_s <= self._call_s for begun_s in list(self._begun_s.values())
        )

    def close(self) -> None:
        """End the threads; a call that hangs is left behind."""
        self._threads.shutdown()
