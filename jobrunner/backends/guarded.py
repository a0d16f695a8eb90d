"""A backend as everybody here uses it: each call contained and bounded in time, each answer checked."""

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobrunner.backends import checks
from jobrunner.backends.base import Absent, Backend, Found, LogLine, Patience, Unsure, patience_of
from jobrunner.backends.blocking import Blocking, NotNow
from jobrunner.backends.calls import Abandoned, call_within, contained, is_ours, name_of
from jobrunner.backends.checks import Answer
from jobrunner.errors import BackendDefect, JobrunnerError, SettingsError, words_of
from jobrunner.log_limits import Once
from jobrunner.logs import get_logger
from jobrunner.text import storable

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob
    from jobrunner.settings import ConnectionSettings

log = get_logger(__name__)

IsHeld = Callable[[Sequence[str]], Awaitable[set[str]]]
"""Tells which of some external ids other jobs of the connection hold."""

_LEFT_A_KEY = 3  # calls for the very same ids that never ended: then no more are made for these
_LEFT_MOST = 1_000  # of all its calls
_NEEDED = ("submit", "find", "fetch", "cancel")


class GuardedBackend:
    """The one way to a backend, whoever wrote it: nothing but an `Exception` or a sound answer comes out.

    `name`: its connection, for the log. `patience`: its own, and the default where that makes no sense.
    """

    def __init__(self, backend: Backend, name: str = "") -> None:
        self.raw = backend
        self.patience: Patience = patience_of(backend)
        self._name = name
        self._faults = Once()
        self._left: Counter[tuple[str, ...]] = Counter()
        self._blocking = None if is_ours(type(backend)) else Blocking(self._say)

    @property
    def bulk_limit(self) -> int:
        """The most ids that one call of `fetch` or `cancel` takes."""
        return checks.limit_of(self.raw, self._say)

    @property
    def submissions_at_once(self) -> int:
        """The most jobs that are submitted, or looked for, at once."""
        return 1 if self.blocks else checks.submissions_at_once_of(self.raw, self._say)

    @property
    def blocks(self) -> bool:
        """Whether calls of it have blocked the event loop lately: then they are made one at a time."""
        return self._blocking is not None and self._blocking.is_seen

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        """Start a job and return its external id, which may be one that cannot be stored."""
        return checks.submitted(await self._call("submit", (token,), spec, token))

    async def find(
        self,
        spec: Mapping[str, Any],
        token: str,
        since: dt.datetime,
        *,
        baseline: str | None,
        is_held: IsHeld,
    ) -> Found | Absent | Unsure:
        """Prove what became of a submission.

        `baseline`: what was outside before it, as stored; `is_held`: which of some ids other jobs hold. Both
        are for a backend that has baselines.
        """
        more = {"baseline": baseline, "is_held": is_held} if self.has_baseline else {}
        answer = await self._call("find", (token,), spec, token, since, **more)
        with contained("the answer of find"):
            return checks.proof_of(answer, self._say)

    async def fetch(self, ids: Sequence[str]) -> dict[str, Answer]:
        """Ask for jobs; each id has an answer."""
        return checks.fetched(await self._call("fetch", ids, list(ids)), ids, self._say)

    async def cancel(self, ids: Sequence[str], reason: str) -> dict[str, str]:
        """Ask to end jobs; return what stood in the way, by id."""
        answer = await self._call("cancel", ids, list(ids), storable(reason))
        with contained("the answer of cancel"):
            return checks.cancelled(answer, ids, self._say)

    @property
    def has_baseline(self) -> bool:
        """Whether it wants to know what is outside before a submission begins."""
        return self._optional("baseline") is not None

    async def baseline(self, spec: Mapping[str, Any]) -> str:
        """Learn what is outside before a submission begins."""
        return checks.baseline_of(await self._call("baseline", (), spec))

    @property
    def has_events(self) -> bool:
        """Whether it can tell of changes by itself."""
        return self._optional("events") is not None

    async def events(self) -> AsyncGenerator[str, None]:
        """Yield the ids of which something was heard; an empty one for what is no text."""
        with contained("events"):
            stream = self._optional("events")
            stream = stream and stream()
            if not hasattr(stream, "__aiter__"):
                raise BackendDefect(f"events returned {checks.shown(stream)}, not an async iterator")
            try:
                async for external_id in stream:
                    yield external_id if isinstance(external_id, str) else ""
            finally:
                await _close(stream)

    async def logs(self, external_id: str, since: dt.datetime | None) -> AsyncGenerator[LogLine, None]:
        """Yield the lines of a job's output, their fields made right."""
        with contained("logs"):
            stream: Any = self.raw.logs(external_id, since)
            if not hasattr(stream, "__aiter__"):
                raise BackendDefect(f"logs returned {checks.shown(stream)}, not an async iterator")
            try:
                async for line in stream:
                    yield checks.line_of(line)
            finally:
                await _close(stream)

    def output(self, external_id: str) -> Any | None:
        """Return what reads on in a job's output, where the backend has such a thing; else None."""
        method = self._optional("output")
        if method is None:
            return None
        with contained("output"):
            return method(external_id)

    async def lines_of(self, output: Any, *, is_last: bool) -> AsyncGenerator[list[str], None]:
        """Yield the new lines of what `output` returned, some at a time."""
        with contained("output"):
            stream = output.lines(is_last=is_last)
            try:
                async for texts in stream:
                    yield texts
            finally:
                await _close(stream)

    async def check(self) -> str | None:
        """Make one harmless call and return what answered; None: it has none to make."""
        if self._optional("check") is None:
            return None
        return storable(await self._call("check", ()))

    async def close(self, within_s: float | None = None) -> None:
        """Give back what it holds, within so many seconds."""
        await call_within(within_s or self.patience.call_s, self._method("close"))

    async def _call(self, name: str, keys: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        key = (name, *keys)
        if self._left[key] >= _LEFT_A_KEY or self._left.total() >= _LEFT_MOST:
            raise BackendDefect(f"earlier calls of {name} have never ended: no more are made until one does")
        try:
            return await self._within(name, *args, **kwargs)
        except Abandoned as error:
            self._say(f"a call of {name} never ends")
            self._left[key] += 1
            error.task.add_done_callback(lambda _task: self._has_ended(key))
            raise

    async def _within(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Make a call within its time; alone, where the backend's code blocks the event loop."""
        call_s, method, blocking = self.patience.call_s, self._method(name), self._blocking
        if blocking is None:
            return await call_within(call_s, method, *args, **kwargs)
        if not blocking.is_seen:
            try:
                watched = blocking.watched(name, method, is_alone=False)
                return await call_within(call_s, watched, *args, **kwargs)
            except NotNow:
                pass
        async with blocking.alone(name):
            return await call_within(call_s, blocking.watched(name, method, is_alone=True), *args, **kwargs)

    def _has_ended(self, key: tuple[str, ...]) -> None:
        self._left[key] -= 1
        self._left += Counter()  # which drops those of which none is left

    def _method(self, name: str) -> Callable[..., Any]:
        with contained(name):
            method = getattr(self.raw, name, None)
        if not callable(method):
            raise BackendDefect(f"the backend has no {name}")
        found: Callable[..., Any] = method
        return found

    def _optional(self, name: str) -> Any:
        try:
            with contained(name):
                return getattr(self.raw, name, None)
        except Exception:  # noqa: BLE001  # a property that raises: then it has none
            return None

    def _say(self, sentence: str) -> None:
        """Log what is wrong with the backend, each kind once."""
        if self._faults.is_new(sentence):
            log.warning(
                "a backend is at fault",
                connection=self._name,
                backend=name_of(type(self.raw)),
                fault=sentence,
            )


def backend_of(job: "MonitorJob", connection: "ConnectionSettings") -> Backend:
    """Return the backend that a job's class makes for a connection. Raises `JobrunnerError`.

    It may never return: who has an event loop calls `terms.made_backend`.
    """
    name = name_of(type(job))
    try:
        with contained(f"{name}.make_backend", SettingsError):
            made: Any = job.backend_behind(connection)
            missing = [each for each in _NEEDED if not callable(getattr(made, each, None))]
    except JobrunnerError:
        raise
    except (Exception, asyncio.CancelledError) as error:
        raise SettingsError(f"The backend of {name} cannot be made: {words_of(error)}") from error
    if missing:
        raise SettingsError(
            f"{name}.make_backend returned {checks.shown(made)}, not a backend: it has no {missing[0]}."
        )
    backend: Backend = made
    return backend


def guarded(backend: "Backend | GuardedBackend", name: str = "") -> GuardedBackend:
    """Return a backend as a guarded one, once."""
    return backend if isinstance(backend, GuardedBackend) else GuardedBackend(backend, name)


async def _close(stream: Any) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
