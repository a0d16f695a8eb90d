"""Each run can write down what it was told: `JOBRUNNER_FUZZ_MESSAGES=FILE`."""

import logging
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.fuzz.messages import said_path, write_said

_said_path: Path | None = said_path()


@pytest.fixture(autouse=True)
def _messages_written() -> Iterator[None]:
    yield
    if _said_path is not None:
        write_said(_said_path)


class _CatchAlls(logging.Handler):
    """Keeps the errors that carry where they came from: only what nobody foresaw is logged so."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.caught: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or "Traceback" in record.getMessage():
            self.caught.append(record.getMessage())


@pytest.fixture
def caught() -> Iterator[list[str]]:
    """What a catch-all has caught: a test counts it."""
    handler = _CatchAlls()
    logger = logging.getLogger("jobrunner")
    logger.addHandler(handler)
    yield handler.caught
    logger.removeHandler(handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a report hold only what can be written: an example may have halves of surrogate pairs."""
    report = yield
    if report.longrepr is not None and not report.skipped:
        report.longrepr = _writable(str(report.longrepr))
    report.sections = [(_writable(name), _writable(text)) for name, text in report.sections]
    return report


def _writable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
