"""What goes out: data on standard output, words on standard error, and one live line at the bottom."""

import datetime as dt
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from jobrunner.log_writer import Writer, say_failed
from jobrunner.logs import ToStandardError, hand_over_last_resort, write_words, writer
from jobrunner.text import storable_json
from jobrunner.visible import in_json, on_terminal, visible

_lock = threading.Lock()
"""Of standard output alone: nobody who writes to it waits for whoever writes to standard error."""
_line_is_shown = False
_is_refused = False

_NOBODY = (OSError, ValueError, AttributeError)
"""What a stream raises that is full, closed, or was closed before we began (then it is None)."""
_reports = Writer("jobrunner-report", failed=say_failed)
_GAP = 2
_NARROWEST_LAST = 16
_LEAST_REST = 8


def say(text: str) -> bool:
    """Write one line of data to standard output; False when nobody reads it any more.

    Raises `OSError` where it cannot be written, on a full disk for one.
    """
    return _write(visible(text))


def say_output(*lines: str) -> bool:
    """Write lines that a job has printed: as they are, but to a terminal only what cannot steer it."""
    return write_lines(map(on_terminal, lines) if is_terminal(sys.stdout) else lines)


def write_lines(lines: Iterable[str]) -> bool:
    """Write lines as they are, all at once; False when nobody reads them any more."""
    return _write("\n".join(lines))


def _write(text: str) -> bool:
    try:
        _put(text)
    except BrokenPipeError:
        return False
    return True


def say_json(value: Any) -> bool:
    """Write a value as one line of JSON to standard output; False when nobody reads it any more.

    Raises as `say` does.
    """
    return _write(as_json(value))


def say_spec(spec: Any) -> bool:
    """Write a spec as JSON for people, a line for each of its fields."""
    return _write(as_json(spec, indent=2))


def as_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that shows as plain text wherever it is printed."""
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:  # a number that JSON does not have, which any client of SQLite may have written
        plain = json.loads(json.dumps(value, default=_plain))
        text = json.dumps(storable_json(plain, None), ensure_ascii=False, indent=indent)
    return in_json(text)


def report(text: str) -> bool:
    """Write one line of data about a job, which goes on whether it can be written or not; False: it cannot.

    Why not is said on standard error, once. Where nobody reads it yet, it is not waited for: the job's beats
    may be the caller's. `flush_output` waits for it.
    """
    return _report(visible(text))


def report_json(value: Any) -> bool:
    """Write a value as `report` does, as one line of JSON."""
    return _report(as_json(value))


def _report(text: str) -> bool:
    refused: list[BaseException] = []

    def put() -> None:
        try:
            _put(text)
        except _NOBODY as error:
            refused.append(error)
            _say_refused(error)

    _reports.write(put)
    return not refused


def _say_refused(error: BaseException) -> None:
    global _is_refused  # noqa: PLW0603  # there is one standard output
    if not (_is_refused or isinstance(error, BrokenPipeError)):
        _is_refused = True
        word(f"jobrunner: {_refusal(error)}; the job is not affected.")


def _put(text: str) -> None:
    erase_live_line()
    with _lock:
        if sys.stdout is None:  # it was closed before we began
            raise BrokenPipeError
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except OSError:
            _divert()
            raise


def flush_output() -> None:
    """Write what others' code left in the buffer of standard output; it must not fail at exit.

    The interpreter would end with an exit code of its own then.
    """
    try:
        _reports.flush(None)
    except KeyboardInterrupt:  # nobody reads it, and the thread that hangs holds the stream: no other way out
        os._exit(128 + signal.SIGINT)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _divert()
    except OSError as error:
        _divert()
        word(f"jobrunner: {_refusal(error)}.")
    except ValueError:  # closed by somebody's code
        return


def _divert() -> None:
    """Let what is left in the buffer of standard output go nowhere: else it is written at exit once more."""
    with suppress(*_NOBODY):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _refusal(error: BaseException) -> str:
    return f"standard output cannot be written ({getattr(error, 'strerror', None) or error})"


def word(text: str) -> None:
    """Say one line to the person at the terminal, on standard error; who does not read is not waited for."""
    words(one_line(text) + "\n")


def words(lines: str) -> None:
    """Say whole lines as they are, as `word` does."""
    writer.write(partial(_say_words, lines))


def _say_words(lines: str) -> None:
    _erase()
    write_words(lines)


def live_line(text: str) -> None:
    """Show a line at the bottom of the terminal, in place of the one before."""
    if not writer.is_stuck:  # the next one will say more
        writer.write(partial(_show_line, shortened(one_line(text), width_of_stderr() - 1)))


def _show_line(line: str) -> None:
    global _line_is_shown  # noqa: PLW0603  # there is one terminal
    _erase()
    write_words(line)
    _line_is_shown = True


def erase_live_line() -> None:
    """Take the live line away."""
    if _line_is_shown:
        writer.write(_erase)


def _erase() -> None:
    global _line_is_shown  # noqa: PLW0603
    if _line_is_shown:
        _line_is_shown = False
        write_words("\r\x1b[2K")


class _Words(ToStandardError):
    def emit(self, record: logging.LogRecord) -> None:
        for line in f"jobrunner: {record.getMessage()}".splitlines():  # a traceback has several
            word(line)


def log_as_words() -> None:
    """Show what jobrunner logs as warnings and worse, as words between the live line."""
    hand_over_last_resort()
    logger = logging.getLogger("jobrunner")
    if not logger.hasHandlers():
        logger.addHandler(_Words(logging.WARNING))


def is_terminal(stream: Any) -> bool:
    """Whether a person looks at this stream."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except (ValueError, AttributeError):  # closed
        return False


def width_of_stderr() -> int:
    """Return how many characters fit into a line of the terminal."""
    if os.environ.get("COLUMNS", "").isdigit():
        return max(20, int(os.environ["COLUMNS"]))
    try:
        return max(20, os.get_terminal_size(sys.stderr.fileno()).columns)
    except _NOBODY:
        return 80


def one_line(text: str) -> str:
    """Return the text in one line, without what would steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text).rstrip()


def shortened(text: str, width: int) -> str:
    """Return the text, cut off with an ellipsis where it is longer than `width`."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def row_as_json(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row as a dictionary that JSON can hold; times are ISO 8601 in UTC."""
    return {key: _plain(value) if isinstance(value, dt.datetime) else value for key, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    return str(value)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    `drop`: the lowest is left out first where there is no room; 0: never. `folds`: a long value goes
    on in the next line.
    """

    head: str
    drop: int = 0
    folds: bool = False


def say_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Write a table: fitted to a terminal, its last column shortened; whole where it is piped."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        _say_fitted(columns, cells, shutil.get_terminal_size().columns)
        return
    lines = [[column.head for column in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        if not say(padded.rstrip()):
            return


def _say_fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> None:
    from rich.console import Console
    from rich.table import Table

    kept = _fitting(columns, rows, width)
    widths = _widths(columns, rows)
    rest = max(_LEAST_REST, width - sum(widths[index] for index in kept[:-1]))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for index in kept[:-1]:
        folds = columns[index].folds
        least = None if folds else widths[index] - _GAP
        table.add_column(columns[index].head, no_wrap=not folds, overflow="fold", min_width=least)
    folds = columns[-1].folds
    overflow: Literal["fold", "ellipsis"] = "fold" if folds else "ellipsis"
    table.add_column(columns[-1].head, no_wrap=not folds, overflow=overflow, max_width=rest)
    for row in rows:
        table.add_row(*(_styled(row[index]) for index in kept))
    Console(width=width, highlight=False).print(table)


def _fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the columns that fit beside a last one of a readable width."""
    widths = _widths(columns, rows)
    widths[-1] = min(widths[-1], _NARROWEST_LAST)
    kept = list(range(len(columns)))
    for index in sorted((i for i in kept if columns[i].drop), key=lambda i: columns[i].drop):
        if sum(widths[i] for i in kept) <= width:
            break
        kept.remove(index)
    return kept


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    return [
        max([len(column.head), *(len(row[index]) for row in rows)]) + _GAP
        for index, column in enumerate(columns)
    ]


_STYLES = {"success": "green", "failed": "red", "killed": "yellow", "lost": "red", "running": "cyan"}


def _styled(text: str) -> Any:
    from rich.text import Text

    style = "red" if text.startswith("silent") else _STYLES.get(text, "")
    return Text(text, style=style)


def say_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Write names and values below each other; on a terminal a long value goes on in its own column."""
    if is_terminal(sys.stdout):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, _GAP, 0, 0))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, value in pairs:
            table.add_row(name, Text(one_line(value)))
        Console(highlight=False).print(table)
        return
    longest = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        say(f"{name.ljust(longest)}  {one_line(value)}")
