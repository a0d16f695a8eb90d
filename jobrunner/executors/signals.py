"""The signals that tell a process to stop, while it runs an event loop."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Told to stop. A closed terminal is one, too."""


@contextmanager
def heard(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Call `on_signal` on the running event loop for each signal to stop; the former handlers come back.

    What is ignored (nohup, a shell's background) stays ignored. In another thread than the main one
    nothing is done: signals are the main thread's, and whoever it is handles them.
    """
    loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
    with _handled(
        lambda number: loop.add_signal_handler(number, on_signal, number), loop.remove_signal_handler
    ):
        yield


@contextmanager
def heard_without_loop(on_signal: Callable[[int], None]) -> Iterator[None]:
    """As `heard`, before there is an event loop: `on_signal` interrupts whatever is being done."""

    def handle(number: int, _frame: FrameType | None) -> None:
        on_signal(number)

    with _handled(lambda number: signal.signal(number, handle)):
        yield


@contextmanager
def _handled(
    set_handler: Callable[[int], object], remove_handler: Callable[[int], object] = lambda _number: None
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        set_handler(number)
    try:
        yield
    finally:
        for number, handler in before.items():
            remove_handler(number)
            if handler is not None:  # None: set by C code, and not ours to give back
                signal.signal(number, handler)


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """Ignore a signal meanwhile, and in all processes that are started meanwhile for good.

    In another thread than the main one nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:  # None: as above
            signal.signal(number, before)
