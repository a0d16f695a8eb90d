"""`make demo`: the main job, on the embedded database, in about ten seconds.

Every line after a `$` is run as a process of its own, as you would type it. Each step waits for what it
needs to see, not for a time, so that it goes the same way on a slow machine.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from jobrunner.errors import JobrunnerError

_PATIENCE_S = 600.0  # for what hangs: far above what a busy machine needs
_COUNT = 'until [ -e "$DEMO/enough" ]; do echo line $((i += 1)); sleep 1; done'
_FOREVER = "while true; do echo still here; sleep 1; done"


class DemoError(JobrunnerError):
    """The demo did not go as it should."""


def main() -> int:
    """Run the demo and return 0, or say on which line it went wrong and return 1."""
    with tempfile.TemporaryDirectory(prefix="jobrunner-demo-") as directory:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("JOBRUNNER_")}
        environment |= {"JOBRUNNER_DATA_DIR": directory, "DEMO": directory}
        try:
            _play(environment, Path(directory, "enough"))
        except DemoError as error:
            print(f"\nThe demo went wrong: {error}", file=sys.stderr)  # noqa: T201
            return 1
    return 0


def _play(environment: dict[str, str], enough: Path) -> None:
    _say("jobrunner keeps each job as a row with a heartbeat; here in SQLite, in a directory of its own.")
    _say("A real command becomes a supervised job, in one terminal:")
    counting = _Background(environment, "start", "process", "--name", "count", "--", "sh", "-c", _COUNT)
    _until(environment, "line 1", "logs", "1")

    _say("In another terminal: is it alive? (exit code 0 says yes)")
    alive = ("check", "--job-type", "ProcessMonitorJob")
    _show(alive)
    print(_until(environment, "alive", *alive), end="", flush=True)  # noqa: T201

    _say("A second one, which would run for ever ...")
    forever = _Background(environment, "start", "process", "--name", "forever", "--", "sh", "-c", _FOREVER)
    _until(environment, "still here", "logs", "2")
    _say("... is killed from another process: a flag in the database, obeyed by its owner wherever it runs:")
    _run(environment, 0, "kill", "2", "--reason", "the demo has seen enough", "--wait")
    forever.expect(3)

    _say("What there is:")
    _run(environment, 0, "list")

    _say("The first one ends by itself, once the file that it waits for is there, and `start` exits so:")
    _until(environment, "line 3", "logs", "1")
    enough.touch()
    counting.expect(0)
    _run(environment, 0, "logs", "1")
    _run(environment, 0, "list")
    _say("Next: the README's first real job, or `jobrunner --help`.")


class _Background:
    """A command in a terminal of its own: what it prints is shown as it comes."""

    def __init__(self, environment: dict[str, str], *words: str) -> None:
        _show(words)
        self._words = words
        self._process = subprocess.Popen(
            _command(words), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            print(f"    [{self._words[3]}] {line.rstrip()}", flush=True)  # noqa: T201

    def expect(self, code: int) -> None:
        """Wait for the end, with this exit code."""
        try:
            found = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise DemoError(f"`jobrunner {shlex.join(self._words)}` did not end") from None
        self._reader.join()
        _check(self._words, found, code)
        print(f"    [{self._words[3]}] exit code {found}", flush=True)  # noqa: T201


def _run(environment: dict[str, str], code: int, *words: str) -> None:
    _show(words)
    try:
        done = subprocess.run(_command(words), env=environment, check=False, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise DemoError(f"`jobrunner {shlex.join(words)}` did not end") from None
    _check(words, done.returncode, code)


def _until(environment: dict[str, str], output: str, *words: str) -> str:
    """Repeat a command, unseen, until it succeeds with `output` in what it prints, which is returned."""
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            done = subprocess.run(
                _command(words), env=environment, check=False, capture_output=True, timeout=_PATIENCE_S
            )
        except subprocess.TimeoutExpired:
            raise DemoError(f"`jobrunner {shlex.join(words)}` did not end") from None
        printed = done.stdout.decode(errors="replace")
        if done.returncode == 0 and output in printed:
            return printed
        if time.monotonic() > give_up:
            trouble = done.stderr.decode(errors="replace").strip() or f"never printed {output!r}"
            raise DemoError(f"`jobrunner {shlex.join(words)}`: {trouble}")
        time.sleep(0.1)


def _check(words: tuple[str, ...], found: int, expected: int) -> None:
    if found != expected:
        raise DemoError(f"`jobrunner {shlex.join(words)}` exited with {found}, not {expected}")


def _command(words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "jobrunner.cli.main", *words]


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)  # noqa: T201


def _show(words: tuple[str, ...]) -> None:
    print(f"  $ jobrunner {shlex.join(words)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
