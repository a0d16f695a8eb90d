"""The output of one job on this host, read on from where the last reading ended."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from jobrunner.backends.process.records import RecordDirectory
from jobrunner.errors import BackendError

_BYTES_A_READ = 256 * 1024
_TAIL = 4096  # bytes before the place that was reached, by which the file is known again
_LONGEST_LINE = 1024 * 1024  # bytes; a progress bar may never end its line


class Output:
    """The file of one job's output. Each reading gives what is new, so a long log is read once.

    A file that was rotated is read to its end and then the new one from its start; one that was truncated,
    from its start again. That is seen by its size, or by other text before the place that was reached: only
    where the new output has grown past there and repeats the old exactly, it looks like more of the same.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._at = 0
        """The place that was reached."""
        self._tail = b""
        """What stands right before it."""
        self._rest = b""
        """The start of a line that has not ended yet."""
        self._was_cut = False
        """What was given last is the start of a line whose end may still come."""

    async def lines(self, *, is_last: bool) -> AsyncIterator[list[str]]:
        """Yield the new lines, some at a time.

        A last line without an end is given once a reading finds it as the one before did, or `is_last`.
        Raises `BackendError` where the file cannot be read.
        """
        before = self._rest
        while lines := await asyncio.to_thread(self._read):
            yield lines
        if self._rest and (is_last or self._rest == before):
            rest, self._rest, self._was_cut = self._rest, b"", True
            yield _texts(rest)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> list[str]:
        """Return some more lines; none when there are no more now."""
        try:
            if self._file is None and not self._open():
                return []
            return self._some() or self._of_the_next()
        except OSError as error:
            msg = f"{self._path} cannot be read ({error.strerror}): make it readable for this user"
            raise BackendError(msg) from error

    def _open(self) -> bool:
        """Open the file; False: nothing was ever started that could have written one."""
        try:
            self._file = self._path.open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL, so no path
            directory = str(self._path.parent)
            if RecordDirectory(directory).exists():
                return False
            raise BackendError(f"the record directory {directory} with its output is gone") from None
        return True

    def _some(self) -> list[str]:
        """Return the lines of the next part of the file; none at its end."""
        while data := self._data():
            whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
            texts = _texts(whole) if newline else []
            if texts and self._was_cut and not texts[0]:
                del texts[0]  # all of that line was given before
            self._was_cut = self._was_cut and not newline
            if len(self._rest) >= _LONGEST_LINE:
                texts += _texts(self._rest)
                self._rest, self._was_cut = b"", True
            if texts:
                return texts
        return []

    def _data(self) -> bytes:
        """Return the next part of the file; nothing at its end, or where it is not the file any more.

        One read gives it together with what was read before, so that the two belong together.
        """
        assert self._file is not None  # for the type checker
        data = os.pread(self._file.fileno(), len(self._tail) + _BYTES_A_READ, self._at - len(self._tail))
        if not data.startswith(self._tail):
            return b""
        fresh = data[len(self._tail) :]
        self._at += len(fresh)
        self._tail = data[-_TAIL:]
        return fresh

    def _of_the_next(self) -> list[str]:
        """Return some lines of what has taken the place of all that was read; none where nothing has."""
        assert self._file is not None  # for the type checker
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return []
        here = os.fstat(self._file.fileno())
        if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            self.close()
            if not self._open():
                return []
        elif not self._was_truncated():
            return []
        # A line that was not ended there is not continued here.
        lines = _texts(self._rest) if self._rest else []
        self._at, self._tail, self._rest, self._was_cut = 0, b"", b"", False
        return lines + self._some()

    def _was_truncated(self) -> bool:
        assert self._file is not None  # for the type checker
        return os.pread(self._file.fileno(), len(self._tail), self._at - len(self._tail)) != self._tail


def _texts(data: bytes) -> list[str]:
    # At once and not line by line: a log may have millions of them.
    texts = data.decode(errors="replace").split("\n")
    return [text.rstrip("\r") for text in texts] if b"\r" in data else texts
