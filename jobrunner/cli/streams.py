"""The standard streams, some of which may be closed: by `>&-`, by a service manager, by a daemon."""

import os
import sys
from contextlib import suppress
from typing import TextIO


def make_usable() -> None:
    """Lead closed standard streams to the null device, and write what cannot be encoded as escapes.

    A free descriptor 0, 1 or 2 would go to the next file or connection that is opened, and what a library
    or a child writes to "standard error" would then be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            os.set_inheritable(opened, True)
    # Standard input stays None where it is closed, so that a command that needs it can say so.
    sys.stdout = sys.stdout or _null()
    sys.stderr = sys.stderr or _null()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a stream that a test put there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  # it lasts as long as the process
