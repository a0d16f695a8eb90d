import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from jobrunner import identity, procfs
from jobrunner.backends.process.tree import send
from jobrunner.identity import ProcessIdentity

Sleeper = subprocess.Popen[bytes]


def until(look: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + 60
    while not look():
        assert time.monotonic() < give_up_s, "it never came"
        time.sleep(0.01)


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_this_process_is_alive_and_its_identity_survives_text() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    assert me.standing() == "alive"
    assert ProcessIdentity.from_text(me.to_text()) == me
    assert ProcessIdentity.from_started_at(me.pid, me.started_at, me.namespace) == me
    assert me.started_at == f"{identity.boot_id()}:{me.started}"


@pytest.mark.parametrize("text", ["", "12", "12@ns@boot", "x@ns@boot:1", "12@ns@boot:1@more"])
def test_a_text_that_is_no_identity_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ProcessIdentity.from_text(text)


@pytest.mark.parametrize("pid", [-1, 0, 2**31, 2**63, 10**30])
def test_a_number_that_can_be_no_pid_is_no_process(pid: int) -> None:
    it = ProcessIdentity(identity.boot_id(), pid, 1, identity.pid_namespace())
    assert it.standing() == "dead"
    assert identity.may_signal(pid)
    assert not send(it, signal.SIGKILL)


def test_an_ended_process_is_dead_also_while_it_is_a_zombie(sleeper: Sleeper) -> None:
    it = ProcessIdentity.of(sleeper.pid)
    assert it is not None
    assert it.standing() == "alive"
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert it.standing() == "dead"
    sleeper.wait()
    assert it.standing() == "dead"
    assert ProcessIdentity.of(sleeper.pid) is None


def test_a_stopped_process_is_alive(sleeper: Sleeper) -> None:
    it = ProcessIdentity.of(sleeper.pid)
    assert it is not None
    sleeper.send_signal(signal.SIGSTOP)
    assert it.standing() == "alive"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_whose_main_thread_has_ended_lives_until_its_last_thread_ends() -> None:
    code = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=sys.stdin.read).start()\n"
        "print('up', flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    environment = {**os.environ, "IT_IS": "headless"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        it = ProcessIdentity.of(process.pid)
        assert it is not None
        stat = Path(f"/proc/{process.pid}/stat")
        until(lambda: stat.read_text().rpartition(") ")[2].startswith("Z"))
        assert it.standing() == "alive"
        assert not identity.process_table()[process.pid].has_ended
        assert identity.variable_of(process.pid, "IT_IS") == "headless"
        process.send_signal(signal.SIGSTOP)
        until(lambda: identity.process_table()[process.pid].is_stopped)
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert it.standing() == "dead"
        assert identity.process_table()[process.pid].has_ended
        assert identity.variable_of(process.pid, "IT_IS") is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_cannot_be_read_for_want_of_descriptors_is_not_taken_for_gone(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(procfs, "open", refuse, raising=False)
    assert me.standing() == "unknown"
    for look in (identity.process_table, lambda: identity.variable_of(me.pid, "HOME")):
        with pytest.raises(OSError) as caught:
            look()
        assert caught.value.errno == number


def test_a_process_table_that_lacks_this_process_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_LINUX", False)
    monkeypatch.setattr(identity, "_output_of", lambda *_: "")  # ps(1) was not to be had
    with pytest.raises(OSError, match="it does not hold this process"):
        identity.process_table()


def test_another_start_is_another_process() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    assert replace(me, started=me.started + 1).standing() == "dead"


def test_only_of_its_own_boot_and_namespace_is_a_process_found_dead() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    gone = replace(me, started=me.started + 1)
    assert gone.standing() == "dead"
    # Two machines may share a machine id; what has another boot may live on the other one.
    assert replace(gone, boot_id="another").standing() == "unknown"
    if sys.platform == "linux":
        assert replace(gone, namespace="").standing() == "unknown"


def test_what_cannot_be_told_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    assert replace(me, boot_id="").standing() == "unknown"

    def refuse(pid: int) -> None:
        raise PermissionError

    monkeypatch.setattr(identity, "stat_of", refuse)
    assert me.standing() == "unknown"


@pytest.mark.skipif(sys.platform != "linux", reason="pid namespaces are Linux's")
def test_a_pid_of_another_namespace_is_unknown() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    assert replace(me, namespace="1").standing() == "unknown"


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc hides processes")
def test_a_hidden_process_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    monkeypatch.setattr(identity, "_linux_stat", lambda _: None)
    with pytest.raises(PermissionError):
        ProcessIdentity.of(os.getpid())
    assert me.standing() == "unknown"


@pytest.mark.parametrize("pid", [0, -1])
def test_a_number_that_means_a_group_is_no_process(pid: int) -> None:
    assert ProcessIdentity.of(pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_program_name_with_brackets_and_spaces_does_not_confuse(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as process:
        try:
            stat = identity.stat_of(process.pid)
            assert stat is not None
            assert stat.parent == os.getpid()
            assert stat.session == os.getsid(0)
            assert not stat.has_ended
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc's clock")
def test_the_start_mark_agrees_with_psutil(sleeper: Sleeper) -> None:
    it = ProcessIdentity.of(sleeper.pid)
    assert it is not None
    seconds = it.started / os.sysconf("SC_CLK_TCK")
    assert abs(psutil.boot_time() + seconds - psutil.Process(sleeper.pid).create_time()) < 2


def test_the_process_table_holds_this_process_and_its_parent() -> None:
    table = identity.process_table()
    assert table[os.getpid()].parent == os.getppid()
    assert table[os.getpid()] == replace(table[os.getpid()], session=os.getsid(0))


def test_the_ps_reader_agrees_with_the_kernel(sleeper: Sleeper) -> None:
    if not identity._output_of("ps", "-p", str(os.getpid()), "-o", identity._PS_COLUMNS):
        pytest.skip("no ps(1) here")
    stat = next(identity._ps("-p", str(sleeper.pid)))
    assert (stat.pid, stat.parent, stat.session) == (sleeper.pid, os.getpid(), os.getsid(0))
    assert abs(stat.started - psutil.Process(sleeper.pid).create_time()) < 3
    assert sleeper.pid in {stat.pid for stat in identity._ps("-ax")}


def test_a_host_id_has_three_parts_and_tells_a_restart_from_another_machine() -> None:
    machine, boot, _ = identity.host_id().split("/")
    assert machine
    assert boot == identity.boot_id()
    assert identity.same_machine("m/boot1/1", "m/boot2/1")
    assert not identity.same_machine("m/boot1/1", "n/boot1/1")


def test_without_a_machine_id_the_hostname_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_linux_machine_id", lambda: "")
    monkeypatch.setattr(identity, "_mac_machine_id", lambda: "")
    assert identity.machine_id.__wrapped__() == identity.hostname().replace("/", "_")


def test_the_user_has_a_name_even_without_a_passwd_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity.unixname()
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert identity.unixname() == "54321"


def test_importing_it_is_cheap() -> None:
    code = "import sys, jobrunner.identity; print('psutil' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
