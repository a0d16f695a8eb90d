"""How a worker comes to stop: it is told to, a signal comes, it is killed, or others took it for dead."""

import asyncio
import os
import signal
from contextlib import suppress

from jobrunner.clock import monotonic_s
from jobrunner.logs import get_logger
from jobrunner.states import JobState

log = get_logger(__name__)

_SAME_SIGNAL_S = 0.5  # `timeout`, for one, signals its child, and then the group that the child is in


class Stop:
    """The wish that a worker stops: `outcome` is how its own job ends then, and with which message."""

    def __init__(self) -> None:
        self.outcome: tuple[JobState, str] = (JobState.SUCCESS, "stopped")
        self.is_lost = False
        """Whether others took the worker for dead: its row is not its own any more."""
        self._wished = asyncio.Event()
        self._signalled_s: float | None = None

    @property
    def is_wished(self) -> bool:
        """Whether nothing more is to be taken."""
        return self._wished.is_set()

    async def told(self) -> None:
        """Wait for the wish."""
        await self._wished.wait()

    async def wait(self, timeout_s: float) -> None:
        """Wait for the wish, and at most for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wished.wait()

    def wish(self, message: str, state: JobState = JobState.SUCCESS) -> None:
        """Have the worker take nothing more, give its jobs back, and end; the first reason stands."""
        if not self._wished.is_set():
            self.outcome = (state, message)
            self._wished.set()

    def on_flagged(self) -> None:
        """Stop: somebody wants the worker killed."""
        self.wish("killed", JobState.KILLED)

    def on_lost(self, why: str) -> None:
        """Stop: the worker's row is no longer its own."""
        log.error("others took this worker for dead: it stops", why=why)
        self.is_lost = True
        self._wished.set()

    def on_signal(self, number: int) -> None:
        """Stop at a first signal, and end the process at a second one.

        It may interrupt anything, a line that is being logged too: at the first, nothing is logged here.
        """
        name, now_s = signal.Signals(number).name, monotonic_s()
        if self._signalled_s is None:
            self._signalled_s = now_s
            self.wish(f"stopped by {name}")
        elif now_s - self._signalled_s >= _SAME_SIGNAL_S:
            # What is running stays so in the database: others find it silent, and take it over.
            try:
                log.warning(f"{name} again: leaving at once")
            finally:
                os._exit(128 + number)
