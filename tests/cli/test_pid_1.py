"""jobrunner as the first process of a container."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.backends.test_process_backend import until

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("unshare") is None
    or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0,
    reason="makes a pid namespace: this user or this system cannot",
)


def as_pid_1(code: str) -> subprocess.Popen[str]:
    program = f"from jobrunner.cli.init import leave_pid_1\nleave_pid_1()\n{textwrap.dedent(code)}"
    return subprocess.Popen([*UNSHARE, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_orphans_are_reaped_and_the_exit_codes_of_its_own_children_are_its_own() -> None:
    with as_pid_1(
        """
        import os, subprocess, sys, time
        from jobrunner.identity import process_table
        own = subprocess.Popen(["sh", "-c", "exit 7"])
        for _ in range(5):
            subprocess.run(["sh", "-c", "sleep 0.05 & exit 0"])
        while [stat for stat in process_table().values() if stat.parent == 1 and stat.pid != os.getpid()]:
            time.sleep(0.01)
        print(own.wait(), os.getpid() != 1)
        sys.exit(5)
        """
    ) as process:
        said, _ = process.communicate(timeout=60)
    assert said == "7 True\n"
    assert process.returncode == 5


def test_the_exit_code_is_known_where_the_container_has_sigchld_ignored() -> None:
    program = "from jobrunner.cli.init import leave_pid_1; import os; leave_pid_1(); os._exit(5)"
    arguments = [sys.executable, "-c", program]
    ignore = "import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    start = f"{ignore}; os.execv({arguments[0]!r}, {arguments!r})"
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-c", start], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (5, "")


def test_signals_reach_the_command_and_its_end_by_one_is_told_as_a_shell_tells_it() -> None:
    with as_pid_1(
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        print("up", flush=True)
        time.sleep(60)
        """
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        first = until(lambda: _children_of(process.pid))[0]
        os.kill(first, signal.SIGTERM)
        assert process.wait(timeout=60) == 3
    with as_pid_1("import os; os.kill(os.getpid(), 9)") as process:
        assert process.wait(timeout=60) == 128 + 9


def _children_of(pid: int) -> list[int]:
    from jobrunner.identity import process_table

    return [stat.pid for stat in process_table().values() if stat.parent == pid]
