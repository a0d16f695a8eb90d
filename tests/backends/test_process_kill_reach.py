"""A kill ends every process of a job, however it has detached itself, or names what it leaves."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from jobrunner import procfs
from jobrunner.backends.base import Observation
from jobrunner.backends.process import looking
from jobrunner.identity import ProcessIdentity, process_table, variable_of
from jobrunner.states import Phase
from tests.backends.test_process_backend import Jobs, alive, kill_wrapper, record, until
from tests.helpers import is_alive

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and adopts orphans")

# The shell between ends at once: the sleeper has a session of its own, and no parent of the job.
DAEMON = "(setsid sh -c 'sleep 60 & echo $!' &) ; sleep 61"
# A thread of it works on after the main one has ended: /proc says "Z" of it, as of a zombie.
HEADLESS = textwrap.dedent(
    """
    import ctypes, os, signal, threading, time
    if {deaf}:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=time.sleep, args=(60,)).start()
    print(os.getpid(), flush=True)
    ctypes.CDLL(None).pthread_exit(None)
    """
)
NAMELESS_DAEMON = "(env -i setsid sh -c '/bin/sleep 60 & echo $!' &) ; sleep 61"


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path / "records")
    yield jobs
    for stat in process_table().values():
        path = variable_of(stat.pid, "JOBRUNNER_RECORD")
        if path is not None and path.startswith(str(jobs.records_dir)):
            os.kill(stat.pid, signal.SIGKILL)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Give a directory that other users can enter, which pytest's own are not."""
    with TemporaryDirectory(prefix="jobrunner-test-") as place:
        Path(place).chmod(0o755)
        yield Path(place)


def a_detached(jobs: Jobs, external_id: str) -> ProcessIdentity:
    daemon = alive(int(jobs.until_printed(external_id)[0]))
    # Not before it has lost its parent in between: until then it is found as a descendant.
    until(lambda: process_table()[daemon.pid].parent in {1, record(external_id)["wrapper"][0]})
    return daemon


@linux_only
@pytest.mark.parametrize("script", [DAEMON, NAMELESS_DAEMON])
def test_a_kill_ends_a_daemon_in_a_session_of_its_own(jobs: Jobs, script: str) -> None:
    it = jobs.submit(jobs.sh(script))
    daemon = a_detached(jobs, it)
    jobs.cancel(it)
    assert jobs.end(it).phase is Phase.CANCELLED
    assert daemon.standing() == "dead"


@linux_only
def test_a_kill_without_the_wrapper_finds_a_daemon_by_the_record_that_it_carries(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh(DAEMON))
    daemon = a_detached(jobs, it)
    kill_wrapper(it)
    jobs.cancel(it)
    assert jobs.end(it).phase is Phase.CANCELLED
    assert daemon.standing() == "dead"


@linux_only
def test_a_daemon_that_outlives_the_sigterm_of_its_command_is_still_found(jobs: Jobs) -> None:
    stubborn = 'trap "" TERM; echo $$; while :; do sleep 0.1; done'
    script = f"(env -i PATH=$PATH setsid sh -c '{stubborn}' &) ; sleep 61"
    it = jobs.submit(jobs.sh(script, stop_grace_s=0.5))
    daemon = a_detached(jobs, it)
    jobs.cancel(it)
    until(Path(it, "exit").exists)
    assert isinstance(answer := jobs.look(it), Observation)
    assert answer.phase is Phase.RUNNING
    assert jobs.end(it, cancelling=True).phase is Phase.CANCELLED
    assert daemon.standing() == "dead"


@linux_only
def test_a_job_that_forks_while_it_is_killed_is_ended_whole(jobs: Jobs) -> None:
    # Each generation ignores SIGTERM, starts the next one in a session of its own, and ends.
    hop = 'trap "" TERM; sleep 0.02; setsid sh "$0" & sleep 0.02'
    script = jobs.records_dir.parent / "hop"
    script.write_text(hop)
    it = jobs.submit(jobs.sh(f"sh {script} & sh {script} & echo up; sleep 60", stop_grace_s=0.2))
    jobs.until_printed(it)
    assert jobs.end(it, cancelling=True).phase is Phase.CANCELLED
    carrying = [pid for pid in process_table() if variable_of(pid, "JOBRUNNER_RECORD") == it]
    assert not [pid for pid in carrying if is_alive(pid)]


@linux_only
def test_a_job_that_was_started_by_a_job_outlives_it(jobs: Jobs) -> None:
    code = textwrap.dedent(
        f"""
        import asyncio
        from pathlib import Path
        from jobrunner.backends.process import ProcessBackend
        spec = {jobs.sh("echo $$; sleep 60")!r}
        backend = ProcessBackend(Path({str(jobs.records_dir)!r}))
        print(asyncio.run(backend.submit(spec, "inner")), flush=True)
        """
    )
    outer = jobs.submit(jobs.spec("sh", "-c", '"$0" -c "$1"; sleep 60', sys.executable, code))
    inner = jobs.until_printed(outer)[0]
    command = alive(int(jobs.until_printed(inner)[0]))
    jobs.cancel(outer)
    assert jobs.end(outer).phase is Phase.CANCELLED
    assert command.standing() == "alive"
    jobs.cancel(inner)
    assert jobs.end(inner).phase is Phase.CANCELLED
    assert command.standing() == "dead"


@linux_only
def test_a_made_up_record_is_no_way_out_of_a_kill(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("JOBRUNNER_RECORD=/nowhere setsid sleep 60 & echo $!; sleep 61"))
    escaped = alive(int(jobs.until_printed(it)[0]))
    jobs.cancel(it)
    jobs.end(it)
    assert escaped.standing() == "dead"


@linux_only
def test_what_a_command_leaves_on_purpose_lives_on_also_through_a_late_kill(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("setsid sleep 60 & echo $!"))
    left = alive(int(jobs.until_printed(it)[0]))
    assert jobs.end(it).phase is Phase.SUCCEEDED
    assert jobs.cancel(it) is None
    assert jobs.end(it).phase is Phase.SUCCEEDED
    assert left.standing() == "alive"


@linux_only
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a program that becomes root: only root can")
def test_a_process_of_another_user_is_named_and_does_not_shield_the_others(open_place: Path) -> None:
    jobs = Jobs(open_place / "records")
    become_root = open_place / "become-root"
    shutil.copy(shutil.which("setpriv") or pytest.skip("there is no setpriv"), become_root)
    become_root.chmod(0o4755)
    if os.statvfs(open_place).f_flag & os.ST_NOSUID:
        pytest.skip("programs cannot change their user there")
    jobs.records_dir.mkdir()
    os.chown(jobs.records_dir, 65534, 65534)
    roots = f"{become_root} --reuid 0 --regid 0 --clear-groups sleep 60"
    script = f"setsid sleep 62 & echo $!; {roots} & echo $!; sleep 61"
    code = textwrap.dedent(
        f"""
        import shutil, sys
        from tests.backends.test_process_backend import Jobs, alive, until
        from pathlib import Path
        # The interpreter of the environment may stand in a home that is closed to others.
        sys.executable = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
        jobs = Jobs(Path({str(jobs.records_dir)!r}))
        it = jobs.submit(jobs.sh({script!r}, stop_grace_s=0.2, cwd="/"))
        jobs.until_printed(it, 2)
        until(lambda: Path("/proc", jobs.lines(it)[1].text, "comm").read_text() == "sleep\\n")
        print(*jobs.lines(it)[0].text.split(), *jobs.lines(it)[1].text.split())
        print(jobs.cancel(it))
        print(jobs.end(it, cancelling=True).message)
        """
    )
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    done = subprocess.run(
        [*as_nobody, sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Permission denied" in done.stderr and not done.stdout:
        pytest.skip(f"nobody cannot run this: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    pids, trouble, message = done.stdout.splitlines()
    own, others = map(int, pids.split())
    try:
        assert f"process {others} (sleep) of root may not be signalled by nobody" in trouble
        assert message.endswith(f"left behind: process {others} (sleep) of root, which nobody may not signal")
        assert not is_alive(own)
        assert is_alive(others)
    finally:
        os.kill(others, signal.SIGKILL)


def test_a_process_that_sigkill_does_not_end_is_named_after_a_while(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = jobs.submit(jobs.sh("echo $$; sleep 60", stop_grace_s=0))
    command = alive(int(jobs.until_printed(it)[0]))
    monkeypatch.setattr("jobrunner.backends.process.cancelling.send", lambda *_: True)
    jobs.cancel(it)
    assert isinstance(answer := jobs.look(it), Observation)
    assert answer.external_state == "stopping"
    monkeypatch.setattr(looking, "_LEFT_S", 0.0)
    ended = jobs.end(it)
    assert (ended.phase, ended.external_state) == (Phase.CANCELLED, "left behind")
    assert f"left behind: process {command.pid} (" in ended.message
    assert "which SIGKILL does not end" in ended.message


def headless(pid: int) -> ProcessIdentity:
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z"))
    return alive(pid)


@linux_only
@pytest.mark.parametrize("deaf", [False, True])
def test_a_kill_ends_a_command_whose_main_thread_has_ended(jobs: Jobs, deaf: bool) -> None:
    it = jobs.submit(jobs.spec(sys.executable, "-c", HEADLESS.format(deaf=deaf), stop_grace_s=0.2))
    command = headless(int(jobs.until_printed(it)[0]))
    ended = jobs.end(it, cancelling=True)
    assert (ended.phase, ended.external_state) == (
        Phase.CANCELLED,
        "signal SIGKILL" if deaf else "signal SIGTERM",
    )
    assert command.standing() == "dead"


@linux_only
@pytest.mark.parametrize("has_wrapper", [True, False])
def test_a_kill_ends_a_detached_process_whose_main_thread_has_ended(jobs: Jobs, has_wrapper: bool) -> None:
    script = '(setsid "$0" -c "$1" &) ; sleep 61'
    spec = jobs.spec("/bin/sh", "-c", script, sys.executable, HEADLESS.format(deaf=True), stop_grace_s=0.2)
    it = jobs.submit(spec)
    daemon = headless(a_detached(jobs, it).pid)
    if not has_wrapper:  # then nothing but its environment says whose it is
        kill_wrapper(it)
    assert jobs.end(it, cancelling=True).phase is Phase.CANCELLED
    assert daemon.standing() == "dead"


@linux_only
def test_a_process_that_cannot_be_seen_is_not_waited_for_without_end(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = jobs.submit(jobs.sh(DAEMON, stop_grace_s=0.3))
    daemon = a_detached(jobs, it)
    look = procfs.stat_of
    # As /proc mounted with hidepid=2 does for a process of another user.
    monkeypatch.setattr(procfs, "stat_of", lambda pid: None if pid == daemon.pid else look(pid))
    jobs.cancel(it)
    until(Path(it, "exit").exists)
    assert isinstance(answer := jobs.look(it), Observation)
    assert answer.message == "its last processes have not ended yet"
    monkeypatch.setattr(looking, "_LEFT_S", 0.0)
    ended = jobs.end(it, cancelling=True)
    assert ended.phase is Phase.CANCELLED
    assert f"left behind: what process {record(it)['wrapper'][0]}, its wrapper, waits for" in ended.message
