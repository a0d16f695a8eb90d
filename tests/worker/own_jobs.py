"""Jobs with code of their own, as a child process meets them."""

import asyncio
import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobrunner.models import BaseJob


class _Own(BaseJob, abstract=True):
    """Notes in `notes` that it runs, and where."""

    def __init__(self, *args: Any, notes: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.notes = notes

    def note(self, words: str) -> None:
        if self.notes:
            with Path(self.notes).open("a") as file:
                file.write(f"{words} {os.getpid()}\n")


class Good(_Own):
    def _execute(self) -> None:
        self.note("ran")
        self.heartbeat()


class OnGpu(Good):
    """Asks for what no machine here has."""

    resources = {"GPU": 1}  # noqa: RUF012  # as a user writes it


class Bad(_Own):
    def _execute(self) -> None:
        raise ValueError("no luck")


class Segfault(_Own):
    def _execute(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Vanish(_Own):
    def _execute(self) -> None:
        os._exit(3)


class Patient(_Own):
    """Beats until it is killed, and then cleans up."""

    def _execute(self) -> None:
        self.note("ran")
        while True:
            self.heartbeat()

    def on_kill(self) -> None:
        self.note("cleaned up")


class Hang(_Own):
    """Never beats again, heeds no SIGTERM, and has a child of its own."""

    def _execute(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            self.note("grandchild")
            time.sleep(600)
        self.note("ran")
        time.sleep(600)


class Compute(_Own):
    """Never beats again, and leaves SIGTERM as it is."""

    def _execute(self) -> None:
        self.note("ran")
        time.sleep(600)


class Deny(_Own):
    """As `Compute`, and says of every interruption that all went well."""

    def _execute(self) -> None:
        self.note("ran")
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            sys.exit(0)


class Stops(_Own):
    """As `Compute`, and stops in good order where it gets SIGTERM: it has its own handler."""

    def _execute(self) -> None:
        told = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: told.set())
        self.note("ran")
        while not told.wait(0.05):
            pass

    def on_kill(self) -> None:
        self.note("cleaned up")


class StopsLoop(_Own):
    """As `Stops`, by way of an event loop."""

    def _execute(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        self.note("ran")
        await told.wait()


class Complains(_Own):
    """As `Stops`, and its handler raises an error of its own."""

    def _execute(self) -> None:
        def complain(*_: object) -> None:
            raise RuntimeError("told to stop")

        signal.signal(signal.SIGTERM, complain)
        self.note("ran")
        time.sleep(600)


class Swallows(_Own):
    """As `Compute`, and returns as if all were done, whatever is raised in it."""

    def _execute(self) -> None:
        self.note("ran")
        with suppress(BaseException):
            time.sleep(600)


class GoesOn(_Own):
    """Swallows what is raised in it, and works on to its end."""

    def _execute(self) -> None:
        self.note("ran")
        with suppress(BaseException):
            time.sleep(600)
        self.heartbeat(only_if_necessary=True)
        self.note("worked on")


class WithDaemon(Patient):
    """Has a daemon with a session of its own and no parent of the job's, which heeds no SIGTERM."""

    def _execute(self) -> None:
        stubborn = f"trap '' TERM; echo daemon $$ >> {self.notes}; while :; do sleep 0.1; done"
        subprocess.run(["sh", "-c", '(setsid sh -c "$0" &)', stubborn], check=True)
        super()._execute()


class WithLostDaemon(Patient):
    """As `WithDaemon`, and nothing in the daemon's environment says whose it is."""

    def _execute(self) -> None:
        stubborn = f"trap '' TERM; echo daemon $$ >> {self.notes}; while :; do sleep 0.1; done"
        subprocess.run(["sh", "-c", '(setsid env -i sh -c "$0" &)', stubborn], check=True)
        super()._execute()


class HangOnKill(Patient):
    """Beats until it is killed, and then cleans up for longer than its grace."""

    def on_kill(self) -> None:
        time.sleep(self.heartrate * 10)
        self.note("cleaned up")


class ExitOnKill(Patient):
    """Beats until it is killed, and then leaves without a word."""

    def on_kill(self) -> None:
        os._exit(0)


class LeavesThread(_Own):
    """Returns at once, and leaves a thread, and a process, that do not end."""

    def _execute(self) -> None:
        subprocess.Popen(["sh", "-c", f"echo left $$ >> {self.notes}; exec sleep 600"])
        threading.Thread(target=time.sleep, args=(600,)).start()
        self.note("ran")


class LeavesThreadAndFails(_Own):
    """As `LeavesThread`, and fails."""

    def _execute(self) -> None:
        threading.Thread(target=time.sleep, args=(600,)).start()
        self.note("ran")
        raise ValueError("no luck")


class HangsAtExit(_Own):
    """Returns at once, and hangs in what is called at the end of its process; it heeds no SIGTERM."""

    def _execute(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        atexit.register(time.sleep, 600)
        self.note("ran")


class Again(_Own, adoptable=True):
    """Stands running twice; the first run dies."""

    def _execute(self) -> None:
        self.note("ran")
        if len(Path(self.notes).read_text().splitlines()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        self.heartbeat()


def a_path(job_class: type[BaseJob]) -> str:
    """Return the path by which `jobrunner start` would name a class."""
    return f"{__name__}:{job_class.__name__}"
