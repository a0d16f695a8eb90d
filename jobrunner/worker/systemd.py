"""What systemd is told of a service of `Type=notify`: ready, alive, stopping. Without systemd, nothing."""

import os
import socket
import threading
from collections.abc import Callable
from typing import Self

from jobrunner.logs import get_logger

log = get_logger(__name__)

_LEAST_S = 0.01  # between two words to the watchdog
_ADDRESS, _WATCHDOG_US, _WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"


class Notifier:
    """Tells systemd how a service is, over the socket that it names in the environment.

    `is_well` is asked before each word to the watchdog: a worker that hangs gives none, and is restarted.
    """

    def __init__(self, is_well: Callable[[], bool]) -> None:
        self._is_well = is_well
        self._address = os.environ.get(_ADDRESS, "")
        self._is_ready = False
        self._status = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        every_s = _watchdog_s()
        if self._address and every_s is not None:
            self._thread = threading.Thread(
                target=self._watch, args=(max(every_s / 2, _LEAST_S),), name="jobrunner-watchdog", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def ready(self, status: str) -> None:
        """Say that it works, and what it does."""
        words = [f"STATUS={status}"] if status != self._status else []
        if not self._is_ready:
            words.insert(0, "READY=1")
        if words and self._tell(*words):  # else it is said at the next look
            self._is_ready, self._status = True, status

    def stopping(self) -> None:
        """Say that it gives its jobs back."""
        self._tell("STOPPING=1", "STATUS=giving its jobs back")

    def _watch(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            if self._is_well():
                self._tell("WATCHDOG=1")

    def _tell(self, *words: str) -> bool:
        """Send it, and never wait: a receiver that does not read must not hold up a worker's rounds."""
        if not self._address:
            return True
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
                peer.setblocking(False)
                peer.sendto("\n".join(words).encode(), address)
        except (OSError, ValueError):  # its queue is full, or it is gone; ValueError: a NUL in the address
            return False
        return True


def _watchdog_s() -> float | None:
    """Return within which time systemd wants to hear from us; None: it does not."""
    wanted = os.environ.get(_WATCHDOG_US, "")
    if not wanted.isdecimal() or int(wanted) == 0:
        return None
    if os.environ.get(_WATCHDOG_PID, str(os.getpid())) != str(os.getpid()):
        return None
    return int(wanted) / 1e6
