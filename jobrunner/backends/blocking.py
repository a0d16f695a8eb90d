"""Backends whose code blocks the event loop: noticed, named, and from then on called one at a time.

Calls that are under way at once, and block, hold up the loop for all their time together: no kill, no step
and no other connection comes between. Where they come one at a time, with pauses, these do.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any

from jobrunner.clock import monotonic_s
from jobrunner.errors import Throttled

_BLOCKS_S = 1.0
"""Seconds for which a step of a call may take the event loop; a machine that is short of time takes less."""
_WATCHED_S = 60.0
"""Seconds after the last such step for which calls are made one at a time."""
_PAUSE, _PAUSE_MOST_S = 0.5, 5.0
_IN_TURN = frozenset({"submit", "find", "baseline"})
"""Calls of which there are many at once: one waits here, the others elsewhere."""


class NotNow(Throttled):
    """The call was not begun: another one was seen to block, while it waited for the event loop."""


class Blocking:
    """Watches the calls of one backend. `say`: takes a sentence about the first step that blocks."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._until_s = -math.inf
        self._pause_s = 0.0
        self._gate = asyncio.Lock()
        self._in_turn = False

    @property
    def is_seen(self) -> bool:
        """Whether a call has blocked lately."""
        return monotonic_s() < self._until_s

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        """Make a call while no other is made; the next one waits for half as long as this one blocked.

        Raises `NotNow` where a submission would wait behind another, while its time runs: it comes again.
        """
        is_in_turn = name in _IN_TURN
        if is_in_turn and self._in_turn:
            raise NotNow(_not_now(name))
        self._in_turn |= is_in_turn
        try:
            await self._gate.acquire()
            self._pause_s = 0.0
            try:
                yield
            finally:
                asyncio.get_running_loop().call_later(
                    min(_PAUSE * self._pause_s, _PAUSE_MOST_S), self._gate.release
                )
        finally:
            self._in_turn &= not is_in_turn

    def watched(self, name: str, method: Callable[..., Any], *, is_alone: bool) -> Callable[..., Any]:
        """Return a method that notices where it blocks. It raises `NotNow` where it must not begin."""

        def begin(*args: Any, **kwargs: Any) -> Any:
            if self.is_seen and not is_alone:
                raise NotNow(_not_now(name))
            asked_s = monotonic_s()
            try:
                answer = method(*args, **kwargs)
            finally:
                self._note(name, asked_s)
            return (
                _Steps(answer, lambda asked_s: self._note(name, asked_s)) if _is_awaitable(answer) else answer
            )

        begin.__name__ = name
        return begin

    def _note(self, name: str, asked_s: float) -> None:
        now_s = monotonic_s()
        if now_s - asked_s < _BLOCKS_S:
            return
        self._until_s = now_s + _WATCHED_S
        self._pause_s += now_s - asked_s
        self._say(
            f"{name} blocks the event loop, which holds up all jobs and kills of this process: what waits "
            "there belongs into asyncio.to_thread; until then its calls are made one at a time"
        )


def _not_now(name: str) -> str:
    return f"{name} waits for its turn, as calls of its backend block the event loop"


def _is_awaitable(answer: object) -> bool:
    return hasattr(type(answer), "__await__")


class _Steps:
    """Awaits what a method returned, and has each step of it measured: from one wait to the next."""

    def __init__(self, answer: Awaitable[Any], note: Callable[[float], None]) -> None:
        self._answer = answer
        self._note = note

    def __await__(self) -> Generator[Any, Any, Any]:
        steps: Any = self._answer.__await__()
        error: BaseException | None = None
        while True:
            asked_s = monotonic_s()
            try:
                waits_for = next(steps) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                self._note(asked_s)
            error = None
            try:
                yield waits_for
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as thrown:  # noqa: BLE001  # it is the other's to handle
                error = thrown
