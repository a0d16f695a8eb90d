"""Files and directories that their owner alone may read, whatever the umask."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from jobrunner.logs import get_logger

log = get_logger(__name__)

_DIRECTORY, _FILE = 0o700, 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")


def make_private_directory(path: Path) -> None:
    """Create a directory, and the parents that are missing, for this user alone. Raises OSError.

    One that exists keeps its mode: a person may have chosen it. Where others may write into it, and so
    put files of their own in the place of ours, that is logged.
    """
    for each in reversed([each for each in (path, *path.parents) if not each.exists()]):
        with suppress(FileExistsError):  # somebody else made it just now
            each.mkdir(mode=_DIRECTORY)
            each.chmod(_DIRECTORY)
    mode = path.stat().st_mode
    if not stat.S_ISDIR(mode):
        raise FileExistsError(errno.EEXIST, "it is not a directory", str(path))
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        log.warning(f"other users may write to {path}: run `chmod go-w` on it", mode=f"{mode & 0o777:o}")


def prepare_sqlite_file(path: Path, *, is_ours: bool) -> None:
    """See that the file of a SQLite database is its owner's alone before SQLite opens it.

    SQLite gives the write-ahead log and its index the mode of the database. `is_ours`: it is the
    embedded database, and is closed to others also where an older version had left it open; elsewhere a
    file that exists keeps the mode that its users gave it. What cannot be done here is SQLite's to report.
    """
    with suppress(OSError):
        _create(path)
    for each in (Path(f"{path}{suffix}") for suffix in _SQLITE_SUFFIXES if is_ours):
        with suppress(OSError):
            found = each.stat()
            if found.st_uid == os.geteuid() and found.st_mode & _OTHERS:
                each.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


def _create(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE)
    try:
        os.fchmod(descriptor, _FILE)
    finally:
        os.close(descriptor)
