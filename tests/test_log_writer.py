"""Logging that raises or hangs: whoever says something goes on, and lines are written in their order."""

import contextvars
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from jobrunner import log_writer, logs
from jobrunner.log_writer import Writer
from jobrunner.logs import get_logger
from tests.helpers import until

log = get_logger("jobrunner.test")


@contextmanager
def handled(handler: logging.Handler | logging.Filter) -> Iterator[None]:
    """Let the program's logging have this handler, or this filter."""
    logger = logging.getLogger("jobrunner.test")
    is_filter = isinstance(handler, logging.Filter)
    (logger.addFilter if is_filter else logger.addHandler)(handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        (logger.removeFilter if is_filter else logger.removeHandler)(handler)  # type: ignore[arg-type]


class Calls(logging.Handler):
    """Does what it is told with each record."""

    def __init__(self, emit: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        self._emit(record)


class Hanging(logging.Handler):
    """A handler that hangs until it is free, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.hangs = threading.Event(), threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.hangs.set()
        self.free.wait(60)
        self.lines.append(record.getMessage())


@pytest.fixture(autouse=True)
def _nothing_was_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "_said_failures", set())


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    handler = Hanging()
    with handled(handler):
        yield handler
        handler.free.set()
        assert logs.writer.flush(60)


@pytest.mark.parametrize(
    "error", [ConnectionError("the log shipper is away"), SystemExit(3), KeyboardInterrupt(), BaseException()]
)
@pytest.mark.parametrize("place", ["handler", "filter"])
def test_logging_that_raises_is_said_once_and_raises_nothing(
    capsys: pytest.CaptureFixture[str], error: BaseException, place: str
) -> None:
    def fail(_record: logging.LogRecord) -> bool:
        raise error

    class Refusing(logging.Filter):
        filter = staticmethod(fail)  # type: ignore[assignment]

    with handled(Calls(fail) if place == "handler" else Refusing()):  # type: ignore[arg-type]
        log.warning("first", error=error)
        log.error("second", exc_info=error)
    assert logs.writer.flush(60)
    words = capsys.readouterr().err
    assert words.count("a logging handler of this program") == 1
    assert type(error).__name__ in words


def test_another_kind_of_error_is_said_too(capsys: pytest.CaptureFixture[str]) -> None:
    errors = iter([ConnectionError("away"), ConnectionError("still away"), KeyError("field")])

    def fail(_record: logging.LogRecord) -> None:
        raise next(errors)

    with handled(Calls(fail)):
        for number in range(3):
            log.warning("event", number=number)
    assert logs.writer.flush(60)
    words = capsys.readouterr().err
    assert [kind in words for kind in ("'away'", "'still away'", "'field'")] == [True, False, True]


def test_a_secret_in_what_a_handler_raises_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    from jobrunner import known_secrets

    known_secrets.remember("hunter2-secret")

    def fail(_record: logging.LogRecord) -> None:
        raise ConnectionError("https://me:hunter2-secret@shipper\nforged")

    try:
        with handled(Calls(fail)):
            log.warning("event")
        assert logs.writer.flush(60)
    finally:
        known_secrets.forget_all()
    words = capsys.readouterr().err
    assert "hunter2" not in words
    assert words.count("\n") == 1


def test_a_line_is_kept_where_the_programs_record_factory_raises(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object, **_kwargs: object) -> logging.LogRecord:
        raise KeyError("request_id")

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(fail)
    try:
        log.warning("event", job=1)
    finally:
        logging.setLogRecordFactory(before)
    assert caplog.messages == ["event job=1"]
    assert "request_id" in capsys.readouterr().err


def test_what_a_line_is_about_survives_the_way_to_the_handlers(caplog: pytest.LogCaptureFixture) -> None:
    request = contextvars.ContextVar("request", default="none")
    seen: list[tuple[str, str | None]] = []

    def say() -> None:
        request.set("r-17")
        try:
            int("x")
        except ValueError:
            log.error("failed", job=1, exc_info=True)

    with handled(Calls(lambda record: seen.append((request.get(), record.threadName)))):
        thread = threading.Thread(target=say, name="speaker")
        thread.start()
        thread.join()
    assert seen == [("r-17", "speaker")]
    assert "failed job=1" in caplog.messages[0]
    assert "invalid literal" in caplog.messages[0]


def test_a_line_stands_where_it_was_handled_before_who_said_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in range(200):
        log.warning("event", number=number)
        assert len(caplog.records) == number + 1


def test_a_handler_that_hangs_holds_up_who_logs_once_and_loses_no_line(hanging: Hanging) -> None:
    began_s = time.monotonic()
    for number in range(100):
        log.warning("event", number=number)
    assert time.monotonic() - began_s < 20 * log_writer.PATIENCE_S, "each line was waited for"
    assert hanging.lines == []
    hanging.free.set()
    assert logs.writer.flush(60)
    assert hanging.lines == [f"event number={number}" for number in range(100)]


def test_what_is_too_much_to_wait_is_left_out_and_counted_in_its_place() -> None:
    free, hangs = threading.Event(), threading.Event()
    done: list[object] = []

    def hang() -> None:
        hangs.set()
        free.wait(60)

    writer = Writer(
        "test", failed=done.append, left_out=lambda count: done.append(f"left out {count}"), most=3
    )
    writer.put(hang)
    assert hangs.wait(60)
    for number in range(10):
        writer.put(lambda number=number: done.append(number))  # type: ignore[misc]
    free.set()
    until(lambda: len(done) == 4)
    writer.write(lambda: done.append("after"))
    assert writer.flush(60)
    assert done == [0, 1, 2, "left out 7", "after"]


def test_what_a_handler_itself_logs_is_said_at_once() -> None:
    lines: list[str] = []

    def emit(record: logging.LogRecord) -> None:
        lines.append(record.getMessage())
        if len(lines) == 1:
            log.warning("from the handler")

    with handled(Calls(emit)):
        log.warning("event")
    assert lines == ["event", "from the handler"]


def test_a_forked_copy_says_its_own_lines_and_none_of_the_others(hanging: Hanging) -> None:
    log.warning("before")
    assert hanging.hangs.wait(60)
    hanging_in_copy = hanging
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover  # another process
        hanging_in_copy.free.set()
        hanging_in_copy.lines.clear()
        log.warning("in the copy")
        logs.writer.flush(60)
        os.write(write, "|".join(hanging_in_copy.lines).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        assert file.read() == "in the copy"
    assert os.waitpid(pid, 0)[1] == 0


def test_ctrl_c_of_the_user_is_passed_on(hanging: Hanging) -> None:
    def press_ctrl_c() -> None:
        hanging.hangs.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Thread(target=press_ctrl_c)
    timer.start()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # it may come a little after the line
        log.warning("event")
        timer.join()
        time.sleep(60)
    timer.join()


_ENDS = """
import logging, os, sys, threading
from jobrunner.logs import get_logger, log_as_lines
read, write = os.pipe()
os.dup2(write, 2)
os.set_blocking(2, False)
try:
    while True:
        os.write(2, b"x" * 4096)
except BlockingIOError:
    pass
os.set_blocking(2, True)
log_as_lines()
log = get_logger("jobrunner.test")
log.warning("nobody reads this")
log.warning("nor this")
logging.getLogger("sqlalchemy.pool").error("nor what a library says")
print("done")
sys.exit(7)
"""


def test_a_process_whose_standard_error_nobody_reads_ends_with_its_own_code() -> None:
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_ENDS)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "done\n")
    assert time.monotonic() - began_s < 30
