"""Loggers: structlog's interface on the standard library's logging.

A program that uses jobrunner keeps its own logging configuration: our events arrive there as
ordinary records of the logger `jobrunner`, as `event text key=value`.
"""

import logging
from collections.abc import MutableMapping
from functools import cache
from typing import Any


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
    text = str(event.pop("event"))
    trace = event.pop("exception", None)
    fields = "".join(f" {key}={value}" for key, value in event.items())
    return f"{text}{fields}\n{trace}" if trace else f"{text}{fields}"
