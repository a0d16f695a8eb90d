"""Blocking calls in threads for which nobody has to wait."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


def in_daemon_thread(do: Callable[[], _T]) -> asyncio.Future[_T]:
    """Do it in a thread of its own, and return what becomes of it.

    Not in a pool: the interpreter waits for a pool's threads at its end, and one that hangs on a
    silent network would hold up Ctrl-C until its time-out.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def succeed(answer: _T) -> None:
        if not done.cancelled():
            done.set_result(answer)

    def fail(error: Exception) -> None:
        if not done.cancelled():
            done.set_exception(error)
            done.exception()  # whoever asked may have gone

    def run() -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody wants to know
            try:
                answer = do()
            except Exception as error:  # noqa: BLE001  # whatever it is, it is handed over
                loop.call_soon_threadsafe(fail, error)
            else:
                loop.call_soon_threadsafe(succeed, answer)

    threading.Thread(target=run, name="jobrunner-batch", daemon=True).start()
    return done
