"""Hooks of jobs: other people's code, on threads that hold up nobody, not even the end of the process."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from jobrunner.clock import monotonic_s
from jobrunner.daemon_threads import SpareThreads
from jobrunner.logs import get_logger

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob

log = get_logger(__name__)

_NEW_MOST = 8
_NEW_S = 0.25
"""A call that takes longer lets the next one begin beside it."""
_MOST = 58
"""Calls of one kind under way; with so many of them, the others wait until one returns."""
_CLOSE_S = 2.0

_MESSAGES: Mapping[str, str] = MappingProxyType(
    {
        "on_kill": "on_kill takes long: the kill goes on meanwhile",
        "heartbeat_callback": "heartbeat_callback takes long: it is not called again until it returns",
        "judge": "judge takes long: the job goes on unjudged until it returns",
    }
)


@dataclass(slots=True, eq=False)
class HookCall:
    """One call of a hook: it waits for its turn, is under way, and ends."""

    kind: "_Kind"
    job_id: int
    run: Callable[[], None]
    most_s: float
    ended: asyncio.Future[BaseException | None]
    """Its result is what the hook raised; None also where it was not called."""
    begun_s: float | None = None
    why_not: str | None = None
    """Why the hook was not called, where it was not."""
    is_new: bool = False
    is_late: bool = False
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Kind:
    """The hooks of one name of one class of jobs."""

    job_type: str
    name: str
    waiting: dict[HookCall, None] = field(default_factory=dict)
    """In their order."""
    under_way: dict[HookCall, None] = field(default_factory=dict)
    is_said: bool = False

    @property
    def has_room(self) -> bool:
        """Whether one more may begin."""
        return len(self.under_way) < _MOST and sum(call.is_new for call in self.under_way) < _NEW_MOST

    @property
    def is_stuck(self) -> bool:
        """Whether all its places are taken by calls that should have returned."""
        return len(self.under_way) >= _MOST and all(call.is_late for call in self.under_way)


class Hooks:
    """Calls hooks for a runner, from its event loop.

    Those of one class and name share places, so that one kind takes no threads from another. A call that
    is slow keeps the others waiting only where its kind has as many threads as it may have; and only where
    each of these hangs, those that wait are not called.
    """

    def __init__(self) -> None:
        self._threads = SpareThreads("jobrunner-hook")
        self._kinds: dict[tuple[type, str], _Kind] = {}

    def call(self, job: "MonitorJob", name: str, run: Callable[[], None], most_s: float) -> HookCall:
        """Let a hook be called as soon as it is its turn; the caller may wait for its end.

        `most_s` seconds after it began it counts as hanging, and a warning names the job and the hook.
        """
        kind = self._kinds.setdefault((type(job), name), _Kind(type(job).__name__, name))
        call = HookCall(kind, job.id, run, most_s, asyncio.get_running_loop().create_future())
        kind.waiting[call] = None
        self._see_to(kind)
        return call

    def withdraw(self, call: HookCall, why: str) -> None:
        """Do not call it any more, if it has not begun."""
        if call in call.kind.waiting:
            del call.kind.waiting[call]
            call.why_not = why
            call.ended.set_result(None)

    def _see_to(self, kind: _Kind) -> None:
        while kind.waiting and kind.has_room:
            call = next(iter(kind.waiting))
            del kind.waiting[call]
            self._begin(call)
        if not kind.is_stuck:
            kind.is_said = False
        elif kind.waiting:
            self._refuse(kind)

    def _refuse(self, kind: _Kind) -> None:
        calls, longest_s = len(kind.under_way), max(call.most_s for call in kind.under_way)
        if not kind.is_said:
            kind.is_said = True
            log.error(
                f"{kind.name} is not called: too many calls of it have not returned",
                job_type=kind.job_type,
                job=next(iter(kind.waiting)).job_id,
                calls=calls,
            )
        for call in list(kind.waiting):
            self.withdraw(call, f"{calls} calls of it hang, each for more than {longest_s:g} s")

    def _begin(self, call: HookCall) -> None:
        loop = asyncio.get_running_loop()

        def run() -> None:
            error: BaseException | None = None
            try:
                call.run()
            except BaseException as raised:  # noqa: BLE001  # a hook may raise anything, SystemExit too
                error = raised
            with suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
                loop.call_soon_threadsafe(self._end, call, error)

        call.begun_s, call.is_new = monotonic_s(), True
        call.kind.under_way[call] = None
        call.timers = [
            loop.call_later(_NEW_S, self._grow_old, call),
            loop.call_later(call.most_s, self._be_late, call),
        ]
        self._threads.run(run)

    def _grow_old(self, call: HookCall) -> None:
        call.is_new = False
        self._see_to(call.kind)

    def _be_late(self, call: HookCall) -> None:
        call.is_late = True
        log.warning(_MESSAGES[call.kind.name], job=call.job_id, hook=call.kind.name, seconds=call.most_s)
        self._see_to(call.kind)

    def _end(self, call: HookCall, error: BaseException | None) -> None:
        for timer in call.timers:
            timer.cancel()
        del call.kind.under_way[call]
        call.ended.set_result(error)
        self._see_to(call.kind)

    async def close(self) -> None:
        """Begin no more; wait for those under way for a moment, and for those that hang not at all."""
        under_way: list[asyncio.Future[BaseException | None]] = []
        for kind in self._kinds.values():
            for call in list(kind.waiting):
                self.withdraw(call, "its runner was stopped")
            under_way += [call.ended for call in kind.under_way if not call.is_late]
        if under_way:
            await asyncio.wait(under_way, timeout=_CLOSE_S)
        self._threads.close()
