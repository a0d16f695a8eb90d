"""Printing a log that is read again and again: each line once, in the order in which it was read."""

import datetime as dt
from collections import Counter, deque
from collections.abc import AsyncIterable
from typing import Any

from jobrunner.backends.base import LogLine
from jobrunner.cli.output import as_json, row_as_json, say_json, say_output, word, write_lines

_LATE = dt.timedelta(seconds=10)
"""How much later than a younger line an older one may reach the log."""


class LogPrinter:
    """Prints what is new in each look at a log.

    Lines that carry their times need not all be read again: `since` says from when on. Those that carry
    none are told apart by their number, so that the whole log is read each time.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.printed = 0
        self._as_json = as_json
        self._is_timed = True
        self._newest: dt.datetime | None = None
        self._recent: deque[LogLine] = deque()
        self._numbers: Counter[str] = Counter()
        self._held: tuple[int, LogLine] | None = None
        self._source: str | None = None

    @property
    def since(self) -> dt.datetime | None:
        """From when on there may be lines that were not printed yet; None: from the beginning."""
        return self._newest - _LATE if self._newest is not None and self._is_timed else None

    async def print_all(self, parts: AsyncIterable[list[str]]) -> bool:
        """Print lines that carry no time and are read but once; False when nobody reads them any more."""
        async for texts in parts:
            self.printed += len(texts)
            if self._as_json:
                goes_on = write_lines([as_json(self._as_row(LogLine(text))) for text in texts])
            else:
                goes_on = say_output(*texts)
            if not goes_on:
                return False
        return True

    async def print_new(self, lines: AsyncIterable[LogLine], *, is_last: bool) -> bool:
        """Print what is new in `lines`, the log from `since` on; False when nobody reads it any more.

        The last line may still be growing where it has no time: it is held back until the next look
        finds it unchanged, or until `is_last`. What reading raises is raised after the lines before it.
        """
        by_time, since = self._is_timed, self.since
        # A source may be named only once there are several, so it does not tell lines apart.
        before = Counter((line.at, line.text) for line in self._recent)
        numbers: Counter[str] = Counter()
        held: LogLine | None = None
        try:
            async for line in lines:
                if held is not None and not self._print(held):
                    return False
                held = None
                numbers[line.source] += 1
                if line.at is None:
                    self._is_timed = False
                elif since is not None and line.at < since:
                    continue  # more was read than was asked for
                if line.at is not None and by_time:
                    is_new = before[line.at, line.text] == 0
                    before[line.at, line.text] -= not is_new
                else:
                    is_new = numbers[line.source] > self._numbers[line.source]
                if is_new and line.at is None:
                    held = line
                elif is_new and not self._print(line):
                    return False
        finally:
            goes_on = held is None or self._release(held, numbers[held.source], is_last=is_last)
        return goes_on

    def _release(self, held: LogLine, number: int, *, is_last: bool) -> bool:
        """Print the last line if it is whole."""
        before, self._held = self._held, (number, held)
        return not (is_last or before == self._held) or self._print(held)

    def _print(self, line: LogLine) -> bool:
        self.printed += 1
        self._numbers[line.source] += 1
        if line.at is not None:
            self._remember(line, line.at)
        if self._as_json:
            return say_json(self._as_row(line))
        if self._source not in (None, line.source):
            word(f"-- {line.source or 'the job itself'} --")
        self._source = line.source
        return say_output(line.text)

    @staticmethod
    def _as_row(line: LogLine) -> dict[str, Any]:
        return row_as_json({"text": line.text, "at": line.at, "source": line.source or None})

    def _remember(self, line: LogLine, at: dt.datetime) -> None:
        self._newest = at if self._newest is None else max(at, self._newest)
        self._recent.append(line)
        while (oldest := self._recent[0].at) is not None and oldest < self._newest - _LATE:
            self._recent.popleft()
