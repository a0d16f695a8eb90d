"""Copies that a job's own code makes of its process (`os.fork`): none of them is the job."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn


def end_copy(error: BaseException | None = None) -> NoReturn:
    """End a forked copy where its code has ended, as a child of `multiprocessing` ends.

    Nothing above it may run a second time: it would write the job's outcome, close connections that it
    shares with the job, and go on with the program that runs the job. An error is printed; an interrupt,
    such as the SIGTERM of a kill, is none.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif isinstance(error, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    elif error is not None:
        code = 1
        with suppress(Exception):  # there may be nobody to read it
            traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or None
            stream.flush()
    os._exit(code & 0xFF)


@contextmanager
def ending_copies() -> Iterator[None]:
    """End each copy that is forked within it where its code leaves this, by whatever way."""
    pid = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() != pid:
            end_copy(error)
        raise
    if os.getpid() != pid:
        end_copy()
