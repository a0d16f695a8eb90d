"""A host, or a process, that has no room for a moment ends no job: what passes is tried again."""

import asyncio
import errno
import json
import os
import resource
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from jobrunner import identity, procfs
from jobrunner.backends.base import Absent, Found, Observation, RemoteError
from jobrunner.backends.process import backend, wrapper
from jobrunner.backends.process.records import RecordDirectory
from jobrunner.backends.process.spec import check_spec
from jobrunner.errors import BackendError, NotSent, SubmitRejected
from jobrunner.states import Phase
from tests.backends.test_process_backend import Jobs, alive

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PASSING = [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path / "records")
    yield jobs
    for path in jobs.records_dir.glob("*/start"):
        jobs.cancel(str(path.parent))


def raising(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", PASSING)
@pytest.mark.parametrize("place", ["directory", "process"])
def test_a_submission_that_meets_a_passing_shortage_is_not_sent_and_may_be_tried_again(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, number: int, place: str
) -> None:
    token = uuid.uuid4().hex
    with monkeypatch.context() as patch:
        if place == "directory":
            patch.setattr(wrapper, "sync_directory", raising(number))
        else:
            patch.setattr(subprocess, "Popen", raising(number))
        with pytest.raises(NotSent, match="can start no more now"):
            jobs.submit(jobs.sh("true"), token)
    assert jobs.end(jobs.submit(jobs.sh("true"), token)).phase is Phase.SUCCEEDED


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_only_a_person_can_mend_is_a_rejection(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(wrapper, "sync_directory", raising(number))
    with pytest.raises(SubmitRejected, match="cannot be written"):
        jobs.submit(jobs.sh("true"))


@pytest.mark.parametrize("number", PASSING)
def test_a_shortage_proves_nothing_about_a_submission(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(wrapper, "sync_directory", raising(number))
        with pytest.raises(BackendError, match="it is tried again"):
            jobs.find("a-token")
    assert jobs.find("a-token") == Absent()


# From too few for Python itself to start up to enough.
@pytest.mark.parametrize("descriptors", range(3, 16))
def test_a_wrapper_that_may_open_few_files_starts_its_command_once_or_says_that_it_did_not(
    jobs: Jobs, tmp_path: Path, descriptors: int
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    spec = jobs.sh(f"echo run >> {tmp_path}/runs")
    directory = RecordDirectory.for_token(str(jobs.records_dir), "a-token")
    directory.make()
    order = backend._order(check_spec(spec), directory)
    command = [sys.executable, "-I", "-S", "-X", "utf8", wrapper.__file__]
    done = subprocess.run(
        command, input=json.dumps(order).encode(), capture_output=True, preexec_fn=limit, check=False
    )
    answer = json.loads(done.stdout)["result"] if done.stdout else None
    if answer is None:  # in doubt: the runner proves what became of it, and takes another token
        found = jobs.find("a-token")
        if found == Absent():
            directory = RecordDirectory(jobs.submit(spec))
        else:
            assert isinstance(found, Found)
    elif answer == "busy":
        assert jobs.submit(spec, "a-token") == directory.path
    else:
        assert answer == "started"
    assert jobs.end(directory.path).phase is Phase.SUCCEEDED
    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.mark.parametrize("number", PASSING)
def test_a_command_that_the_host_has_no_room_for_is_begun_when_it_has(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class HasBegun(BaseException):
        pass

    answers = iter([number, number, None])

    def execute(*_: object) -> None:
        if (answer := next(answers)) is not None:
            raise OSError(answer, os.strerror(answer))
        raise HasBegun

    monkeypatch.setattr(wrapper, "_EXEC_REST_S", 0.0)
    monkeypatch.setattr(os, "execvpe", execute)
    order = backend._order(check_spec(jobs.sh("true")), RecordDirectory("/nowhere"))
    with pytest.raises(HasBegun):
        wrapper._become(order)
    monkeypatch.setattr(os, "execvpe", raising(number))
    with pytest.raises(OSError, match=os.strerror(number)):  # it has tried long enough
        wrapper._become(order)


@linux_only
def test_a_look_and_a_kill_wait_for_descriptors(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    it = jobs.submit(jobs.sh("trap '' TERM; echo $$; while :; do sleep 0.05; done", stop_grace_s=0.2))
    ended = jobs.submit(jobs.sh("true"))
    command = alive(int(jobs.until_printed(it)[0]))
    jobs.cancel(it)
    jobs.end(ended)
    with monkeypatch.context() as patch:
        patch.setattr(procfs, "open", raising(errno.EMFILE), raising=False)
        trouble = jobs.cancel(it)
        assert isinstance(trouble, RemoteError)
        assert "Too many open files" in str(trouble)
        looked = asyncio.run(jobs.backend.fetch([it, ended]))
        assert isinstance(looked[it], RemoteError)
        assert isinstance(looked[ended], Observation)  # its record says it all
    assert jobs.end(it, cancelling=True).phase is Phase.CANCELLED
    assert command.standing() == "dead"


@linux_only
def test_a_shortage_gives_the_host_no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = identity.boot_id()
    monkeypatch.setattr(identity, "boot_id", cache(identity.boot_id.__wrapped__))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", raising(errno.EMFILE))
        with pytest.raises(OSError, match="Too many open files"):
            identity.boot_id()
    assert identity.boot_id() == known
