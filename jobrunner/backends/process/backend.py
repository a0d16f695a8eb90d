"""Runs commands on this host, in processes that live on when the runner does not."""

import asyncio
import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobrunner.backends.base import (
    Absent,
    Found,
    Gone,
    LogLine,
    Observation,
    Patience,
    RemoteError,
    Unsure,
    ensure_in_time,
)
from jobrunner.backends.process import wrapper
from jobrunner.backends.process.cancelling import Canceller
from jobrunner.backends.process.looking import Look
from jobrunner.backends.process.output import Output
from jobrunner.backends.process.records import RecordDirectory, marked
from jobrunner.backends.process.spec import ProcessSpec, check_spec
from jobrunner.backends.process.tree import RECORD_VARIABLE
from jobrunner.errors import BackendError, NotSent, SpecError, SubmitRejected, SubmitTooLate
from jobrunner.identity import host_id, unixname
from jobrunner.record_places import is_in_sight, parts_of
from jobrunner.settings import ConnectionSettings, get_settings

_WRAPPER = Path(wrapper.__file__)
_ANSWER_S = 25.0  # how long the wrapper may take to tell how the start went


class ProcessBackend:
    """The processes of this host as an outside system. An external id is the path of a record directory."""

    bulk_limit = 1000
    # The record stands before `submit` returns and nothing takes it away; the rest is for a disk
    # that is being mounted again.
    patience = Patience(call_s=30.0, appear_s=10.0, vanish_s=60.0)

    def __init__(self, records_dir: Path | None = None) -> None:
        """`records_dir`: where the records of what is submitted here go; None: this user's data directory."""
        self._records_dir = records_dir
        self._canceller = Canceller()

    @classmethod
    def from_connection(cls, connection: ConnectionSettings) -> "ProcessBackend":  # noqa: ARG003  # it has no options
        """Return the backend of this host."""
        return cls()

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        """Start the command and return its external id; with a token that was used, the id of then.

        Raises `SubmitRejected` when it cannot be started here, `NotSent` when this process or the host has
        no room for it now, `SubmitTooLate` when `find` proved it absent first.
        """
        return await asyncio.to_thread(_submit, _parsed(spec), self._records_here(), token)

    async def baseline(self, spec: Mapping[str, Any]) -> str:  # noqa: ARG002
        """Return where the record of a submission from here will be: whoever adopts the job looks there.

        Raises `SubmitRejected` where there can be no place, or it cannot be written down.
        """
        return await asyncio.to_thread(_marked, self._records_here())

    async def find(
        self,
        spec: Mapping[str, Any],
        token: str,
        since: dt.datetime,  # noqa: ARG002
        *,
        baseline: str | None = None,
        is_held: object = None,  # noqa: ARG002  # a token names one directory, so no other job has it
    ) -> Found | Absent | Unsure:
        """Prove what became of a submission, by making sure that a late one can no longer start.

        `baseline`: where its record is. Without it the submission was never begun, or by jobrunner 0.1,
        which kept the place in the spec.
        """
        parsed = _parsed(spec)
        return await asyncio.to_thread(_find, baseline or parsed.records_dir or self._records_here(), token)

    def _records_here(self) -> str:
        place = str(self._records_dir or get_settings().records_dir)
        try:
            place.encode()
        except UnicodeEncodeError:
            msg = f"the data directory {place!r} is not valid UTF-8, so no database can hold it: rename it"
            raise SubmitRejected(msg) from None
        return place

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Observation | Gone | RemoteError]:
        """Look at the records and the processes of the jobs."""
        look = Look(self._canceller.unwritten)
        answers = await asyncio.to_thread(lambda: {each: look.at(each) for each in ids})
        self._canceller.forget(each for each, answer in answers.items() if _is_final(answer))
        return answers

    async def cancel(self, ids: Sequence[str], reason: str) -> Mapping[str, RemoteError]:
        """Send SIGTERM to each job's processes, and SIGKILL in the first call after the spec's grace."""
        return await asyncio.to_thread(self._cancel, ids, reason)

    async def logs(self, external_id: str, since: dt.datetime | None) -> AsyncIterator[LogLine]:  # noqa: ARG002
        """Yield what the command has printed so far. The lines carry no time, so `since` leaves none out."""
        output = self.output(external_id)
        try:
            async for texts in output.lines(is_last=True):
                for text in texts:
                    yield LogLine(text)
        finally:
            output.close()

    def output(self, external_id: str) -> Output:
        """Return the output of a job, to be read on again and again: what is new costs no more than it is."""
        return Output(log_path(external_id))

    async def close(self) -> None:
        """Do nothing: all that is held is in the records."""

    def _cancel(self, ids: Sequence[str], reason: str) -> Mapping[str, RemoteError]:
        troubles = self._canceller.cancel(ids, reason)
        return {external_id: RemoteError(text) for external_id, text in troubles.items()}


def log_path(external_id: str) -> Path:
    """Return where the output of a job is, standard output and error in one file."""
    return Path(RecordDirectory(external_id).log)


def _parsed(spec: Mapping[str, Any]) -> ProcessSpec:
    try:
        return check_spec(dict(spec))
    except SpecError as error:
        raise SubmitRejected(str(error)) from None


def _submit(spec: ProcessSpec, records_dir: str, token: str) -> str:
    directory = RecordDirectory.for_token(records_dir, token)
    try:
        directory.make()
        order = _order(spec, directory)
    except OSError as error:
        if error.errno in wrapper.PASSING:
            raise NotSent(_shortage(error)) from error
        raise SubmitRejected(_directory_trouble(directory, error)) from error
    result, message = _spawn(order, directory.path)
    if result in {"started", "already"}:
        return directory.path
    if result == "refused":
        msg = "another runner had already proved this submission absent: nothing was started"
        raise SubmitTooLate(msg)
    if result == "busy":
        raise NotSent(message)
    raise SubmitRejected(message)


def _order(spec: ProcessSpec, directory: RecordDirectory) -> wrapper.Order:
    environment = {**os.environ, **spec.env, RECORD_VARIABLE: directory.path}
    environment.pop("JOBRUNNER_CHILD", None)  # the command is no part of the job whose code started it
    return {
        "directory": _as_utf8(directory.path),
        "host": host_id(),
        "command": [_as_utf8(word) for word in spec.command],
        "cwd": _as_utf8(spec.cwd or _own_directory()),
        "env": {_as_utf8(name): _as_utf8(value) for name, value in environment.items()},
        "stop_grace_s": spec.stop_grace_s,
    }


def _own_directory() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        msg = "the runner's own working directory was removed: give the job a `cwd`"
        raise SubmitRejected(msg) from None


def _as_utf8(text: str) -> str:
    """Return the text whose bytes, in the wrapper's UTF-8 mode, are those of `text` here."""
    return os.fsencode(text).decode("utf-8", "surrogateescape")


def _spawn(order: wrapper.Order, path: str) -> tuple[str, str]:
    """Run the wrapper of the record directory `path` and return its answer: a result and a message."""
    command = [sys.executable, "-I", "-S", "-X", "utf8", str(_WRAPPER)]
    # Where this process is part of another job, its wrapper must not count as part of that one, too.
    environment = {**os.environ, RECORD_VARIABLE: path}
    environment.pop("JOBRUNNER_CHILD", None)
    ensure_in_time()
    try:
        # A session of its own: Ctrl-C in the runner's terminal must not cut the start in two.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
    except OSError as error:
        if error.errno in wrapper.PASSING:
            return "busy", _shortage(error)
        return "failed", f"Python itself, {sys.executable}, cannot be started ({error.strerror}): repair it"
    with process:
        try:
            answer, trouble = process.communicate(json.dumps(order).encode(), timeout=_ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            msg = (
                f"the wrapper of {order['directory']} did not say within {_ANSWER_S:.0f} s whether it started"
            )
            raise BackendError(msg) from None
    try:
        told = json.loads(answer)
    except ValueError:
        last = trouble.decode(errors="replace").strip().rpartition("\n")[2] or "no word of why"
        msg = f"the wrapper of {order['directory']} died while it started the command: {last}"
        raise BackendError(msg) from None
    return told["result"], told["message"]


def _marked(records_dir: str) -> str:
    try:
        return marked(records_dir)
    except OSError as error:
        raise SubmitRejected(_directory_trouble(RecordDirectory(records_dir), error)) from error


def _find(baseline: str, token: str) -> Found | Absent:
    place = parts_of(baseline)[1] or ""
    if not is_in_sight(baseline):
        # Elsewhere: a tombstone here would prove nothing, and the command would run twice.
        msg = f"its records in {place} cannot be seen from here: look from where it was submitted"
        raise BackendError(msg)
    directory = RecordDirectory.for_token(place, token)
    try:
        directory.make()
        first = directory.refuse()
    except OSError as error:
        raise BackendError(_directory_trouble(directory, error)) from error
    return Found(directory.path) if first is not None and first.by == "wrapper" else Absent()


def _shortage(error: OSError) -> str:
    return f"this process can start no more now ({error.strerror}): it is tried again"


def _directory_trouble(directory: RecordDirectory, error: OSError) -> str:
    if error.errno in wrapper.PASSING:
        return _shortage(error)
    place = error.filename or directory.path
    return (
        f"the record directory {directory.path} cannot be written ({error.strerror}: {place}): "
        f"let {unixname()} write there, free space, or choose another `data_dir`"
    )


def _is_final(answer: Observation | Gone | RemoteError) -> bool:
    if isinstance(answer, Observation):
        return answer.phase.is_final
    return isinstance(answer, Gone) and answer.certain
