"""Paths that settings name, and the directories of the user, where there may be none.

A service user, a container or a cron job may have no HOME and no entry in the password database. Then
`~` stands for nothing, and must not become a directory of that name.
"""

import errno
import os
import re
import select
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of a path's two slashes only one is left
LARGEST_FILE = 1024 * 1024
"""Bytes of what is read by its path: settings, a spec, a token, certificates."""
_NO_FILE = "it is not a regular file"
_TEMPORARY = ("/var/tmp", "/tmp")  # noqa: S108  # a private directory in it, whose owner is checked


def absolute(given: str | os.PathLike[str]) -> Path:
    """Return the path with `~` expanded, and absolute. Raises ValueError where it cannot be."""
    text = os.fspath(given)
    if not text.strip():
        raise ValueError("is empty: name a path")
    if _URL.match(text):  # it may hold a password, which a directory would be named after
        raise ValueError("is a URL: name a path")
    if "\0" in text:
        raise ValueError("holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds bytes that are not UTF-8") from None
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~, and that user has no home directory: give the whole path") from None
    try:
        return path.absolute()
    except FileNotFoundError:
        raise ValueError("is relative, and the working directory was removed: give the whole path") from None


def user_data_dir() -> Path | None:
    """Return where this user's data belongs, `~/.local/share/jobrunner` on Linux; None without a home."""
    import platformdirs  # here: it is not needed where the directories are set

    return _usable(lambda: platformdirs.user_data_dir("jobrunner"))


def config_dirs() -> Iterator[Path]:
    """Yield this user's configuration directory, where there is one, and the system's."""
    import platformdirs  # here, as above

    own = _usable(lambda: platformdirs.user_config_dir("jobrunner"))
    if own is not None:
        yield own
    for directory in platformdirs.site_config_dir("jobrunner", multipath=True).split(os.pathsep):
        if directory.startswith("/"):
            yield Path(directory)


def _usable(directory: Callable[[], str]) -> Path | None:
    try:
        path = Path(directory())
    except RuntimeError:  # a newer platformdirs; an older one leaves the ~ as it is
        return None
    return path if path.is_absolute() else None


def is_file_to_read(path: Path) -> bool:
    """Whether something is there under this name; False too where its directory may not be searched."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    except OSError:
        return True  # opening it says what is wrong
    return True


def is_directory(path: Path) -> bool:
    """Whether this user finds a directory there; False too where what leads to it may not be searched."""
    return os.path.isdir(path)  # noqa: PTH112  # a Path raises then, on Pythons before 3.14


def is_there(path: Path) -> bool:
    """Whether this user finds anything there; False too where what leads to it may not be searched."""
    return os.path.exists(path)  # noqa: PTH110  # as above


def can_be_made(directory: Path) -> bool:
    """Whether this user can write to the directory, or can make it."""
    for place in (directory, *directory.parents):
        if os.path.lexists(place):
            return is_directory(place) and os.access(place, os.W_OK | os.X_OK)
    return False


def is_made(directory: Path) -> bool:
    """Make the directory where it is missing; False where this user cannot."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


def private_temporary() -> Path:
    """Return a directory of this user's alone that needs no home: the same for each process on this host.

    It is made when it is not there. Raises ValueError where it cannot be made, or belongs to somebody else.
    """
    for parent in _candidates():
        directory = parent / f"jobrunner-{os.geteuid()}"
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            pass
        except OSError:
            continue
        found = directory.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022:
            return directory
        raise ValueError(f"{directory} belongs to somebody else, or others may write to it")
    raise ValueError("there is no temporary directory that this user may write to")


def _candidates() -> Iterator[Path]:
    """Yield the lasting places first: TMPDIR may differ from one session to the next."""
    given = os.environ.get("TMPDIR", "")
    for name in (*_TEMPORARY, *([given] if given.startswith("/") else [])):
        if os.access(name, os.W_OK | os.X_OK):
            yield Path(name)


def read_file(path: str | os.PathLike[str], *, wait_s: float | None = None) -> bytes:
    """Return the content of a file of 1 MiB at most; raises OSError for what is none, or cannot be read.

    Neither a pipe that nobody writes into nor a device without an end holds it up. `wait_s`: read pipes and
    devices as well, and wait that long at most for each piece of what a pipe brings.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123  # opened without waiting
        os.set_blocking(descriptor, True)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if wait_s is None and not stat.S_ISREG(mode) and not _is_null(descriptor):
            raise OSError(errno.EINVAL, _NO_FILE, os.fspath(path))
        found = b""
        while len(found) <= LARGEST_FILE:
            if wait_s is not None and stat.S_ISFIFO(mode) and not _is_ready(descriptor, wait_s):
                raise TimeoutError(errno.ETIMEDOUT, f"nothing came within {wait_s:g} s", os.fspath(path))
            part = file.read(LARGEST_FILE + 1 - len(found))
            if not part:
                return found
            found += part
    raise OSError(errno.EFBIG, "it is larger than 1 MiB", os.fspath(path))


def check_file(path: Path) -> None:
    """See that a path that others read is a file of 1 MiB at most; raises OSError as `read_file`."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, _NO_FILE, str(path))
    if found.st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, "it is larger than 1 MiB", str(path))


def _is_ready(descriptor: int, wait_s: float) -> bool:
    """Wait until a read of a pipe returns at once, and at most so long."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * wait_s))


def _is_null(descriptor: int) -> bool:
    """Whether it is /dev/null: an empty file, for who wants none."""
    found = os.fstat(descriptor)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116


def is_file(path: Path) -> bool:
    """Whether a file is there; a name that no file can have names none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
