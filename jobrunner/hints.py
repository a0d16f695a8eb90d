"""Hints that a kill flag was set: heard within milliseconds, and never trusted.

A hint only says "look now"; the beat decides. So a lost hint costs at most one heartrate. Listening is
the work of a thread of its own: whoever waits for hints waits for no connection and no name server, and
whatever goes wrong with listening makes it deaf, and never ends the wait with an error.
"""

import math
import threading
from contextlib import suppress

from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.ears import KILL_CHANNEL, Ear, make_ear
from jobrunner.logs import get_logger
from jobrunner.waking import Wake, wait_readable

__all__ = ["KILL_CHANNEL", "Hints", "Wake", "wait_readable"]

log = get_logger(__name__)

_DEAF_LOOK_S = 1.0
_MEND_S = 15.0
"""How long a deaf listener waits before it tries to hear again."""
_CLOSE_S = 2.0
"""How long the listening thread may take to end; one that hangs in a resolver is left behind."""


class Hints:
    """Waits that end early when somebody may have set a kill flag. One thread waits at a time."""

    def __init__(self, database: Database, wake: Wake | None = None) -> None:
        self._database = database
        self._wake = wake or Wake()
        self._owns_wake = wake is None
        self._listener: _Listener | None = None
        self._next_listener_s = 0.0
        self._heed_from_s = 0.0
        self._ask_again_s = math.inf
        self._looked_s = monotonic_s()

    def wait(self, timeout_s: float) -> bool:
        """Wait for at most `timeout_s`; True: look at the kill flags now.

        False, too, when the wake that was given is set.
        """
        self._listen()
        until_s = monotonic_s() + timeout_s
        while True:
            now_s = monotonic_s()
            look_s = self._look_at_s()
            if now_s >= look_s:
                self._looked_s, self._ask_again_s = now_s, math.inf
                self._wake.clear()
                self._take()
                return True
            if now_s >= until_s:
                return False
            woken = wait_readable([], self._wake, min(until_s, look_s) - now_s)
            if woken and not self._is_hinted():
                return False

    def rest(self, seconds: float) -> None:
        """Heed no hint for so long: one that comes meanwhile is kept until then."""
        self._heed_from_s = monotonic_s() + seconds

    def ask_again(self) -> None:
        """The look at the flags failed: say soon that it is to be tried again."""
        self._ask_again_s = monotonic_s() + _DEAF_LOOK_S

    def close(self) -> None:
        """Listen no more."""
        if self._listener is not None:
            self._listener.stop()
        if self._owns_wake:
            self._wake.close()

    def _listen(self) -> None:
        """See to it that somebody listens: also after the listening thread has ended, however that came."""
        if self._listener is not None and self._listener.is_alive():
            return
        if monotonic_s() < self._next_listener_s:
            return
        self._next_listener_s = monotonic_s() + _MEND_S
        said = self._listener is not None and self._listener.has_said_deaf
        self._listener = None
        with suppress(RuntimeError, OSError):  # no thread or descriptor to be had now: deaf meanwhile
            listener = _Listener(self._database, self._wake, has_said_deaf=said)
            listener.start()
            self._listener = listener

    def _look_at_s(self) -> float:
        """Return the moment at which the flags are to be looked at."""
        listener = self._listener
        at_s = self._ask_again_s
        if listener is None or not listener.hears:
            at_s = min(at_s, self._looked_s + _DEAF_LOOK_S)
        if self._is_hinted():
            at_s = min(at_s, self._heed_from_s)
        return at_s

    def _is_hinted(self) -> bool:
        return self._listener is not None and self._listener.is_hinted

    def _take(self) -> None:
        if self._listener is not None:
            self._listener.is_hinted = False


class _Listener(threading.Thread):
    """The thread that listens, and mends what keeps it from that."""

    def __init__(self, database: Database, wake: Wake, *, has_said_deaf: bool) -> None:
        super().__init__(name="jobrunner-ear", daemon=True)
        self.hears = False
        self.is_hinted = False
        self.has_said_deaf = has_said_deaf
        self._database = database
        self._wake = wake
        self._interrupt = Wake()
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True
        self._interrupt.set()
        self.join(_CLOSE_S)

    def run(self) -> None:
        try:
            while not self._stopping:
                self._listen()
                if not self._stopping:
                    wait_readable([], self._interrupt, _MEND_S)
        finally:
            self.hears = False
            self._interrupt.close()

    def _listen(self) -> None:
        """Listen until that fails; whatever it raises, only its own thread may be ended by that."""
        ear: Ear | None = None
        try:
            ear = make_ear(self._database)
            ear.open()
            self.hears = True
            self._hint()  # what was set while nobody listened
            while not self._stopping:
                if ear.hear(self._interrupt):
                    self._hint()
        except BaseException as error:  # noqa: BLE001  # a driver or a resolver of others may raise anything
            self._go_deaf(error)
        finally:
            self.hears = False
            if ear is not None:
                with suppress(Exception):
                    ear.close()

    def _go_deaf(self, error: BaseException) -> None:
        if self._stopping:
            return
        self.hears = False
        self._hint()  # what was set in this moment was perhaps not heard
        if not self.has_said_deaf:
            self.has_said_deaf = True
            why = str(error).strip() or type(error).__name__
            log.info("kill hints are not heard: asking every second", error=why)

    def _hint(self) -> None:
        if not self._stopping and not self.is_hinted:
            self.is_hinted = True
            self._wake.set()
