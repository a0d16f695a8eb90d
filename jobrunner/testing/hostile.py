"""A backend whose code is wrong: it raises what it must not, never returns, and answers with wrong types.

    outside = HostileBackend(patience=Patience(call_s=0.5))
    outside.misbehave(Misbehaviour.SYSTEM_EXIT, "fetch", times=3)
    HostileBackend(seed=7, share=0.3)  # three calls in ten go wrong, the same ones each time

What its outside does stays right, so that a test can say how each job has to end.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from jobrunner.backends.base import Absent, Found, LogLine, RemoteError, Unsure
from jobrunner.testing.memory import MemoryBackend
from jobrunner.testing.spoiling import ODD_TEXT, Misbehaviour, spoiled

_T = TypeVar("_T")


class Panic(BaseException):
    """What ends no process, and is no `Exception`."""


class Unprintable(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise ValueError("this error has no text")

    __repr__ = __str__


_RAISED: Mapping[Misbehaviour, Callable[[], BaseException]] = {
    Misbehaviour.SYSTEM_EXIT: lambda: SystemExit(3),
    Misbehaviour.KEYBOARD_INTERRUPT: KeyboardInterrupt,
    Misbehaviour.GENERATOR_EXIT: GeneratorExit,
    Misbehaviour.PANIC: lambda: Panic("called `Option::unwrap()` on a `None` value"),
    Misbehaviour.CANCELLED: asyncio.CancelledError,
    Misbehaviour.UNPRINTABLE: Unprintable,
}
_CALLS = frozenset({"submit", "find", "fetch", "cancel", "events", "logs", "close"})
_LOOK_S = 0.01


@dataclass(slots=True)
class _Order:
    misbehaviour: Misbehaviour
    call: str
    times: int | None


class HostileBackend(MemoryBackend):
    """A `MemoryBackend` whose code goes wrong: by order with `misbehave`, and at random by `share`.

    `seed`: of the random choice. `share`: how many of all calls go wrong, from 0 to 1. `choices`: by what.
    The rest is as for `MemoryBackend`; give it a short `patience` where calls hang.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        share: float = 0.0,
        choices: Sequence[Misbehaviour] = tuple(Misbehaviour),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.misbehaved: Counter[tuple[str, Misbehaviour]] = Counter()
        """How often each call went wrong by what."""
        self.share = share
        self._choices = choices
        self._random = random.Random(seed)  # noqa: S311  # the same each time, not a secret
        self._misorders: list[_Order] = []
        self._clinging = threading.Event()

    def misbehave(self, misbehaviour: Misbehaviour, call: str, times: int | None = 1) -> None:
        """Let the next `times` calls of `call` go wrong; None: all from now on. Raises ValueError."""
        if call not in _CALLS:
            raise ValueError(
                f"{call!r} is not a method of a backend: choose from {', '.join(sorted(_CALLS))}"
            )
        self._misorders.append(_Order(misbehaviour, call, times))

    def behave(self) -> None:
        """Go wrong no more, and release what clings."""
        self._misorders.clear()
        self.share = 0.0
        self.release()

    def release(self) -> None:
        """Let the calls return that hang now and swallow their cancellation."""
        with self._lock:
            self._clinging.set()
            self._clinging = threading.Event()

    # The contract of Backend, broken.

    def submit(self, spec: Mapping[str, Any], token: str) -> Coroutine[Any, Any, str]:
        """Make a job, and then perhaps go wrong."""
        return self._call("submit", super().submit, spec, token)

    def find(
        self, spec: Mapping[str, Any], token: str, since: datetime
    ) -> Coroutine[Any, Any, Found | Absent | Unsure]:
        """Find a submission, and then perhaps go wrong."""
        return self._call("find", super().find, spec, token, since)

    def fetch(self, ids: Sequence[str]) -> Coroutine[Any, Any, Mapping[str, Any]]:
        """Look at jobs, and then perhaps go wrong."""
        return self._call("fetch", super().fetch, ids)

    def cancel(self, ids: Sequence[str], reason: str) -> Coroutine[Any, Any, Mapping[str, RemoteError]]:
        """End jobs, unless it goes wrong first."""
        return self._call("cancel", super().cancel, ids, reason)

    def close(self) -> Coroutine[Any, Any, None]:
        """Be counted, and then perhaps go wrong."""
        return self._call("close", super().close)

    def events(self) -> AsyncIterator[str]:
        """Tell of changes, unless it goes wrong first."""
        return self._stream("events", super().events)

    def logs(self, external_id: str, since: datetime | None) -> AsyncIterator[LogLine]:
        """Yield a job's output, unless it goes wrong first."""
        return self._stream("logs", super().logs, external_id, since)

    def _call(
        self, call: str, method: Callable[..., Coroutine[Any, Any, _T]], *args: Any
    ) -> Coroutine[Any, Any, _T]:
        misbehaviour = self._next(call)
        if misbehaviour is None:
            return method(*args)
        if misbehaviour is Misbehaviour.NOT_ASYNC:
            return None  # type: ignore[return-value]  # on purpose
        return self._go_wrong(misbehaviour, call, method, args)

    def _next(self, call: str) -> Misbehaviour | None:
        with self._lock:
            order = next((each for each in self._misorders if each.call == call and each.times != 0), None)
            if order is not None:
                order.times = None if order.times is None else order.times - 1
                found: Misbehaviour | None = order.misbehaviour
            else:
                found = self._random.choice(self._choices) if self._random.random() < self.share else None
            if found is not None:
                self.misbehaved[call, found] += 1
            return found

    async def _go_wrong(
        self, misbehaviour: Misbehaviour, call: str, method: Callable[..., Any], args: Any
    ) -> Any:
        # A cancellation that was done in spite of its error would hide whether it is asked for again.
        answer = None if call == "cancel" and misbehaviour in _RAISED else await method(*args)
        _raise_by(misbehaviour)
        if misbehaviour is Misbehaviour.HANGS:
            await asyncio.get_running_loop().create_future()
        if misbehaviour is Misbehaviour.CLINGS:
            await self._cling()
            return answer
        return self._spoiled(misbehaviour, call, answer)

    async def _cling(self) -> None:
        released = self._clinging
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(_LOOK_S)

    def _spoiled(self, misbehaviour: Misbehaviour, call: str, answer: Any) -> Any:
        if misbehaviour is Misbehaviour.ODD_TEXT and call == "submit":
            with self._lock:  # the outside knows it under this id
                self.jobs[answer + ODD_TEXT] = self.jobs[answer]
            return answer + ODD_TEXT
        return spoiled(misbehaviour, call, answer)

    async def _stream(
        self, call: str, method: Callable[..., AsyncIterator[Any]], *args: Any
    ) -> AsyncIterator[Any]:
        misbehaviour = self._next(call)
        _raise_by(misbehaviour)
        if misbehaviour is Misbehaviour.HANGS:
            await asyncio.get_running_loop().create_future()
        elif misbehaviour is Misbehaviour.CLINGS:
            await self._cling()
            return
        elif misbehaviour is not None:
            for each in (None, 7, ODD_TEXT, [ODD_TEXT], object()):
                yield each
        async for each in method(*args):
            yield each


def _raise_by(misbehaviour: Misbehaviour | None) -> None:
    make = None if misbehaviour is None else _RAISED.get(misbehaviour)
    if make is not None:
        raise make()
