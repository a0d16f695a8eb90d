"""Calls into others' code: whatever it raises becomes an ordinary error, and a deadline never waits for it.

A `SystemExit` that leaves a task ends the event loop, and with it everything that runs there. A coroutine
that swallows its cancellation would keep whoever waits for it. Both are bounded here, for all backends.
"""

import asyncio
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

from jobrunner.backends.checks import shown
from jobrunner.errors import BackendDefect, BackendError, JobrunnerError, words_of
from jobrunner.text import text_of

END_S = 1.0
"""How long a call whose time is over may take to end, before it is left to itself."""

_left: set[asyncio.Task[Any]] = set()
# Held until they end: a task collected while it waits makes noise, and its coroutine may refuse to be closed.


class Abandoned(BackendDefect):
    """The call has not ended in time, nor when it was cancelled: it was left to itself.

    `task`: what was left.
    """

    def __init__(self, message: str, task: asyncio.Task[Any]) -> None:
        super().__init__(message)
        self.task = task


class contained:  # noqa: N801  # it reads as what it does: `with contained("judge"):`
    """A block that calls others' code: what only ends a process or a thread is raised as an `error`.

    Cancellation passes, and so does the closing of the coroutine that the block is in.
    """

    def __init__(self, what: str, error: type[JobrunnerError] = BackendDefect) -> None:
        self._what = what
        self._error = error

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, (Exception, asyncio.CancelledError)):
            return
        is_ours = (
            trace is None or trace.tb_next is None
        )  # thrown into this block, not raised by what it calls
        if isinstance(error, GeneratorExit) and is_ours:
            return
        raise self._error(f"{self._what} raised {words_of(error)}") from error


async def call_within(seconds: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Await `function(*args, **kwargs)` for at most `seconds`, and return what it returns, unchecked.

    Raises what it raises, as an `Exception` in every case; `BackendError` when the time is over, and
    `Abandoned` when it does not even end then. Cancelled itself, it ends the call, or leaves it.
    """
    task = asyncio.get_running_loop().create_task(_call(function, args, kwargs))
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        if not await _ends(task):
            _leave(task)
        raise
    if not task.done() and not await _ends(task):
        _leave(task)
        name = name_of(function)
        raise Abandoned(f"{name} has not ended within {seconds:g} s, nor when it was cancelled", task)
    if task.cancelled():
        raise BackendError(f"no answer within {seconds:g} s")
    try:
        return task.result()
    except TimeoutError as error:
        raise BackendError(text_of(error) or f"no answer within {seconds:g} s") from error


async def _call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    name = name_of(function)
    task = asyncio.current_task()
    try:
        with contained(name):
            answer = function(*args, **kwargs)
            if not inspect.isawaitable(answer):
                raise BackendDefect(f"{name} returned {shown(answer)}, which cannot be awaited")
            return await answer
    except asyncio.CancelledError:
        if task is not None and task.cancelling():
            raise
        raise BackendError("the call was cancelled from within") from None


async def _ends(task: asyncio.Task[Any]) -> bool:
    """Cancel a task, and return whether it ends soon."""
    task.cancel()
    await asyncio.wait({task}, timeout=END_S)
    return task.done()


def _leave(task: asyncio.Task[Any]) -> None:
    """Wait for a task no longer, here or when the loop ends."""
    # `asyncio.run` waits for all registered tasks to end, without a bound.
    asyncio._unregister_task(task)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio's own do
    _left.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    _left.discard(task)
    if not task.cancelled():
        task.exception()  # nobody waits for it: it was said when the call was left


def left_behind() -> int:
    """Return how many calls of this process were left to themselves, and have not ended yet."""
    return len(_left)


async def end_or_leave(task: asyncio.Task[Any]) -> bool:
    """Cancel a task that runs others' code, and wait for it for a moment; False: it was left to itself."""
    if not task.done() and not await _ends(task):
        _leave(task)
        return False
    return True


def is_ours(some_class: type) -> bool:
    """Whether a class is jobrunner's own, so that its code may be trusted, and run on the event loop."""
    return str(some_class.__module__).startswith("jobrunner.")


def name_of(function: object) -> str:
    """Return a function's name, for a message."""
    return text_of(getattr(function, "__name__", type(function).__name__))
