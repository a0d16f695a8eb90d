"""The output of one job on this host, read on from where the last reading ended."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from jobrunner.backends.process.records import RecordDirectory
from jobrunner.errors import BackendError

_BYTES_A_READ = 256 * 1024
_LONGEST_LINE = 1024 * 1024  # bytes; a progress bar may never end its line


class Output:
    """The file of one job's output. Each reading gives what is new, so a long log is read once.

    A file that was rotated is read to its end and then the new one from its start; one that was truncated,
    from its start again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
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
            lines = self._some()
            return lines or (self._some() if self._has_moved() else [])
        except OSError as error:
            msg = f"{self._path} cannot be read ({error.strerror}): make it readable for this user"
            raise BackendError(msg) from error

    def _open(self) -> bool:
        """Open the file; False: nothing was ever started that could have written one."""
        try:
            self._file = self._path.open("rb")
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL, so no path
            directory = str(self._path.parent)
            if RecordDirectory(directory).exists():
                return False
            raise BackendError(f"the record directory {directory} with its output is gone") from None
        return True

    def _some(self) -> list[str]:
        """Return the lines of the next part of the file; none at its end."""
        assert self._file is not None  # for the type checker
        while data := self._file.read(_BYTES_A_READ):
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

    def _has_moved(self) -> bool:
        """Whether the path names another file by now, or the file is shorter than what was read of it."""
        assert self._file is not None  # for the type checker
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        here = os.fstat(self._file.fileno())
        if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            self.close()
            return self._open()
        if there.st_size < self._file.tell():
            self._file.seek(0)
            self._rest = b""
            return True
        return False


def _texts(data: bytes) -> list[str]:
    # At once and not line by line: a log may have millions of them.
    texts = data.decode(errors="replace").split("\n")
    return [text.rstrip("\r") for text in texts] if b"\r" in data else texts
