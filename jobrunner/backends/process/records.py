"""The record directory of one job: what its wrapper and its cancellers wrote down.

`<records_dir>/<token>/` holds `start` (who runs it, or that nobody ever may), `exit` (how it
ended), `cancel` (that it was asked to end, and which processes it had) and `output.log`.
A record is written once and whole, so that a reader never sees half of one.
"""

import errno
import os
import re
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from signal import Signals
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobrunner.backends.process import wrapper
from jobrunner.errors import BackendError
from jobrunner.identity import PIDS, ProcessIdentity, host_id
from jobrunner.private import make_private_directory
from jobrunner.record_places import MARK, mark_of, with_mark

_TOKEN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")

Mark = tuple[Annotated[int, Field(ge=0, lt=PIDS.stop)], int]
"""A pid and the kernel's start mark of its process."""


class RecordError(BackendError):
    """A record cannot be read: that says nothing about the job."""


class _Record(BaseModel):
    # A newer version may have written more.
    model_config = ConfigDict(extra="ignore", frozen=True)

    at: str
    """The host's time in UTC, for people to read."""


class StartRecord(_Record):
    """Who runs the job: `by` "wrapper"; or, `by` "refused", that it was proved absent and never may start."""

    by: Literal["wrapper", "refused"]
    host: Annotated[str, Field(pattern=r"^[^/]*/[^/]*/[^/]*$")]
    """The host's id (`identity.host_id`), of three parts."""
    wrapper: Mark = (0, 0)
    command: Mark = (0, 0)
    stop_grace_s: float = 0.0

    def identity(self, mark: Mark) -> ProcessIdentity:
        """Return the identity of one of the job's processes."""
        _, boot, namespace = self.host.split("/")
        return ProcessIdentity(boot, mark[0], mark[1], namespace)


class ExitRecord(_Record):
    """How the command ended: its exit code, the signal that ended it, or why it never began."""

    code: int | None
    signal: int | None
    error: str | None
    disk_full: bool

    @property
    def signal_name(self) -> str | None:
        """The name of the signal, such as SIGTERM."""
        if self.signal is None:
            return None
        try:
            return Signals(self.signal).name
        except ValueError:  # a real-time signal has only a number
            return f"signal {self.signal}"


class CancelRecord(_Record):
    """That the job was asked to end. `asked_s`: on the clock of `jobrunner.clock.monotonic_s`."""

    reason: str
    asked_s: float
    killed_s: float | None = None
    """When SIGKILL was due, on the same clock; None: not yet."""
    tree: frozenset[Mark] = Field(default=frozenset())
    """Every process that the job was seen to have since: also those that leave its session later."""


def marked(place: str) -> str:
    """Make a place of records with its mark, where it is not there yet; return what a row keeps of it.

    Raises OSError.
    """
    mark = mark_of(place)
    if mark is not None:
        os.utime(Path(place, MARK))  # what removes old files shall not take it for one
    else:
        make_private_directory(Path(place))
        new = {"mark": uuid.uuid4().hex}
        try:
            wrapper.write_new(place, MARK, new)
        except FileExistsError:  # another process was first, or it is damaged
            if mark_of(place) is None:
                wrapper.write_over(place, MARK, new)
        mark = mark_of(place)
        if mark is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(Path(place, MARK)))
    return with_mark(place, mark)


_AnyRecord = TypeVar("_AnyRecord", bound=_Record)


@dataclass(frozen=True)
class RecordDirectory:
    """The record directory of one job; its path is the job's external id."""

    path: str

    @classmethod
    def for_token(cls, records_dir: str, token: str) -> "RecordDirectory":
        """Return the directory of a submission. Raises ValueError for a token that is no file name."""
        if not _TOKEN.fullmatch(token):
            msg = f"the token {token!r} cannot name a directory: use letters, digits, dashes and dots"
            raise ValueError(msg)
        return cls(str(Path(records_dir, token)))

    @cached_property
    def log(self) -> str:
        """The path of the command's output."""
        return str(Path(self.path, wrapper.LOG))

    def make(self) -> None:
        """Make the directory, readable by this user alone, where it is not there yet. Raises OSError."""
        path = Path(self.path)
        make_private_directory(path.parent)
        try:
            path.mkdir(mode=0o700)
            path.chmod(0o700)
        except FileExistsError:
            if not path.is_dir():
                raise
        wrapper.sync_directory(str(path.parent))  # also of one that an earlier try made and could not sync
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self.path)

    def exists(self) -> bool:
        """Whether the directory is there. Raises RecordError when that cannot be told."""
        try:
            return Path(self.path).stat() is not None
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL, so no path of ours
            return False
        except OSError as error:
            raise RecordError(self._trouble(self.path, error)) from error

    def refuse(self) -> StartRecord | None:
        """Write the tombstone that no wrapper can get past; return what stood there first, if anything did.

        Raises OSError when it cannot be written, RecordError when what stands there cannot be read.
        """
        tombstone = {"by": "refused", "host": host_id(), "at": wrapper.utc_text()}
        try:
            wrapper.write_new(self.path, wrapper.START, tombstone)
        except FileExistsError:
            return self.start()
        return None

    def start(self) -> StartRecord | None:
        """Return the record `start`, or None. Raises RecordError, as all of these."""
        return self._read(wrapper.START, StartRecord)

    def exit(self) -> ExitRecord | None:
        """Return the record `exit`, or None."""
        return self._read(wrapper.EXIT, ExitRecord)

    def cancel(self) -> CancelRecord | None:
        """Return the record `cancel`, or None."""
        return self._read(wrapper.CANCEL, CancelRecord)

    def write_cancel(self, record: CancelRecord) -> None:
        """Write the record `cancel`, on a full disk into the room made for it. Raises OSError."""
        content = record.model_dump(mode="json")
        try:
            wrapper.write_over(self.path, wrapper.CANCEL, content)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            try:
                wrapper.write_spare(self.path, wrapper.CANCEL_SPARE, wrapper.CANCEL, content)
            except OverflowError:  # so many processes: the session still leads to most of them
                short = content | {"tree": content["tree"][:50]}
                wrapper.write_spare(self.path, wrapper.CANCEL_SPARE, wrapper.CANCEL, short)

    def _read(self, name: str, kind: type[_AnyRecord]) -> _AnyRecord | None:
        path = f"{self.path}/{name}"
        try:
            with open(path, "rb") as file:  # noqa: PTH123  (read for thousands at a time)
                return kind.model_validate_json(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RecordError(self._trouble(path, error)) from error
        except ValidationError as error:
            msg = f"the record {path} is damaged: look at it, and at the disk that it is on"
            raise RecordError(msg) from error
        except ValueError:  # a NUL in the path: no directory of ours
            return None

    @staticmethod
    def _trouble(path: str, error: OSError) -> str:
        return f"{path} cannot be read ({error.strerror}): make it readable for this user"
