"""Waiting for descriptors, and ending the wait of another thread."""

import math
import os
import select
import threading
import time


class Wake:
    """A way to end another thread's wait: `set` it, and its descriptor becomes readable."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._lock = threading.Lock()
        self._is_set = False
        self._closed = False

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._reader

    def set(self) -> None:
        """End the wait, now or the next one; nothing happens where it is closed."""
        # Under the lock: once closed, the descriptor's number may be somebody else's.
        with self._lock:
            if not self._is_set and not self._closed:
                self._is_set = True
                os.write(self._writer, b"x")

    def clear(self) -> None:
        """Take back what was set."""
        with self._lock:
            if self._is_set and not self._closed:
                self._is_set = False
                os.read(self._reader, 1)

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._reader)
                os.close(self._writer)


def wait_readable(readers: list[int], wake: Wake | None, timeout_s: float) -> bool:
    """Wait; True when one of `readers` can be read, or `wake` was set (and then it is cleared)."""
    every = readers if wake is None else [*readers, wake.fileno()]
    if not every:
        time.sleep(max(0.0, timeout_s))
        return False
    poll = select.poll()  # select() fails on a descriptor of 1024 or more
    for reader in every:
        poll.register(reader, select.POLLIN)
    ready = [descriptor for descriptor, _ in poll.poll(max(0, math.ceil(timeout_s * 1000)))]
    if wake is not None and wake.fileno() in ready:
        wake.clear()
    return bool(ready)
