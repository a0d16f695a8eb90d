"""Runs `jobrunner` in a process of its own that need not import anything first: forked from one that has.

As a script it is the process that is forked from: it takes orders from its standard input, one at a time.
"""

import importlib
import io
import json
import os
import pkgutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, TextIO

_MOST = 1 << 20
_TIMEOUT_S = 120.0
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_")
"""The beginnings of variables that the interpreter reads when it starts."""


class WarmCommandLine:
    """The process that is forked from, started when it is first used."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None

    def run(
        self, arguments: Sequence[str], directory: Path, environment: Mapping[str, str], stdin: str
    ) -> tuple[int, str, str]:
        """Run `jobrunner` with these arguments, and return its exit code and what it wrote."""
        orders = self._orders or self._begin()
        order = {"arguments": arguments, "directory": str(directory), "environment": dict(environment)}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as words, _readable(stdin) as given:
            socket.send_fds(
                orders, [json.dumps(order).encode()], [given.fileno(), out.fileno(), words.fileno()]
            )
            answer = orders.recv(_MOST)
            assert answer, "the process that is forked from has ended"
            return int(answer), _text_of(out), _text_of(words)

    def close(self) -> None:
        if self._orders is not None and self._process is not None:
            self._orders.close()
            self._process.wait(_TIMEOUT_S)
        self._process = self._orders = None

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_TIMEOUT_S)
        # What the interpreter reads when it starts is as it is here; all else comes with each order.
        with theirs:
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=theirs.fileno(), env=environment
            )
        self._orders = ours
        return ours


def can_be_warm(environment: Mapping[str, str]) -> bool:
    """Whether a process in this environment would start as one that was started in ours."""
    started = {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}
    here = {name: value for name, value in os.environ.items() if name.startswith(_READ_AT_START)}
    here.pop("PYTHONPATH", None)
    return started == here


@contextmanager
def _readable(text: str) -> Iterator[IO[bytes]]:
    """Give a file that is not a terminal, with this text in it."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return io.IncrementalNewlineDecoder(None, translate=True).decode(file.read().decode(), final=True)


# --- the process that is forked from ----------------------------------------------------------------


def _serve() -> None:
    orders = socket.socket(fileno=os.dup(0))
    _import_all("jobrunner.cli")
    while True:
        order, files, _, _ = socket.recv_fds(orders, _MOST, 3)
        if not order:
            return
        child = os.fork()
        if child == 0:
            orders.close()
            _become(json.loads(order), files)
        for each in files:
            os.close(each)
        _, status = os.waitpid(child, 0)
        orders.send(str(os.waitstatus_to_exitcode(status)).encode())


def _import_all(package: str) -> None:
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, f"{package}."):
        importlib.import_module(module.name)


def _become(order: dict[str, Any], files: list[int]) -> None:
    """Go on as a process that was started by this order. Raises `SystemExit`."""
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    os.chdir(order["directory"])
    sys.stdin, sys.stdout, sys.stderr = _anew(sys.stdin, "r"), _anew(sys.stdout, "w"), _anew(sys.stderr, "w")

    from jobrunner.cli.main import main

    sys.path[0] = order["directory"]
    sys.argv = ["jobrunner", *order["arguments"]]
    main()


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
    _serve()
