"""Runs programs in processes of their own that need not import anything first: forked from one that has.

As a script it is the process that is forked from: `warm.py MODULE…` imports these, and takes orders from its
standard input. What is read when an interpreter starts, such as PYTHONPATH, cannot be ordered.
"""

import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TextIO

_MOST = 1 << 20
_TIMEOUT_S = 120.0
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_")


class WarmProcess:
    """A process that was forked: of `subprocess.Popen`, what tests need."""

    def __init__(
        self, origin: "Warm", pid: int, stdout: IO[str] | None = None, stderr: IO[str] | None = None
    ) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None
        self._origin = origin
        self._ends = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises `subprocess.TimeoutExpired`."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read all that it writes until its end. Raises `subprocess.TimeoutExpired`."""
        reads = [_Read(pipe) for pipe in (self.stdout, self.stderr) if pipe is not None]
        self.wait(timeout)
        for read in reads:  # what it started may hold them open
            read.join(timeout)
            if read.is_alive():
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        out, words = (read.text for read in reads)
        return out, words

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._ends, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and select.select([self._ends], [], [], timeout_s)[0]:
            self.returncode = self._origin.code_of(self.pid)
            os.close(self._ends)
        return self.returncode


class _Read(threading.Thread):
    """Reads a pipe to its end, and closes it."""

    def __init__(self, pipe: IO[str]) -> None:
        super().__init__(daemon=True)
        self._pipe, self.text = pipe, ""
        self.start()

    def run(self) -> None:
        if not self._pipe.closed:
            with self._pipe:
                self.text = self._pipe.read()


class Warm:
    """A process that has imported modules, and is forked from; it is started when it is first used."""

    def __init__(self, *modules: str, options: Sequence[str] = (), path: Path | None = None) -> None:
        """`modules`: what is imported; of one that ends with `.*`, all that is in it.

        `options`: of the interpreter. `path`: where it looks for modules, beside where it always does.
        """
        self._modules, self._options, self._path = modules, options, path
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None

    def start(
        self, program: str, arguments: Sequence[str], directory: Path, environment: Mapping[str, str]
    ) -> WarmProcess:
        """Start a program, a file or a module by its name, that reads nothing and writes to pipes."""
        out, words = os.pipe(), os.pipe()
        with Path(os.devnull).open("rb") as nothing:
            pid = self._fork(program, arguments, directory, environment, [nothing.fileno(), out[1], words[1]])
        for each in (out, words):
            os.close(each[1])
        return WarmProcess(self, pid, os.fdopen(out[0]), os.fdopen(words[0]))

    def run(
        self,
        program: str,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        stdin: str = "",
    ) -> tuple[int, str, str]:
        """Run a program to its end, and return its exit code and what it wrote."""
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as words,
        ):
            given.write(stdin.encode())
            given.seek(0)
            files = [given.fileno(), out.fileno(), words.fileno()]
            pid = self._fork(program, arguments, directory, environment, files)
            code = WarmProcess(self, pid).wait(_TIMEOUT_S)
            return code, _text_of(out), _text_of(words)

    def code_of(self, pid: int) -> int:
        """Return the exit code of a process that has ended."""
        return self._ask({"wait": pid})

    def close(self) -> None:
        if self._orders is not None and self._process is not None:
            self._orders.close()
            self._process.wait(_TIMEOUT_S)
        self._process = self._orders = None

    def _fork(
        self,
        program: str,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        files: Sequence[int],
    ) -> int:
        order = {"program": program, "arguments": arguments, "directory": str(directory)}
        return self._ask(order | {"environment": dict(environment)}, files)

    def _ask(self, order: Mapping[str, Any], files: Sequence[int] = ()) -> int:
        orders = self._orders or self._begin()
        socket.send_fds(orders, [json.dumps(order).encode()], files)
        answer = orders.recv(_MOST)
        assert answer, "the process that is forked from has ended"
        return int(answer)

    def _begin(self) -> socket.socket:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.settimeout(_TIMEOUT_S)
        with theirs:
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            if self._path is not None:
                environment["PYTHONPATH"] = str(self._path)
            self._process = subprocess.Popen(
                [sys.executable, *self._options, __file__, *self._modules],
                stdin=theirs.fileno(),
                env=environment,
            )
        return self._orders


def can_be_warm(environment: Mapping[str, str]) -> bool:
    """Whether an interpreter in this environment would start as one that was started in ours."""
    started = {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}
    here = {name: value for name, value in os.environ.items() if name.startswith(_READ_AT_START)}
    here.pop("PYTHONPATH", None)
    return started == here and hasattr(os, "pidfd_open")


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return io.IncrementalNewlineDecoder(None, translate=True).decode(file.read().decode(), final=True)


# --- the process that is forked from ----------------------------------------------------------------


def _serve(modules: Sequence[str]) -> None:
    orders = socket.socket(fileno=os.dup(0))
    for each in modules:
        _import(each)
    while True:
        order, files, _, _ = socket.recv_fds(orders, _MOST, 3)
        if not order:
            return
        told = json.loads(order)
        if "wait" in told:
            _, status = os.waitpid(told["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                orders.close()
                _become(told, files)
                return
        for file in files:
            os.close(file)
        orders.send(str(answer).encode())


def _import(name: str) -> None:
    package = importlib.import_module(name.removesuffix(".*"))
    if name.endswith(".*"):
        for part in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(part.name)


def _become(order: dict[str, Any], files: list[int]) -> None:
    """Go on as a process that was started by this order."""
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    os.chdir(order["directory"])
    sys.stdin, sys.stdout, sys.stderr = _anew(sys.stdin, "r"), _anew(sys.stdout, "w"), _anew(sys.stderr, "w")
    program = order["program"]
    sys.argv = [program, *order["arguments"]]
    if program.endswith(".py"):
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path[0] = order["directory"]
        sys.modules.pop(program, None)  # else runpy warns that it is there already
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _anew(stream: TextIO, mode: Literal["r", "w"]) -> TextIO:
    """Return a stream like this one, with nothing in its buffer."""
    return open(
        stream.fileno(),
        mode,
        buffering=1 if stream is sys.stderr else -1,  # a line at a time
        encoding=stream.encoding,
        errors=stream.errors,
        closefd=False,
    )


if __name__ == "__main__":
    _serve(sys.argv[1:])
