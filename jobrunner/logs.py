"""Loggers: structlog's interface on the standard library's logging.

A program that uses jobrunner keeps its own logging configuration: our events arrive there as
ordinary records of the logger `jobrunner`, as `event text key=value`.
"""

import logging
import time
from collections.abc import MutableMapping
from functools import cache
from textwrap import indent
from typing import Any

from jobrunner.known_secrets import without_secrets
from jobrunner.text import text_of
from jobrunner.visible import visible, visible_lines


class Logger:
    """A logger that imports structlog when it first has something to say."""

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: Any) -> None:
        """Say what only a developer asks for."""
        _wrapped(self._name).debug(event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """Say what went as it should."""
        _wrapped(self._name).info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Say what a person may have to look at."""
        _wrapped(self._name).warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Say what a person has to look at; `exc_info=True` adds the traceback."""
        _wrapped(self._name).error(event, **fields)


def get_logger(name: str) -> Logger:
    """Return the logger of a module."""
    return Logger(name)


def log_as_lines() -> None:
    """Show what jobrunner logs, from info on, a line each with its time: what a service leaves behind."""
    logger = logging.getLogger("jobrunner")
    if logger.hasHandlers():
        return
    handler = logging.StreamHandler()
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


@cache
def _wrapped(name: str) -> Any:
    import structlog

    return structlog.wrap_logger(
        logging.getLogger(name),
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
