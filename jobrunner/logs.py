"""Loggers: structlog's interface on the standard library's logging.

A program that uses jobrunner keeps its own logging configuration: our events arrive there as
ordinary records of the logger `jobrunner`, as `event text key=value`. Its handlers are called by a thread
of ours, one line after the other, and whoever logs waits for that, but not for long: see `log_writer`.
"""

import logging
import threading
import time
from collections.abc import MutableMapping
from contextlib import suppress
from functools import cache, partial
from textwrap import indent
from typing import Any

from jobrunner import log_writer
from jobrunner.known_secrets import without_secrets
from jobrunner.text import text_of
from jobrunner.visible import visible, visible_lines


class Logger:
    """A logger that imports structlog when it first has something to say.

    What it is asked to say raises nothing and ends nothing, whatever the handlers, the filters and the
    record factory of the program do. Only a Ctrl-C in the main thread is passed on: that is the user's.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: Any) -> None:
        """Say what only a developer asks for."""
        _say(self._name, "debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Say what went as it should."""
        _say(self._name, "info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Say what a person may have to look at."""
        _say(self._name, "warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Say what a person has to look at; `exc_info=True` adds the traceback."""
        _say(self._name, "error", event, fields)


def get_logger(name: str) -> Logger:
    """Return the logger of a module."""
    return Logger(name)


def _say_left_out(count: int) -> None:
    get_logger(__name__).warning("lines were left out here: they could not be written in time", lines=count)


writer = log_writer.Writer("jobrunner-log", failed=log_writer.say_failed, left_out=_say_left_out)
"""Writes the log, and what the command line says on standard error."""


class ToStandardError(logging.Handler):
    """Writes records to standard error, through the writer whoever logs them."""

    def createLock(self) -> None:  # noqa: N802  # the base's name
        """Have none: the writer does one thing at a time, and one that hangs must not hold up the exit."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record that passes the filters: as any handler does, without the lock."""
        passed: bool | logging.LogRecord = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = self.format(record) + "\n"
        writer.write(partial(write_words, text))


def write_words(text: str) -> None:
    """Write to standard error, if anybody is there to read it; in the writer's thread."""
    with suppress(OSError, ValueError, AttributeError):
        log_writer.write_error(text)


def log_as_lines() -> None:
    """Show what jobrunner logs, from info on, a line each with its time: what a service leaves behind."""
    hand_over_last_resort()
    logger = logging.getLogger("jobrunner")
    if logger.hasHandlers():
        return
    handler = ToStandardError()
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _say(name: str, level: str, event: str, fields: dict[str, Any]) -> None:
    try:
        getattr(_wrapped(name), level)(event, **fields)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        writer.put(partial(log_writer.say_failed, error))
    writer.settle()


class _Front(logging.Logger):
    """Makes records as the logger of its name does, and leaves what becomes of them to the writer."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._behind = logging.getLogger(name)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # the base's name
        """Whether the logger of this name is."""
        return self._behind.isEnabledFor(level)

    def makeRecord(  # noqa: N802  # the base's name
        self, name: str, level: int, fn: str, lno: int, msg: object, args: Any, *more: Any, **named: Any
    ) -> logging.LogRecord:
        """Make it where something is said: it names the thread, and holds what the program's factory adds."""
        try:
            return self._behind.makeRecord(name, level, fn, lno, msg, args, *more, **named)
        except Exception as error:  # noqa: BLE001  # the program's factory: the line can be had without it
            writer.put(partial(log_writer.say_failed, error))
            return logging.LogRecord(name, level, fn, lno, msg, args, None)

    def handle(self, record: logging.LogRecord) -> None:
        """Have it handled in its turn."""
        writer.put(partial(self._behind.handle, record))


def hand_over_last_resort() -> None:
    """Let nobody wait for what libraries log where no handler is: a beat may be what meets their trouble."""
    if logging.lastResort is not None:
        logging.lastResort = ToStandardError(logging.WARNING)


@cache
def _wrapped(name: str) -> Any:
    import structlog

    return structlog.wrap_logger(
        _Front(name),
        processors=[structlog.stdlib.filter_by_level, structlog.processors.format_exc_info, _render],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    text = visible(text_of(event.pop("event")))
    trace = event.pop("exception", None)
    fields = "".join(f" {key}={visible(text_of(value))}" for key, value in event.items())
    if not trace:
        return without_secrets(f"{text}{fields}")
    # Indented: the message of an error must not begin a line that looks like one of the log.
    return without_secrets(f"{text}{fields}\n{indent(visible_lines(trace), '    ')}")
