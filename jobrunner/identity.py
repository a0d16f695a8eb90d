"""Who runs a job: this host, this boot of it, and a process that cannot be mistaken for another.

A pid alone names whatever process holds that number now. The boot, the pid and the moment at which
the kernel started the process name one process for ever, whatever the clocks do.
"""

import errno
import os
import pwd
import re
import socket
import subprocess
import sys
import time
from calendar import timegm
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Self

from jobrunner import procfs
from jobrunner.text import storable

Standing = Literal["alive", "dead", "unknown"]

CHILD_VARIABLE = "JOBRUNNER_CHILD"
"""In the environment of a worker's child and of what it starts: the runner_id under which it runs its job."""

PIDS = range(1, 2**31)
"""What can be a pid: 0 and negative numbers mean groups to kill(2), and greater ones fit no system's."""

_LINUX = sys.platform == "linux"
_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
# A state beginning with one of these is a process that has ended: zombie, or dead for good.
_ENDED_STATES = ("Z", "X", "x")
_LISTINGS = 4  # of the process table at most, for one view of it
_PS_COLUMNS = "pid=,ppid=,stat=,lstart="


def hostname() -> str:
    """Return the host's name as it calls itself."""
    return storable(socket.gethostname(), 250)


def unixname() -> str:
    """Return the name of the user that this process acts as, or the number where it has no name."""
    return username(uid())


def username(number: int) -> str:
    """Return the name of the user with this number, or the number where it has no name here.

    Where it came from a row, it may be anything that a client of SQLite has written.
    """
    try:
        return pwd.getpwuid(number).pw_name
    except (KeyError, OverflowError, TypeError):  # a container's passwd file may not have the number
        return str(number)


def uid() -> int:
    """Return the number of the user that this process acts as: whose processes it may signal."""
    return os.geteuid()


@cache
def machine_id() -> str:
    """Return what stays the same over restarts of this machine; its hostname where it has nothing better."""
    found = _linux_machine_id() if _LINUX else _mac_machine_id()
    return (found or hostname()).replace("/", "_")


@cache
def boot_id() -> str:
    """Return what is new with each start of this machine; empty where it cannot be read."""
    if _LINUX:
        return _text_of(Path("/proc/sys/kernel/random/boot_id"))
    return _output_of("sysctl", "-n", "kern.bootsessionuuid").strip()


@cache
def pid_namespace() -> str:
    """Return the inode of the pid namespace that this process's pids are numbers of; may be empty."""
    if not _LINUX:
        return ""
    try:
        link = str(Path("/proc/self/ns/pid").readlink())  # "pid:[4026531836]"
    except OSError as error:  # no /proc, or one that hides it: then there is no telling
        procfs.pass_over(error)
        return ""
    return link.partition("[")[2].rstrip("]")


def can_name_processes() -> bool:
    """Whether the boot and the namespace of this process's pids are known: only then can they be compared."""
    return bool(boot_id()) and (not _LINUX or bool(pid_namespace()))


def host_id() -> str:
    """Return "machine/boot/pidns": where pids of this process's world can be looked up."""
    return f"{machine_id()}/{boot_id()}/{pid_namespace()}"


def same_machine(host_id_a: str, host_id_b: str) -> bool:
    """Whether two host ids are of one machine, perhaps with a restart between them."""
    return host_id_a.partition("/")[0] == host_id_b.partition("/")[0]


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One line of the process table. `started`: kernel ticks since boot (Linux), else seconds UTC.

    `state`: of the process; of one whose main thread has ended while others go on, that of one of these.
    """

    pid: int
    parent: int
    session: int
    state: str
    started: int

    @property
    def has_ended(self) -> bool:
        """Whether only its exit code is left of it: a zombie."""
        return self.state.startswith(_ENDED_STATES)

    @property
    def is_stopped(self) -> bool:
        """Whether a signal such as SIGSTOP holds it."""
        return self.state.startswith("T")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, not to be mistaken for a later one with its pid.

    `started` is the kernel's own start mark (see `ProcessStat`). `namespace` is the pid namespace
    of the pid; empty where the system has none.
    """

    boot_id: str
    pid: int
    started: int
    namespace: str = ""

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of the process that has `pid` now, or None when there is none.

        Raises PermissionError when there is one that this process may not look at, OSError for want of
        descriptors or memory.
        """
        stat = stat_of(pid)
        return None if stat is None else cls(boot_id(), pid, stat.started, pid_namespace())

    @classmethod
    def from_started_at(cls, pid: int, started_at: str, namespace: str = "") -> Self:
        """Return the identity kept as a pid and a `started_at`. Raises ValueError for any other text."""
        boot, _, started = started_at.rpartition(":")
        return cls(boot, pid, int(started), namespace)

    @property
    def started_at(self) -> str:
        """What a row keeps beside the pid: "boot:ticks"."""
        return f"{self.boot_id}:{self.started}"

    def to_text(self) -> str:
        """Return the whole identity in one line, for `from_text`."""
        return f"{self.pid}@{self.namespace}@{self.started_at}"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the identity that `to_text` wrote. Raises ValueError for any other text."""
        pid, namespace, started_at = text.split("@")
        return cls.from_started_at(int(pid), started_at, namespace)

    def standing(self) -> Standing:
        """Whether the process lives. "unknown" where it cannot be told: such a process is never killed.

        Only a process of this boot and this pid namespace can be found dead: of another boot, which may be
        another machine's, or in another container, the number means another process here, or none.
        """
        try:
            if not self.boot_id or self.boot_id != boot_id():
                return "unknown"
            if self.namespace != pid_namespace() or not can_name_processes():
                return "unknown"
            stat = stat_of(self.pid)
        except OSError:  # it may not be looked at, or this process lacks the means to
            return "unknown"
        return "dead" if stat is None or stat.started != self.started or stat.has_ended else "alive"


def stat_of(pid: int) -> ProcessStat | None:
    """Return the line of `pid` in the process table, or None when there is no such process.

    Raises PermissionError when there is one that this process may not look at, OSError for want of
    descriptors or memory.
    """
    if pid not in PIDS:
        return None
    stat = _linux_stat(pid) if _LINUX else next(_ps("-p", str(pid)), None)
    if stat is None and _exists(pid):
        msg = f"process {pid} exists, but this user may not look at it"
        raise PermissionError(msg)
    return stat


def process_table() -> dict[int, ProcessStat]:
    """Return every process that this user may look at, by pid.

    Raises OSError where it cannot be read to its end: what is missing from it would count as ended.
    """
    found = _linux_table() if _LINUX else {stat.pid: stat for stat in _ps("-ax")}
    if os.getpid() not in found:
        raise OSError(errno.EAGAIN, "the process table cannot be read: it does not hold this process")
    return found


def _linux_table() -> dict[int, ProcessStat]:
    found: dict[int, ProcessStat] = {}
    seen: set[int] = set()
    # What was started while the table was read, by a process that has ended since, is in a later listing.
    for _ in range(_LISTINGS):
        fresh = procfs.pids() - seen
        if not fresh:
            break
        seen |= fresh
        stats = (_linux_stat(pid) for pid in fresh)
        found |= {stat.pid: stat for stat in stats if stat is not None}
    return found


def variable_of(pid: int, name: str) -> str | None:
    """Return a variable of the environment that a process was started with.

    None: it has none of that name, or its environment cannot be read (another user's, hidden, cleared).
    Raises OSError for want of descriptors or memory.
    """
    if not _LINUX:
        return _mac_variable(pid, name)
    text = procfs.environment_of(pid)
    if not text:
        return None
    _, found, rest = (b"\0" + text).partition(b"\0" + os.fsencode(name) + b"=")
    return os.fsdecode(rest.partition(b"\0")[0]) if found else None


def arguments_of(pid: int) -> list[str]:
    """Return the command line of a process; empty where it cannot be read."""
    import psutil

    try:
        return psutil.Process(pid).cmdline()
    except (psutil.Error, OSError):
        return []


def may_signal(pid: int) -> bool:
    """Whether this user may signal the process that has `pid` now; one that is gone needs no signal."""
    if pid not in PIDS:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def described(pid: int) -> str:
    """Return a process as a person finds it: its pid, its name and its user."""
    import psutil

    name, user = "", ""
    with suppress(psutil.Error, OSError):
        name = f" ({psutil.Process(pid).name()})"
    with suppress(psutil.Error, OSError, KeyError):
        user = f" of {username(psutil.Process(pid).uids().effective)}"
    return f"process {pid}{name}{user}"


def _mac_variable(pid: int, name: str) -> str | None:
    import psutil

    try:
        return psutil.Process(pid).environ().get(name)
    except (psutil.Error, OSError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's; /proc may hide it (hidepid), kill does not
        return True
    return True


def _linux_stat(pid: int) -> ProcessStat | None:
    found = procfs.stat_of(pid)
    if found is None:  # gone, or going while we read, or hidden: `stat_of` asks kill which of them
        return None
    return ProcessStat(pid, found.parent, found.session, found.state.decode(), found.started)


def _ps(*selection: str) -> Iterator[ProcessStat]:
    """Yield what ps(1) says; on macOS its start time is the kernel's own, whatever the clock did since."""
    for line in _output_of("ps", *selection, "-o", _PS_COLUMNS).splitlines():
        pid, parent, state, started = line.split(None, 3)
        try:
            session = os.getsid(int(pid))
        except OSError:  # it ended just now, or may not be asked: then it is in no session of ours
            session = -1
        moment = timegm(time.strptime(started.strip(), "%a %b %d %H:%M:%S %Y"))
        yield ProcessStat(int(pid), int(parent), session, state, moment)


def _output_of(*command: str) -> str:
    """Return the output of a system command in the C locale and UTC; empty when it failed."""
    environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # not there, or hanging: as good as no answer
        return ""
    return done.stdout


def _linux_machine_id() -> str:
    return next(
        (text for path in _MACHINE_ID_FILES if re.fullmatch(r"[0-9a-f]{32}", text := _text_of(path))), ""
    )


def _mac_machine_id() -> str:
    found = re.search(
        r'"IOPlatformUUID" = "([^"]+)"', _output_of("ioreg", "-rd1", "-c", "IOPlatformExpertDevice")
    )
    return found[1] if found else ""


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:  # absent, as in most containers, or unreadable: the caller has a fallback
        procfs.pass_over(error)  # which must not be kept where it only cannot be opened now
        return ""


def who() -> str:
    """Return this user on this host, as the actor of a kill or a start."""
    return f"{unixname()}@{hostname()}"


def can_serve(bound_to: str | None, record: str | None = None) -> bool:
    """Whether a job bound to that host (its `host_id`) can be served from here.

    It is this host, or the same machine before it restarted, proved by a record on its own disk: then
    what was recorded there tells how the job ended. Another container on this machine sees neither its
    processes nor its files. `record`: the job's own record directory, where it is known.
    """
    if bound_to is None or bound_to == host_id():
        return True
    if not same_machine(bound_to, host_id()) or bound_to.split("/")[1:2] == [boot_id()]:
        return False
    from jobrunner.restarts import is_boot_of_this_machine  # here: few processes ever see a restart

    return is_boot_of_this_machine(bound_to, record)
