"""Workers in processes of their own, and as on hosts of their own."""

import subprocess
import sys
import time
from collections.abc import Callable

from tests.cli.conftest import CommandLine

# A host is its name and its machine id: by these two a row tells where it is.
_ON_HOST = """
import socket, sys
from jobrunner import identity
from jobrunner.cli.main import main
name = sys.argv.pop(1)
socket.gethostname = identity.machine_id = lambda: name
main()
"""


class WorkerProcess:
    """A worker in a process of its own; what it says goes to files: its children write there, too.

    `host`: the name of the host that it takes itself to be on; without it, this one.
    """

    def __init__(self, jobrunner: CommandLine, *options: str, host: str = "", **environment: str) -> None:
        self._out, self._words = (
            jobrunner.directory / f"worker {len(jobrunner.started)}.{name}" for name in ("out", "words")
        )
        program = ("-c", _ON_HOST, host) if host else ("-m", "jobrunner.cli.main")
        with self._out.open("w") as out, self._words.open("w") as words:
            self.process = subprocess.Popen(
                [sys.executable, *program, "worker", *options],
                cwd=jobrunner.directory,
                env=jobrunner.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=words,
            )
        jobrunner.started.append(self.process)  # type: ignore[arg-type]  # it is only killed and waited for
        until(lambda: self.out.endswith("\n") or self.process.poll() is not None)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def words(self) -> str:
        return self._words.read_text()

    @property
    def job_id(self) -> str:
        return self.out.splitlines()[0].removeprefix("job ")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return its exit code, and its words."""
        code = self.process.wait(60)
        words = self.words
        assert "Traceback" not in words, words
        return code, words


def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s, "it never came to be"
        time.sleep(0.05)
