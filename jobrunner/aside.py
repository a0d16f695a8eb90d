"""Others' code that may never return: on threads that nobody waits for, a bounded number for each kind."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from jobrunner.clock import monotonic_s
from jobrunner.daemon_threads import SpareThreads

_T = TypeVar("_T")

_AT_ONCE = 16
"""Calls of one kind that may be under way at once, those that hang among them."""
_LOOK_S = 0.05
"""Seconds between looks whether a kind's calls need one more thread, or are late."""


class Late(Exception):
    """A call has not returned in time, or has found no place among those that do not return."""


_OnLate: TypeAlias = Callable[[str], Exception]
"""What makes the exception for a call that is late, of why it is."""


def begin(call: Callable[[], _T], on_end: Callable[[_T | None, BaseException | None], None]) -> None:
    """Call on a daemon thread, which keeps no process from ending; `on_end` takes the outcome there."""

    def run() -> None:
        try:
            value = call()
        except BaseException as error:  # noqa: BLE001  # others' code may raise anything, SystemExit too
            on_end(None, error)
        else:
            on_end(value, None)

    _spare.run(run)


def _renew() -> None:
    global _spare  # noqa: PLW0603  # a forked process has none of the threads
    _spare = SpareThreads("jobrunner-aside")


_spare = SpareThreads("jobrunner-aside")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def within(seconds: float, call: Callable[[], _T]) -> _T:
    """Call from a thread without an event loop, for at most so long. Raises what it raises, and `Late`."""
    done = threading.Event()
    outcome: list[Any] = []

    def on_end(value: _T | None, error: BaseException | None) -> None:
        outcome.extend((value, error))
        done.set()

    begin(call, on_end)
    if not done.wait(seconds):
        raise Late(f"it has not returned within {seconds:g} s")
    value, error = outcome
    if error is not None:
        raise error
    found: _T = value
    return found


class Aside:
    """Makes calls beside an event loop, which goes on meanwhile.

    A call that hangs keeps its thread until it returns: so a kind of calls has a bounded number of threads,
    and takes none from another kind.
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, _Line] = {}

    async def call(self, kind: Hashable, call: Callable[[], _T], within_s: float, late: _OnLate = Late) -> _T:
        """Call, and return what that returns; raises what `begin` says."""
        return await self.begin(kind, call, within_s, late)

    def begin(
        self, kind: Hashable, call: Callable[[], _T], within_s: float, late: _OnLate = Late
    ) -> asyncio.Future[_T]:
        """Have it called in its turn; the future has what it returns, or the `Exception` that it raises.

        It has what `late` makes of the reason where the call has not returned within `within_s` seconds,
        and where none of those before it has for so long.
        """
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = _Line()
        future = asyncio.get_running_loop().create_future()
        line.add(_Call(call, within_s, late, future, monotonic_s()))
        return future


@dataclass(slots=True, eq=False)
class _Call:
    """A call that waits for its turn, and then is under way."""

    call: Callable[[], Any]
    within_s: float
    late: _OnLate
    future: asyncio.Future[Any]
    since_s: float
    """When it was given; once it is under way, when it was begun."""

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Let the future have the outcome, unless it has one: it was late, or is not wanted any more."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)
            self.future.exception()  # whoever called may be gone


class _Line:
    """The calls of one kind, begun in the order in which they are given.

    One thread makes them one after another, and hands over what has come together meanwhile: to wake the
    event loop, or a thread, takes longer than most calls. More threads help where calls take their time.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._guard = threading.Lock()  # of what follows
        self._waiting: deque[_Call] = deque()
        self._under_way: set[_Call] = set()
        self._threads = 0
        self._returned = 0  # since the last look
        self._returned_s = monotonic_s()
        self._outcomes: list[tuple[_Call, Any, BaseException | None]] = []

    def add(self, call: _Call) -> None:
        """Have a call made in its turn."""
        with self._guard:
            self._waiting.append(call)
            is_first = self._threads == 0
            self._threads += is_first
        if is_first:
            _spare.run(self._serve)
        self._look_later()

    def _serve(self) -> None:
        """Make calls, on a thread, until none waits."""
        while (call := self._next()) is not None:
            value, error = None, None
            try:
                value = call.call()
            except BaseException as raised:  # noqa: BLE001  # others' code may raise anything, SystemExit too
                error = raised
            self._hand_over(call, value, error)
            del call, value, error  # what they hold is not held while nothing is done

    def _next(self) -> _Call | None:
        with self._guard:
            while self._waiting:
                call = self._waiting.popleft()
                if not call.future.done():  # whoever called has not gone
                    call.since_s = monotonic_s()
                    self._under_way.add(call)
                    return call
            self._threads -= 1
            return None

    def _hand_over(self, call: _Call, value: Any, error: BaseException | None) -> None:
        with self._guard:
            self._under_way.discard(call)
            self._returned += 1
            self._returned_s = monotonic_s()
            self._outcomes.append((call, value, error))
            is_first = len(self._outcomes) == 1
        if is_first:
            with suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        with self._guard:
            outcomes, self._outcomes = self._outcomes, []
        for call, value, error in outcomes:
            call.settle(value, error)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        """Fail what is late, and have one more thread where the calls take their time."""
        self._timer = None
        now_s = monotonic_s()
        with self._guard:
            late = [(call, "it has not returned") for call in self._under_way if _is_late(call, now_s)]
            while self._waiting and self._is_stuck and _is_late(self._waiting[0], now_s, self._returned_s):
                late.append((self._waiting.popleft(), f"{_AT_ONCE} earlier calls of it have not returned"))
            is_slow = bool(self._waiting) and self._returned <= self._threads and not self._is_stuck
            self._threads += is_slow
            self._returned = 0
        for call, why in late:
            call.settle(None, call.late(f"{why} within {call.within_s:g} s"))
        if is_slow:
            _spare.run(self._serve)
        if self._waiting or any(not call.future.done() for call in self._under_way.copy()):
            self._look_later()

    @property
    def _is_stuck(self) -> bool:
        """Whether as many calls are under way as may be."""
        return self._threads >= _AT_ONCE


def _is_late(call: _Call, now_s: float, but_since_s: float = 0.0) -> bool:
    return now_s - max(call.since_s, but_since_s) > call.within_s
