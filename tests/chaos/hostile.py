"""Code of others that is wrong while a switch is on: a backend of AWS Batch, and a job's hooks.

What they do to the outside stays right, so that it is known how each job has to end. What they raise
says that it was planned; the random choices are a process's own, and no seed repeats them.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from jobrunner.backends.batch import BatchBackend
from jobrunner.backends.batch.backend import DESCRIBE_MOST
from jobrunner.bounded import Bounded
from jobrunner.clock import monotonic_s
from jobrunner.testing.hostile import Panic
from jobrunner.testing.spoiling import Misbehaviour, spoiled
from tests.chaos.odd_text import UNSTORABLE
from tests.chaos.switches import WRONG_CODE, is_on

AS_PLANNED = "it fails, as was planned"
"""What code that is to fail raises."""

_SHARE = 0.6
_IN_A_ROW_MOST = 3
"""Calls for the same that go wrong in succession: with five, a job that is to be killed ends in doubt."""
_CLINGS_S = 5.5  # a little longer than its deadline and its end may take
_ODD = " ".join(UNSTORABLE)

_RAISED: Mapping[Misbehaviour, Callable[[], BaseException]] = {
    Misbehaviour.SYSTEM_EXIT: lambda: SystemExit(AS_PLANNED),
    Misbehaviour.KEYBOARD_INTERRUPT: lambda: KeyboardInterrupt(AS_PLANNED),
    Misbehaviour.GENERATOR_EXIT: lambda: GeneratorExit(AS_PLANNED),
    Misbehaviour.PANIC: lambda: Panic(AS_PLANNED),
    Misbehaviour.CANCELLED: lambda: asyncio.CancelledError(AS_PLANNED),
    Misbehaviour.UNPRINTABLE: lambda: Unprintable(AS_PLANNED),
}
_OF_HOOKS: Sequence[Callable[[], BaseException]] = (
    *_RAISED.values(),
    lambda: ValueError(AS_PLANNED),
    lambda: StopIteration(AS_PLANNED),
)
_CHOICES = tuple(Misbehaviour)
_OF_SUBMIT = tuple(each for each in _CHOICES if each is not Misbehaviour.ODD_TEXT)
"""Its answer is the key by which the outside is asked: an odd one would be another job's."""


class Unprintable(Exception):
    """An error whose text cannot be had; its representation can."""

    def __str__(self) -> str:
        raise ValueError(AS_PLANNED)


def goes_wrong(share: float = _SHARE) -> bool:
    """Whether something of others goes wrong this time."""
    return random.random() < share and is_on(WRONG_CODE)


def raise_anything() -> None:
    """Raise what a hook must not."""
    error = random.choice(_OF_HOOKS)()
    raise error


def raise_or_hang(most_s: float) -> None:
    """Raise what a hook must not, or return after a while."""
    if random.random() < 0.5:
        raise_anything()
    time.sleep(random.uniform(0.0, most_s))  # a hook that hangs


class _OddLimit:
    def __get__(self, _backend: object, _owner: type) -> Any:
        if not goes_wrong():
            return DESCRIBE_MOST
        if random.random() < 0.5:
            raise_anything()
        return random.choice([None, "many", -1, 7.5])


class HostileBatchBackend(BatchBackend):
    """AWS Batch, by code that is wrong at times; no call for the same goes wrong for ever."""

    bulk_limit: Any = _OddLimit()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_a_row: Bounded[tuple[str, str], int] = Bounded()

    def submit(self, spec: Mapping[str, Any], token: str) -> Any:
        return self._call("submit", token, super().submit, spec, token)

    def find(self, spec: Mapping[str, Any], token: str, since: datetime) -> Any:
        return self._call("find", token, super().find, spec, token, since)

    def fetch(self, ids: Sequence[str]) -> Any:
        return self._call("fetch", "", super().fetch, ids)

    def cancel(self, ids: Sequence[str], reason: str) -> Any:
        return self._call("cancel", "".join(ids), super().cancel, ids, reason)

    def close(self) -> Any:
        return self._call("close", "", super().close)

    async def events(self) -> AsyncIterator[Any]:
        while True:
            await asyncio.sleep(0.5)
            if goes_wrong():
                for each in (None, 7, _ODD, [_ODD], object()):
                    yield each
                raise_anything()

    def _call(self, call: str, key: str, method: Callable[..., Any], *args: Any) -> Any:
        number = self._in_a_row.pop((call, key), 0)
        if number >= _IN_A_ROW_MOST or not goes_wrong():
            return method(*args)
        self._in_a_row[call, key] = number + 1
        misbehaviour = random.choice(_OF_SUBMIT if call == "submit" else _CHOICES)
        if misbehaviour is Misbehaviour.NOT_ASYNC:
            return None
        return self._go_wrong(misbehaviour, call, method, args)

    async def _go_wrong(
        self, misbehaviour: Misbehaviour, call: str, method: Callable[..., Any], args: Any
    ) -> Any:
        is_raised = misbehaviour in _RAISED
        # A cancellation that was done in spite of its error would hide whether it is asked for again.
        answer = None if call == "cancel" and is_raised else await method(*args)
        if is_raised:
            error = _RAISED[misbehaviour]()
            raise error
        if misbehaviour is Misbehaviour.HANGS:
            await asyncio.get_running_loop().create_future()
        if misbehaviour is Misbehaviour.CLINGS:
            await _cling()
            return answer
        return spoiled(misbehaviour, call, answer, odd=_ODD, why=AS_PLANNED)


async def _cling() -> None:
    end_s = monotonic_s() + _CLINGS_S
    while monotonic_s() < end_s:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.1)
