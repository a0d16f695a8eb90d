"""The threads that write what is said, so that nobody who says something depends on who reads it.

A reader may stop reading (Ctrl-S, a stopped `| logger`), and a logging handler of the program around may
hang or raise. A beat that waited for that would make a live job look dead, and a raised error would end
what was only being reported.
"""

import atexit
import os
import select
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from jobrunner.known_secrets import without_secrets
from jobrunner.text import brief
from jobrunner.visible import visible

WAITING_MOST = 1_000
"""Lines that wait to be written, at most; more are left out, and counted."""
PATIENCE_S = 0.5
"""How long who says something waits until it is written; nobody waits behind a line that took longer."""
LEAVING_S = 2.0
"""How long the end of the process waits for what is not written yet."""


class Writer:
    """Does what it is given one after the other, in a thread of its own.

    `failed(error)`: takes whatever that raises. `left_out(count)`: says, in its turn, how much was not done
    because too much was waiting.
    """

    def __init__(
        self,
        name: str,
        *,
        failed: Callable[[BaseException], None],
        left_out: Callable[[int], None] = lambda _count: None,
        most: int = WAITING_MOST,
    ) -> None:
        self._name = name
        self._failed = failed
        self._left_out = left_out
        self._most = most
        self._begin_anew()
        self._has_begun = False

    def _begin_anew(self) -> None:
        """Have nothing to do: in a forked copy, what waits is for the other process to be written."""
        self._changed = threading.Condition()  # its lock is reentrant: signal handlers say something, too
        self._waiting: deque[tuple[Context, Callable[[], None]]] = deque()
        self._thread: threading.Thread | None = None
        self._given = self._done = self._count_left_out = 0
        self._is_stuck = False

    @property
    def is_stuck(self) -> bool:
        """Whether something was not done in time, and still is not."""
        return self._is_stuck

    def write(self, act: Callable[[], None]) -> None:
        """Have something done in its turn, and wait for it, but not for long."""
        self.put(act)
        self.settle()

    def put(self, act: Callable[[], None]) -> None:
        """Have something done in its turn, in the context of who asks for it. Raises nothing of its own."""
        if threading.current_thread() is self._thread or sys.is_finalizing():
            self._do(act)
            return
        with self._changed:
            if len(self._waiting) >= self._most:
                self._count_left_out += 1
                return
            self._say_left_out()
            self._append(act)
            if self._is_running():
                return
            while self._waiting:  # no thread can be started
                self._take()

    def settle(self, patience_s: float = PATIENCE_S) -> bool:
        """Wait until all is done that was given before, but not for long; False: it is not.

        Nobody waits while the thread is stuck: it was waited for already.
        """
        if threading.current_thread() is self._thread:
            return True
        with self._changed:
            if not self._is_stuck and not self._wait(patience_s):
                self._is_stuck = True
            return not self._is_stuck

    def flush(self, patience_s: float | None = LEAVING_S) -> bool:
        """Wait until all is done, also where it is stuck; None: for as long as it takes."""
        with self._changed:
            return self._wait(patience_s)

    def _wait(self, patience_s: float | None) -> bool:
        given = self._given
        return self._changed.wait_for(lambda: self._done >= given, patience_s)

    def _append(self, act: Callable[[], None]) -> None:
        self._waiting.append((copy_context(), act))
        self._given += 1
        self._changed.notify_all()

    def _say_left_out(self) -> None:
        count, self._count_left_out = self._count_left_out, 0
        if count:
            self._append(partial(self._left_out, count))

    def _see_to_its_end(self) -> None:
        """Have what is waiting written at exit: before the handlers are closed, which were there before."""
        self._has_begun = True
        itself = weakref.ref(self)
        atexit.register(lambda: _leave(itself()))
        os.register_at_fork(after_in_child=lambda: _begin_anew(itself()))

    def _is_running(self) -> bool:
        if not self._has_begun:
            self._see_to_its_end()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # there are too many, or the interpreter ends
                self._thread = None
        return self._thread is not None

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._say_left_out()
                while not self._waiting:
                    self._changed.wait()
            self._take()

    def _take(self) -> None:
        context, act = self._waiting.popleft()
        context.run(self._do, act)
        with self._changed:
            self._done += 1
            self._is_stuck = False
            self._changed.notify_all()

    def _do(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001  # others' code: it is nobody's end
            with suppress(BaseException):
                self._failed(error)


def _begin_anew(writer: Writer | None) -> None:
    if writer is not None:
        writer._begin_anew()


def _leave(writer: Writer | None) -> None:
    if writer is not None:
        writer.flush()


def write_error(text: str) -> None:
    """Write to standard error. Raises `OSError`, `ValueError` or `AttributeError` where there is none.

    Past the stream's own buffer, whose lock a thread that hangs here would hold: then the process could not
    even end.
    """
    stream: Any = sys.stderr
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):  # a stream that the program, or a test, put there
        stream.write(text)
        stream.flush()
        return
    left = text.encode(getattr(stream, "encoding", None) or "utf-8", "backslashreplace")
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # others, who share it, made it so
            select.select([], [descriptor], [])


_said_failures: set[str] = set()
_FAILURES_MOST = 10


def say_failed(error: BaseException) -> None:
    """Say on standard error, once of each kind, that a logging handler of this program raises."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    if kind in _said_failures or len(_said_failures) >= _FAILURES_MOST:
        return
    _said_failures.add(kind)
    shown = visible(without_secrets(brief(error, 300)))
    write_error(
        f"jobrunner: a logging handler of this program, or what it calls, raises {shown}: "
        "lines are missing from its log.\n"
    )
