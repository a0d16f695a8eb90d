"""The small process that stands over one command: it writes down how the command began and ended.

Run by its path with `python -I -S -X utf8`; it imports nothing of jobrunner and little else, since
one of it stays in memory for each running job. Its order comes as JSON on stdin. The process that
was spawned forks the wrapper proper and exits with its answer, so that the wrapper has no tie to
whoever submitted the job:

    submitter ── first process (gone after the answer)
                     └── wrapper (own session) ── command (own process group)

The command is forked first and waits. Then the wrapper links the record `start`, which names both.
Only one can ever be linked: a wrapper that comes late finds another's, or the tombstone of somebody
who proved the job absent, and lets go. Only after the link may the command go.
"""

# pathlib and contextlib would double what the process imports, and so what it holds in memory.
# ruff: noqa: PTH104, PTH108, PTH110, PTH118, PTH123, SIM105

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypedDict

START, EXIT, CANCEL, LOG = "start", "exit", "cancel", "output.log"
CANCEL_SPARE = "cancel.spare"
"""Room made beforehand, so that a full disk can keep no end from being recorded."""
SPARE_SIZE = 4096

Result = Literal["started", "already", "refused", "failed", "busy"]
EXIT_CODES: dict[Result, int] = {"started": 0, "already": 10, "refused": 11, "failed": 12, "busy": 13}
PASSING = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Errors of a host, or of a process, that has no room now for one more process, descriptor or page.

Others end and make room, so a start that met one is tried again. A full disk is none of them: nobody makes
room on it but a person, who is told at once.
"""
_LOG_IS_FULL_BELOW = 64 * 1024  # bytes; the last blocks of a file system are often not to be had
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_RECORD_TRIES = 3600  # one a second
_EXEC_TRIES, _EXEC_REST_S = 20, 0.5  # within the time in which the submitter waits for an answer
_MESSAGE_LENGTH = 600  # letters, each of them 6 bytes at most in JSON: it fits into the spare


class Order(TypedDict):
    """What to run, as the backend writes it to the wrapper's stdin."""

    directory: str
    host: str
    command: list[str]
    cwd: str
    env: dict[str, str]
    stop_grace_s: float


def write_new(directory: str, name: str, record: Mapping[str, Any]) -> None:
    """Create a record with its content, at once, durably. Raises FileExistsError when it stands already."""
    # Opened first: once the name stands, no shortage of descriptors may look as if it did not.
    with _to_sync(directory):
        temporary = _write_temporary(directory, name, record)
        try:
            os.link(temporary, os.path.join(directory, name))
        finally:
            os.unlink(temporary)


def write_over(directory: str, name: str, record: Mapping[str, Any]) -> None:
    """Write a record, at once, durably, in place of one that may stand there."""
    os.rename(_write_temporary(directory, name, record), os.path.join(directory, name))
    sync_directory(directory)


def write_spare(directory: str, spare: str, name: str, record: Mapping[str, Any]) -> None:
    """Write a record into the room that `make_spare` made: needs no space on the disk.

    Raises OverflowError when the record is larger than the room.
    """
    content = json.dumps(record).encode().ljust(SPARE_SIZE)
    if len(content) > SPARE_SIZE:
        msg = f"the record {name} does not fit into its spare room"
        raise OverflowError(msg)
    path = os.path.join(directory, spare)
    _write_file(path, content, os.O_WRONLY)
    os.rename(path, os.path.join(directory, name))
    sync_directory(directory)


def make_spare(directory: str, spare: str) -> None:
    """Make room for a record to come."""
    _write_file(os.path.join(directory, spare), b" " * SPARE_SIZE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def sync_directory(directory: str) -> None:
    """Make the names in a directory durable."""
    with _to_sync(directory):
        pass


class _to_sync:  # noqa: N801  # used as a function; contextlib would double what the process imports
    """Make the names in a directory durable when the block has ended well."""

    def __init__(self, directory: str) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


def _write_temporary(directory: str, name: str, record: Mapping[str, Any]) -> str:
    # Random, since two threads of one process may write the same record.
    path = os.path.join(directory, f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
    _write_file(path, json.dumps(record).encode(), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    return path


def _write_file(path: str, content: bytes, flags: int) -> None:
    descriptor = _open_private(path, flags)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    except OSError:
        if flags & os.O_CREAT:
            os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def _open_private(path: str, flags: int) -> int:
    """Open a file that this user alone may read, whatever the umask."""
    descriptor = os.open(path, flags, 0o600)
    if flags & os.O_CREAT:
        os.fchmod(descriptor, 0o600)
    return descriptor


def utc_text() -> str:
    """Return the host's time in UTC, for people to read."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _started(pid: int) -> int:
    """Return the kernel's start mark of a process, as `jobrunner.identity` reads it."""
    if os.path.exists("/proc/self/stat"):
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
        return int(text[text.rfind(b")") + 2 :].split()[19])
    import calendar
    import subprocess

    environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}
    command = ["ps", "-p", str(pid), "-o", "lstart="]
    moment = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    return calendar.timegm(time.strptime(moment, "%a %b %d %H:%M:%S %Y"))


def readable(text: str) -> str:
    """Return a sentence that fits into a record and that any JSON reader accepts."""
    return text.encode("utf-8", "replace").decode()[:_MESSAGE_LENGTH]


def _why_not_started(order: Order, stage: str, number: int) -> str:
    """Return, in one sentence, why the command did not begin and what to do."""
    program, reason = order["command"][0], os.strerror(number)
    if stage == "cwd":
        return (
            f"the working directory {order['cwd']} cannot be entered ({reason}): create it or correct `cwd`"
        )
    hints = {
        errno.ENOENT: "was not found (or what its first line names): install it or give its full path",
        errno.EACCES: "may not be executed: make it executable or name another",
        errno.ENOEXEC: "is no program: give a script a first line such as #!/bin/sh",
        errno.E2BIG: "got more arguments and environment than the system allows: pass a file instead",
    }
    hint = hints.get(number, f"could not be started ({reason}): mend that and submit it again")
    return f"the command {program!r} {hint}"


def _run_command(order: Order, log: int, go: int, report: int) -> NoReturn:
    """Be the command: wait for the word to go, then become it. What went wrong is told to `report`."""
    stage = "exec"
    try:
        os.setpgid(0, 0)  # a script's `kill 0` must not end the wrapper too
        for number in signal.valid_signals():
            if number not in {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_DFL)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if os.read(go, 1):  # nothing: the wrapper is no more, or came too late
            stage = "cwd"
            os.chdir(order["cwd"])
            stage = "exec"
            _become(order)
    except OSError as error:
        os.write(report, f"{stage} {error.errno}".encode())
    finally:
        os._exit(127)


def _become(order: Order) -> NoReturn:
    """Become the command, also where the host has no room for it for a moment. Raises OSError."""
    for tries_left in reversed(range(_EXEC_TRIES)):
        try:
            os.execvpe(order["command"][0], order["command"], order["env"])  # noqa: S606
        except OSError as error:
            if error.errno not in PASSING or not tries_left:
                raise
        time.sleep(_EXEC_REST_S)
    raise AssertionError  # it has become the command, or has raised


def _is_disk_full(directory: str) -> bool:
    try:
        disk = os.statvfs(directory)
    except OSError:  # the directory is gone: there is nothing left to say about it
        return False
    return disk.f_bavail * disk.f_frsize < _LOG_IS_FULL_BELOW


def _record_end(order: Order, spare: str, *, status: int = 0, error: str | None = None) -> None:
    """Write the record `exit`; try for an hour, since the exit code is nowhere else."""
    directory = order["directory"]
    code = os.waitstatus_to_exitcode(status)
    record = {
        "code": code if code >= 0 and error is None else None,
        "signal": -code if code < 0 else None,
        "error": None if error is None else readable(error),
        "disk_full": _is_disk_full(directory),
        "at": utc_text(),
    }
    for _ in range(_RECORD_TRIES):
        try:
            try:
                write_spare(directory, spare, EXIT, record)
            except FileNotFoundError:  # somebody tidied up
                write_over(directory, EXIT, record)
        except FileNotFoundError:  # the directory itself is gone: nobody is left to be told
            return
        except OSError:  # a disk may be full or read-only for a while
            time.sleep(1)
        else:
            return


def _claim(order: Order, command: int) -> Result:
    """Link the record `start`, or find whose it is already."""
    directory, wrapper = order["directory"], os.getpid()
    record = {
        "by": "wrapper",
        "host": order["host"],
        "wrapper": [wrapper, _started(wrapper)],
        "command": [command, _started(command)],
        "stop_grace_s": order["stop_grace_s"],
        "at": utc_text(),
    }
    try:
        write_new(directory, START, record)
    except FileExistsError:
        return _result_of_other(directory)
    return "started"


def _result_of_other(directory: str) -> Result:
    with open(os.path.join(directory, START), "rb") as file:
        return "already" if json.load(file)["by"] == "wrapper" else "refused"


def _answer(pipe: int, result: Result, message: str = "") -> None:
    try:
        os.write(pipe, json.dumps({"result": result, "message": readable(message)}).encode())
    except BrokenPipeError:  # whoever submitted is gone; the record tells the rest
        pass
    os.close(pipe)


def _detach() -> None:
    """Leave the session and the files of whoever submitted the job, and outlive its signals."""
    os.setsid()
    _adopt_orphans()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    # The exit code is recorded even while a host that shuts down sends SIGTERM to everybody.
    for name in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM", "PIPE", "TSTP", "TTIN", "TTOU"):
        signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)


def _adopt_orphans() -> None:
    """Become the parent of what the command leaves without one, however it has detached itself.

    By that a kill finds also a daemon that has left the session and cleared its environment.
    """
    if sys.platform != "linux":
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):  # a Python without ctypes: the environment shows most
        pass


def _wait_for(command: int) -> int:
    """Return the status of the command, and reap the orphans that end before it."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == command:
            return status


def _stay_with_what_is_left(directory: str) -> None:
    """Keep the orphans of a job that is being cancelled, so that they are found until the last has ended."""
    while os.path.exists(os.path.join(directory, CANCEL)):
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def why_not_begun(directory: str, error: OSError) -> tuple[Result, str]:
    """Return what an error means that kept a command from being started, and a sentence for people.

    Raises the error where a record of a start stands: whose it is, the submitter has to find out.
    """
    if error.errno not in PASSING:
        return "failed", (
            f"the record directory {directory} cannot be written ({error.strerror}): free or repair it"
        )
    if os.path.exists(os.path.join(directory, START)):
        raise error
    return "busy", f"this host has no room for it now ({error.strerror}): it is tried again"


def _begin(order: Order, spares: list[str], answer: int) -> tuple[int, int] | None:
    """Start the command under the record `start`; return its pid and the pipe that tells of a failure.

    None: it may not or cannot be started, and nothing runs. That has been answered.
    """
    directory = order["directory"]
    command, message = 0, ""
    result: Result
    try:
        (wait_go, go), (wait_report, report) = os.pipe(), os.pipe()
    except OSError as error:
        _answer(answer, *why_not_begun(directory, error))
        return None
    try:
        log = _open_private(os.path.join(directory, LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for spare in spares:
            make_spare(directory, spare)
        command = os.fork()
        if command == 0:
            os.close(go)
            _run_command(order, log, wait_go, report)
        os.close(log)
        result = _claim(order, command)
    except OSError as error:
        result, message = why_not_begun(directory, error)
    os.close(report)
    if result == "started":
        os.rename(os.path.join(directory, spares[1]), os.path.join(directory, CANCEL_SPARE))
        try:
            os.write(go, b"!")
        except BrokenPipeError:  # somebody killed it already: that is its end
            pass
        os.close(go)
        return command, wait_report
    os.close(go)
    if command:
        os.waitpid(command, 0)
    for spare in spares:
        try:
            os.unlink(os.path.join(directory, spare))
        except FileNotFoundError:  # the disk was full before it was made
            pass
    _answer(answer, result, message)
    return None


def _supervise(order: Order, answer: int) -> None:
    """Be the wrapper: start the command, tell how that went, wait for its end and record it."""
    try:
        _detach()
    except OSError as error:
        _answer(answer, *why_not_begun(order["directory"], error))
        return
    spares = [f"{name}.spare.{os.getpid()}" for name in (EXIT, CANCEL)]
    begun = _begin(order, spares, answer)
    if begun is None:
        return
    command, wait_report = begun
    failure = os.read(wait_report, 100).decode().split()
    os.close(wait_report)
    trouble = _why_not_started(order, failure[0], int(failure[1])) if failure else None
    if trouble is None:
        _answer(answer, "started")
    os.chdir("/")  # keep no file system from being unmounted
    status = _wait_for(command)
    _record_end(order, spares[0], status=status, error=trouble)
    if trouble is not None:
        _answer(answer, "failed", trouble)
    _stay_with_what_is_left(order["directory"])


def main() -> int:
    """Fork the wrapper, and return only when it has told how the start went."""
    # A parent may have had SIGCHLD ignored (then there are no exit codes) or signals blocked.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    order: Order = json.loads(sys.stdin.buffer.read())  # cut short when the submitter died: an error here
    try:
        wait_answer, answer = os.pipe()
        child = os.fork()
    except OSError as error:
        result, message = why_not_begun(order["directory"], error)
        _answer(1, result, message)
        return EXIT_CODES[result]
    if child == 0:
        try:
            _supervise(order, answer)
        finally:
            os._exit(0)
    os.close(answer)
    text = b""
    while more := os.read(wait_answer, 65536):
        text += more
    os.write(1, text)
    return EXIT_CODES.get(json.loads(text)["result"], 1) if text else 1


if __name__ == "__main__":
    sys.exit(main())
