import asyncio
import datetime as dt
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jobrunner.backends.base import (
    Absent,
    Backend,
    Found,
    Gone,
    LogLine,
    Observation,
    RemoteError,
    sending_until,
)
from jobrunner.backends.process import ProcessBackend, log_path, wrapper
from jobrunner.backends.process.records import CancelRecord, ExitRecord, RecordDirectory
from jobrunner.backends.process.tree import Snapshot, processes_of, send, stand_in
from jobrunner.clock import monotonic_s
from jobrunner.errors import BackendError, SubmitRejected, SubmitTooLate
from jobrunner.identity import ProcessIdentity, host_id, process_table
from jobrunner.states import FINAL_PHASES, Phase
from tests.helpers import is_alive

SINCE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DEADLINE_S = 60.0
IGNORES_SIGTERM = [
    sys.executable,
    "-c",
    "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]

Answer = Observation | Gone | RemoteError
T = TypeVar("T")


class Jobs:
    """A backend, and a hand for the jobs that a test starts with it."""

    def __init__(self, records_dir: Path) -> None:
        self.records_dir = records_dir
        self.backend = ProcessBackend(records_dir)

    def spec(self, *command: str, **more: Any) -> dict[str, Any]:
        return {"command": list(command), **more}

    def sh(self, script: str, **more: Any) -> dict[str, Any]:
        return self.spec("/bin/sh", "-c", script, **more)

    def submit(self, spec: dict[str, Any], token: str | None = None) -> str:
        return asyncio.run(self.backend.submit(spec, token or uuid.uuid4().hex))

    def find(self, token: str) -> object:
        return asyncio.run(self.backend.find(self.sh("true"), token, SINCE))

    def look(self, external_id: str) -> Answer:
        return asyncio.run(self.backend.fetch([external_id]))[external_id]

    def cancel(self, external_id: str) -> RemoteError | None:
        return asyncio.run(self.backend.cancel([external_id], "no longer wanted")).get(external_id)

    def end(self, external_id: str, *, cancelling: bool = False) -> Observation:
        """Look until the job has ended, and cancel it again before each look where that is asked."""

        def ended() -> Observation | None:
            if cancelling:
                self.cancel(external_id)
            answer = self.look(external_id)
            return answer if isinstance(answer, Observation) and answer.phase in FINAL_PHASES else None

        return until(ended)

    def lines(self, external_id: str) -> list[LogLine]:
        async def read() -> list[LogLine]:
            return [line async for line in self.backend.logs(external_id, None)]

        return asyncio.run(read())

    def until_printed(self, external_id: str, count: int = 1) -> list[str]:
        return until(
            lambda: texts if len(texts := [line.text for line in self.lines(external_id)]) >= count else None
        )


def until(look: Callable[[], T | None]) -> T:
    give_up_at_s = monotonic_s() + DEADLINE_S
    while not (seen := look()):
        assert monotonic_s() < give_up_at_s, "it never came"
        time.sleep(0.01)
    return seen


def record(external_id: str, name: str = "start") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(external_id, name).read_text())
    return content


def rewrite(external_id: str, name: str = "start", **changes: Any) -> None:
    Path(external_id, name).write_text(json.dumps(record(external_id, name) | changes))


def wrapper_pid(external_id: str) -> int:
    pid: int = record(external_id)["wrapper"][0]
    return pid


def alive(pid: int) -> ProcessIdentity:
    it = ProcessIdentity.of(pid)
    assert it is not None
    assert it.standing() == "alive"
    return it


def kill_wrapper(external_id: str) -> None:
    it = alive(wrapper_pid(external_id))
    os.kill(it.pid, signal.SIGKILL)
    until(lambda: it.standing() == "dead")


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path / "records")
    yield jobs
    # Whatever a test left behind is in the session of one of its wrappers.
    sessions = set()
    for path in jobs.records_dir.glob("*/start"):
        try:
            sessions.add(json.loads(path.read_text())["wrapper"][0])
        except (ValueError, KeyError, TypeError, OSError):
            continue
    for stat in process_table().values():
        if stat.session in sessions and stat.session != os.getsid(0):
            with suppress(ProcessLookupError):  # it has ended since the table was read
                os.kill(stat.pid, signal.SIGKILL)


# Starting and ending


def test_it_is_a_backend() -> None:
    assert isinstance(ProcessBackend(), Backend)
    asyncio.run(ProcessBackend().close())


def test_success_is_seen_with_what_may_be_shown(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("echo hello; exit 0", env={"SECRET": "hush"}))
    ended = jobs.end(it)
    assert (ended.phase, ended.external_state) == (Phase.SUCCEEDED, "exited 0")
    assert set(ended.detail) == {"pid", "exit_code", "signal", "log", "started_at", "ended_at"}
    assert ended.detail["exit_code"] == 0
    assert Path(it).stat().st_mode & 0o777 == 0o700
    assert not any("hush" in path.read_text() for path in Path(it).iterdir())


def test_an_exit_code_makes_a_failure(jobs: Jobs) -> None:
    ended = jobs.end(jobs.submit(jobs.sh("exit 3")))
    assert ended == Observation(Phase.FAILED, "exited 3", "exit code 3", ended.detail)


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV"])
def test_a_signal_is_named(jobs: Jobs, name: str) -> None:
    ended = jobs.end(jobs.submit(jobs.sh(f"ulimit -c 0; kill -{name} $$")))
    assert (ended.phase, ended.external_state) == (Phase.FAILED, f"signal SIG{name}")
    assert ended.message == f"killed by SIG{name}"
    assert ended.detail["signal"] == f"SIG{name}"


def test_the_command_gets_its_directory_environment_and_arguments(jobs: Jobs, tmp_path: Path) -> None:
    script = 'pwd; echo "$A|$1|$2|$JOBRUNNER_RECORD"; cat; (ls /proc/$$/fd 2>/dev/null; true)'
    spec = jobs.spec("/bin/sh", "-c", script, "sh", "", "ünï", cwd=str(tmp_path), env={"A": "é"})
    it = jobs.submit(spec)
    jobs.end(it)
    lines = [line.text for line in jobs.lines(it)]
    assert lines[:2] == [str(tmp_path), f"é||ünï|{it}"]
    assert lines[2:] in ([], ["0", "1", "2"])  # no descriptor of ours leaks into it


def test_the_command_starts_with_default_signals(jobs: Jobs) -> None:
    script = "import signal as s\nprint([n for n in s.valid_signals() if s.getsignal(n) == s.SIG_IGN])"
    it = jobs.submit(jobs.spec(sys.executable, "-c", script))
    jobs.end(it)
    # Python itself ignores these two.
    assert [line.text for line in jobs.lines(it)] == [f"{[signal.SIGPIPE, signal.SIGXFSZ]}"]


def test_nothing_is_left_behind(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("true"))
    jobs.end(it)
    pid = wrapper_pid(it)
    until(lambda: not is_alive(pid))
    assert not [stat for stat in process_table().values() if stat.parent == os.getpid() and stat.has_ended]
    assert {path.name for path in Path(it).iterdir()} == {"start", "exit", "output.log", "cancel.spare"}


def test_the_work_outlives_a_submitter_that_is_killed(jobs: Jobs, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    code = (
        "import asyncio, json, os, signal, sys\n"
        "from jobrunner.backends.process import ProcessBackend\n"
        "from pathlib import Path\n"
        "backend = ProcessBackend(Path(sys.argv[2]))\n"
        "print(asyncio.run(backend.submit(json.loads(sys.argv[1]), 'token')), flush=True)\n"
        "os.killpg(0, signal.SIGKILL)\n"
    )
    spec = json.dumps(jobs.sh(f"echo begun; cat {gate}; exit 7"))
    done = subprocess.run(
        [sys.executable, "-c", code, spec, str(jobs.records_dir)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    it = done.stdout.decode().strip()
    assert jobs.find("token") == Found(it)
    answer = jobs.look(it)
    assert isinstance(answer, Observation)
    assert (answer.phase, answer.external_state) == (Phase.RUNNING, "running")
    gate.write_text("")
    assert jobs.end(it).message == "exit code 7"


def test_signals_to_the_wrapper_do_not_lose_the_exit_code(jobs: Jobs, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    it = jobs.submit(jobs.sh(f"cat {gate}; exit 5"))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(wrapper_pid(it), number)
    gate.write_text("")
    assert jobs.end(it).message == "exit code 5"


def test_a_command_that_kills_its_group_does_not_kill_its_wrapper(jobs: Jobs) -> None:
    assert jobs.end(jobs.submit(jobs.sh("kill -KILL 0"))).external_state == "signal SIGKILL"


def test_a_stopped_wrapper_records_the_end_when_it_goes_on(jobs: Jobs, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    it = jobs.submit(jobs.sh(f"cat {gate}; exit 4"))
    os.kill(wrapper_pid(it), signal.SIGSTOP)
    command = alive(record(it)["command"][0])
    gate.write_text("")
    until(lambda: command.standing() == "dead")
    answer = jobs.look(it)
    assert isinstance(answer, Observation)
    assert answer.phase is Phase.RUNNING
    os.kill(wrapper_pid(it), signal.SIGCONT)
    assert jobs.end(it).message == "exit code 4"


def test_the_wrapper_is_small(jobs: Jobs) -> None:
    import psutil

    it = jobs.submit(jobs.sh("sleep 60"))
    assert psutil.Process(wrapper_pid(it)).memory_info().rss < 20e6


# What cannot be started


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("no-such-command-at-all", "was not found"),
        ("/dev/null", "may not be executed"),
        ("/", "may not be executed"),
    ],
)
def test_a_command_that_cannot_run_is_rejected_and_recorded(jobs: Jobs, command: str, words: str) -> None:
    with pytest.raises(SubmitRejected, match=words):
        jobs.submit(jobs.spec(command), "token")
    proof = jobs.find("token")
    assert isinstance(proof, Found)
    ended = jobs.end(proof.external_id)
    assert (ended.phase, ended.external_state) == (Phase.FAILED, "not started")
    assert words in ended.message


def test_a_script_without_a_first_line_is_rejected(jobs: Jobs, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo hello\n")
    script.chmod(0o755)
    with pytest.raises(SubmitRejected, match="give a script a first line"):
        jobs.submit(jobs.spec(str(script)))


def test_a_missing_working_directory_is_rejected(jobs: Jobs, tmp_path: Path) -> None:
    with pytest.raises(SubmitRejected, match=r"cannot be entered.*create it"):
        jobs.submit(jobs.sh("true", cwd=str(tmp_path / "nowhere")))


def test_a_records_dir_that_cannot_be_made_is_rejected(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    jobs.backend = ProcessBackend(tmp_path / "file" / "records")
    with pytest.raises(SubmitRejected, match=r"cannot be written .*data_dir"):
        jobs.submit(jobs.sh("true"))
    with pytest.raises(BackendError, match="cannot be written"):
        jobs.find("token")


def test_the_record_is_where_the_submitter_keeps_its_records_and_is_found_from_anywhere(
    jobs: Jobs, tmp_path: Path
) -> None:
    spec = jobs.sh("true", records_dir=str(tmp_path / "of-whoever-stored-it"))
    place = asyncio.run(jobs.backend.baseline(spec))
    assert place.endswith(f":{jobs.records_dir}")
    it = jobs.submit(spec, "token")
    assert it == str(jobs.records_dir / "token")
    elsewhere = ProcessBackend(tmp_path / "other-settings")
    assert asyncio.run(elsewhere.find(spec, "token", SINCE, baseline=place)) == Found(it)
    assert not (tmp_path / "of-whoever-stored-it").exists()


def test_a_submission_of_an_older_version_is_found_where_its_spec_says(jobs: Jobs, tmp_path: Path) -> None:
    it = jobs.submit(jobs.sh("true"), "token")
    spec = jobs.sh("true", records_dir=str(jobs.records_dir))
    assert asyncio.run(ProcessBackend(tmp_path / "other").find(spec, "token", SINCE)) == Found(it)


def test_a_records_dir_of_somebody_else_is_rejected(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir(mode=0o555)
    code = (
        "import asyncio, concurrent.futures.thread, json, os, sys\n"
        "from jobrunner.backends.process import ProcessBackend\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "from pathlib import Path\n"
        "backend = ProcessBackend(Path(sys.argv[2]))\n"
        "try: asyncio.run(backend.submit(json.loads(sys.argv[1]), 'token'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(jobs.sh("true")), str(jobs.records_dir)],
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.stdout.startswith(b"SubmitRejected the record directory"), done


@pytest.mark.parametrize(
    "wrong",
    [
        {"command": []},
        {"command": [""]},
        {"command": ["a\0b"]},
        {"cwd": "relative"},
        {"records_dir": "relative"},
        {"env": {"A=B": "c"}},
        {"stop_grace_s": -1},
        {"shell": True},
    ],
)
def test_a_wrong_spec_is_rejected_without_its_values(jobs: Jobs, wrong: dict[str, Any]) -> None:
    with pytest.raises(SubmitRejected, match=f"cannot be run as described: {next(iter(wrong))}") as caught:
        jobs.submit(jobs.sh("true", env={"TOKEN": "hush"}) | wrong)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "..", "a/b", ".hidden", "a\0"])
def test_a_token_that_is_no_file_name_is_refused(jobs: Jobs, token: str) -> None:
    with pytest.raises(ValueError, match="cannot name a directory"):
        jobs.find(token)


# Once


def test_a_token_used_twice_runs_once(jobs: Jobs, tmp_path: Path) -> None:
    spec = jobs.sh(f"echo ran >> {tmp_path}/ran; sleep 60")

    async def submit_at_once() -> list[str]:
        return await asyncio.gather(*(jobs.backend.submit(spec, "token") for _ in range(4)))

    ids = set(asyncio.run(submit_at_once()))
    ids.add(jobs.submit(spec, "token"))
    assert len(ids) == 1
    until((tmp_path / "ran").exists)
    assert (tmp_path / "ran").read_text() == "ran\n"
    it = ids.pop()
    assert len([stat for stat in process_table().values() if stat.session == wrapper_pid(it)]) <= 3
    assert {path.name.partition(".spare.")[0] for path in Path(it).iterdir()} == {
        "start",
        "exit",
        "output.log",
        "cancel.spare",
    }


def test_a_late_wrapper_refuses(jobs: Jobs, tmp_path: Path) -> None:
    assert jobs.find("token") == Absent()
    assert jobs.find("token") == Absent()
    with pytest.raises(SubmitTooLate):
        jobs.submit(jobs.sh(f"echo ran > {tmp_path}/ran"), "token")
    answer = jobs.look(str(jobs.records_dir / "token"))
    assert isinstance(answer, Gone)
    assert answer.certain
    assert not (tmp_path / "ran").exists()


def test_a_wrapper_paused_before_its_record_refuses_when_it_goes_on(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "wrapper.py"
    marker, gate = tmp_path / "marker", tmp_path / "gate"
    os.mkfifo(gate)
    pause = (
        f"open({str(marker)!r}, 'w').close(); open({str(gate)!r}).read(); write_new(directory, START, record)"
    )
    slow.write_text(Path(wrapper.__file__).read_text().replace("write_new(directory, START, record)", pause))
    monkeypatch.setattr("jobrunner.backends.process.backend._WRAPPER", slow)
    errors: list[Exception] = []

    def submit() -> None:
        try:
            jobs.submit(jobs.sh(f"echo ran > {tmp_path}/ran"), "token")
        except SubmitTooLate as error:
            errors.append(error)

    late = threading.Thread(target=submit)
    late.start()
    until(marker.exists)
    assert jobs.find("token") == Absent()
    gate.write_text("")
    late.join()
    assert len(errors) == 1
    assert not (tmp_path / "ran").exists()
    assert not [stat for stat in process_table().values() if stat.parent == os.getpid() and stat.has_ended]


def test_a_wrapper_killed_before_its_record_runs_nothing(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "wrapper.py"
    suicide = "write_new(directory, START, record); os.kill(os.getpid(), 9)"
    broken.write_text(
        Path(wrapper.__file__).read_text().replace("write_new(directory, START, record)", suicide)
    )
    monkeypatch.setattr("jobrunner.backends.process.backend._WRAPPER", broken)
    with pytest.raises(BackendError, match="died while it started"):
        jobs.submit(jobs.sh(f"echo ran > {tmp_path}/ran"), "token")
    proof = jobs.find("token")
    assert isinstance(proof, Found)
    gone = until(lambda: a if isinstance(a := jobs.look(proof.external_id), Gone) else None)
    assert gone.certain
    assert not (tmp_path / "ran").exists()


def test_a_submission_that_was_paused_too_long_is_not_sent(jobs: Jobs) -> None:
    with sending_until(monotonic_s() - 1), pytest.raises(SubmitTooLate):
        jobs.submit(jobs.sh("true"), "token")
    assert jobs.find("token") == Absent()


# Looking when something is wrong


def test_a_killed_wrapper_leaves_its_command_running_and_then_no_exit_code(
    jobs: Jobs, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    it = jobs.submit(jobs.sh(f"echo one; cat {gate}; echo two"))
    jobs.until_printed(it)
    kill_wrapper(it)
    answer = jobs.look(it)
    assert isinstance(answer, Observation)
    assert answer.phase is Phase.RUNNING
    assert "exit code will be unknown" in answer.message
    gate.write_text("")
    gone = until(lambda: a if isinstance(a := jobs.look(it), Gone) else None)
    assert gone == Gone("its wrapper was killed before the exit code was recorded", certain=True)
    assert jobs.until_printed(it, 2) == ["one", "two"]


def test_a_restart_of_the_host_is_certain(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("sleep 60"))
    machine, _, namespace = host_id().split("/")
    rewrite(it, host=f"{machine}/another-boot/{namespace}")
    assert jobs.look(it) == Gone("the host restarted before an exit code was recorded", certain=True)
    assert jobs.cancel(it) is None
    alive(wrapper_pid(it))


@pytest.mark.parametrize("part", [0, 2])
def test_a_job_of_another_host_or_container_is_no_business_of_ours(jobs: Jobs, part: int) -> None:
    it = jobs.submit(jobs.sh("sleep 60"))
    parts = host_id().split("/")
    parts[part] = "another"
    rewrite(it, host="/".join(parts))
    assert isinstance(jobs.look(it), RemoteError)
    assert isinstance(jobs.cancel(it), RemoteError)
    alive(wrapper_pid(it))


def test_an_id_without_a_record_is_gone(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "file").write_text("")
    for unknown in (tmp_path / "hollow", tmp_path / "none", tmp_path / "file" / "below", "a\0b"):
        answer = jobs.look(str(unknown))
        assert isinstance(answer, Gone)
        assert not answer.certain
        assert jobs.cancel(str(unknown)) is None


VANISHED = pytest.mark.parametrize("what", ["directory", "start"])


def vanish(external_id: str, what: str) -> None:
    """Take a job's record directory away, as somebody who tidies up does, or the oldest file in it."""
    if what == "directory":
        Path(external_id).rename(f"{external_id}-moved-away")
    else:
        Path(external_id, "start").unlink()


def has_message(jobs: Jobs, external_id: str, *words: str) -> Observation:
    answer = jobs.look(external_id)
    assert isinstance(answer, Observation)
    assert all(word in answer.message for word in ("record directory", *words)), answer.message
    return answer


@VANISHED
def test_a_job_whose_records_are_gone_goes_on_while_its_processes_live(jobs: Jobs, what: str) -> None:
    it = jobs.submit(jobs.sh("echo $$; exec sleep 60"))
    command = alive(int(jobs.until_printed(it)[0]))
    wrapper_of_it = alive(wrapper_pid(it))
    vanish(it, what)
    answer = has_message(jobs, it, "goes on")
    assert (answer.phase, answer.detail["pid"]) == (Phase.RUNNING, command.pid)
    os.kill(wrapper_of_it.pid, signal.SIGKILL)
    until(lambda: wrapper_of_it.standing() == "dead")
    assert has_message(jobs, it, "goes on").phase is Phase.RUNNING
    os.kill(command.pid, signal.SIGKILL)
    gone = until(lambda: a if isinstance(a := jobs.look(it), Gone) else None)
    assert "none of its processes lives" in gone.reason
    assert not gone.certain


@pytest.mark.parametrize("turned", [False, True])
def test_the_command_of_a_job_without_records_is_what_started_the_rest(jobs: Jobs, *, turned: bool) -> None:
    """The clock of the process table is coarse, and its lines come in any order."""
    it = jobs.submit(jobs.sh("echo $$; sleep 60 & echo $!; wait"))
    command, child = (int(line) for line in jobs.until_printed(it, 2))
    table = process_table()
    started = table[command].started
    parents = {command: table[command].parent, child: command}
    if turned:  # after a turn of the pids, a child's may be the lower one
        parents = {child: table[command].parent, command: child}
    same_tick = {pid: replace(table[pid], started=started, parent=parent) for pid, parent in parents.items()}
    found = stand_in(RecordDirectory(it), (), Snapshot(dict(reversed(same_tick.items()))))
    assert found is not None
    assert found.command == (next(iter(parents)), started)


@VANISHED
def test_a_kill_reaches_a_job_whose_records_are_gone(jobs: Jobs, what: str) -> None:
    it = jobs.submit(jobs.sh("(setsid sh -c 'sleep 60 & echo $!' &) ; echo $$; sleep 61"))
    processes = [alive(int(pid)) for pid in jobs.until_printed(it, 2)]
    neighbour = jobs.submit(jobs.sh("sleep 62"))
    vanish(it, what)
    assert jobs.cancel(it) is None
    assert jobs.end(it, cancelling=True).phase is Phase.CANCELLED
    until(lambda: all(each.standing() == "dead" for each in processes))
    alive(record(neighbour)["command"][0])


def test_a_stubborn_job_whose_records_are_gone_is_killed_after_the_grace(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.backends.process.tree.DEFAULT_STOP_GRACE_S", 0.3)
    it = jobs.submit(jobs.spec(*IGNORES_SIGTERM))
    jobs.until_printed(it)
    command = alive(record(it)["command"][0])
    vanish(it, "directory")
    ended = jobs.end(it, cancelling=True)
    assert ended.phase is Phase.CANCELLED
    assert "its exit code is unknown" in ended.message
    until(lambda: command.standing() == "dead")


def test_an_exit_code_counts_though_the_record_of_the_start_is_gone(jobs: Jobs, tmp_path: Path) -> None:
    it = jobs.submit(jobs.sh(f"while ! test -e {tmp_path}/go; do sleep 0.05; done; exit 7"))
    vanish(it, "start")
    (tmp_path / "go").touch()
    ended = jobs.end(it)
    assert (ended.phase, ended.detail["exit_code"]) == (Phase.FAILED, 7)


def test_who_does_not_see_the_place_of_a_submission_proves_nothing(jobs: Jobs) -> None:
    spec = jobs.sh("true")
    place = asyncio.run(jobs.backend.baseline(spec))
    jobs.records_dir.rename(jobs.records_dir.with_name("elsewhere"))
    jobs.records_dir.mkdir()
    with pytest.raises(BackendError, match=r"cannot be seen from here"):
        asyncio.run(jobs.backend.find(spec, "token", SINCE, baseline=place))
    assert not (jobs.records_dir / "token").exists()


def test_output_that_is_gone_is_told_from_output_that_never_was(jobs: Jobs, tmp_path: Path) -> None:
    assert jobs.lines(str(tmp_path)) == []
    for unknown in (tmp_path / "none", tmp_path / "none" / "below", "a\0b"):
        with pytest.raises(BackendError, match="is gone"):
            jobs.lines(str(unknown))


@pytest.mark.parametrize("name", ["start", "exit", "cancel"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"by": "wrapper"}'])
def test_a_damaged_record_says_nothing_about_the_job(jobs: Jobs, name: str, content: str) -> None:
    it = jobs.submit(jobs.sh("exit 1"))
    jobs.end(it)
    Path(it, name).write_text(content)
    answer = jobs.look(it)
    assert isinstance(answer, RemoteError)
    assert "is damaged" in answer.message


def test_a_record_that_cannot_be_read_is_not_gone(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("true"))
    jobs.end(it)
    Path(it, "start").unlink()
    Path(it, "start").mkdir()  # reading it fails, for root too
    assert isinstance(jobs.look(it), RemoteError)
    assert isinstance(jobs.cancel(it), RemoteError)


def test_an_exit_written_between_the_looks_is_not_missed(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    it = jobs.submit(jobs.sh("exit 6"))
    jobs.end(it)
    pid = wrapper_pid(it)
    until(lambda: not is_alive(pid))
    real, looks = RecordDirectory.exit, iter([False, True])

    def late(self: RecordDirectory) -> ExitRecord | None:
        return real(self) if next(looks) else None

    monkeypatch.setattr(RecordDirectory, "exit", late)
    answer = jobs.look(it)
    assert isinstance(answer, Observation)
    assert answer.message == "exit code 6"


@pytest.mark.skipif(sys.platform != "linux", reason="makes a small file system of its own")
def test_a_full_disk_loses_neither_the_exit_code_nor_a_cancel(jobs: Jobs) -> None:
    jobs.records_dir.mkdir()
    size = "size=256k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "none", str(jobs.records_dir)],
        stderr=subprocess.PIPE,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        fill = "dd if=/dev/zero bs=1k 2>/dev/null; echo full >&2; cat /dev/zero >/dev/stdout 2>/dev/null;"
        failed = jobs.submit(jobs.sh(f"{fill} exit 9"))
        ended = jobs.end(failed)
        assert ended.detail["exit_code"] == 9
        assert "the disk of its log was full: free space" in ended.message
        with pytest.raises(SubmitRejected, match=r"cannot be written .*No space left"):
            jobs.submit(jobs.sh("true"), "late")
        log_path(failed).unlink()
        cancelled = jobs.submit(jobs.sh(f"{fill} sleep 60"))
        until(lambda: os.statvfs(jobs.records_dir).f_bavail == 0)
        jobs.cancel(cancelled)
        assert jobs.end(cancelled).phase is Phase.CANCELLED
    finally:
        subprocess.run(["umount", "-l", str(jobs.records_dir)], check=True)


# Cancelling

TREE = "(sleep 60 & echo $!; wait) & (setsid sleep 61 & echo $!; wait) & echo $$; wait"


def test_cancel_ends_the_whole_tree(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh(TREE))
    tree = [alive(int(pid)) for pid in jobs.until_printed(it, 3)]
    assert jobs.cancel(it) is None
    ended = jobs.end(it)
    assert (ended.phase, ended.external_state) == (Phase.CANCELLED, "signal SIGTERM")
    assert ended.message == "ended by SIGTERM"
    assert {process.standing() for process in tree} == {"dead"}
    assert jobs.cancel(it) is None


def test_cancel_reaches_a_grandchild_whose_parent_is_gone(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("(sleep 60 & echo $!); sleep 61"))
    orphan = alive(int(jobs.until_printed(it)[0]))
    jobs.cancel(it)
    jobs.end(it)
    assert orphan.standing() == "dead"


def test_what_ignores_sigterm_is_killed_after_the_grace(jobs: Jobs) -> None:
    it = jobs.submit(jobs.spec(*IGNORES_SIGTERM, stop_grace_s=0.5))
    jobs.until_printed(it)
    jobs.cancel(it)
    jobs.cancel(it)
    asked_s = record(it, "cancel")["asked_s"]
    answer = jobs.look(it)
    assert isinstance(answer, Observation)
    assert (answer.phase, answer.external_state) == (Phase.RUNNING, "stopping")
    ended = jobs.end(it, cancelling=True)
    assert (ended.phase, ended.external_state) == (Phase.CANCELLED, "signal SIGKILL")
    assert monotonic_s() - asked_s >= 0.5


def test_a_job_is_not_over_before_its_last_process_is(jobs: Jobs) -> None:
    stubborn = "trap '' TERM; echo $$; while :; do sleep 1; done"
    it = jobs.submit(jobs.sh(f'setsid sh -c "{stubborn}" & sleep 60', stop_grace_s=0.5))
    grandchild = alive(int(jobs.until_printed(it)[0].replace("$$", "")))
    jobs.cancel(it)
    until(Path(it, "exit").exists)
    answer = jobs.look(it)
    assert isinstance(answer, Observation)
    assert answer.external_state == "stopping"
    assert jobs.end(it, cancelling=True).phase is Phase.CANCELLED
    assert grandchild.standing() == "dead"


def test_another_runner_carries_a_cancel_on(jobs: Jobs) -> None:
    it = jobs.submit(jobs.spec(*IGNORES_SIGTERM, stop_grace_s=0.2))
    jobs.until_printed(it)
    jobs.cancel(it)
    jobs.backend = ProcessBackend(jobs.records_dir)
    assert jobs.end(it, cancelling=True).external_state == "signal SIGKILL"


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_answers_sigterm_with_an_exit_code_was_cancelled(jobs: Jobs, code: int) -> None:
    it = jobs.submit(jobs.sh(f"trap 'exit {code}' TERM; echo ready; while :; do sleep 0.05; done"))
    jobs.until_printed(it)
    jobs.cancel(it)
    ended = jobs.end(it)
    assert (ended.phase, ended.external_state) == (Phase.CANCELLED, f"exited {code}")
    assert ended.message == f"it exited {code} after SIGTERM"
    assert ended.detail["exit_code"] == code


@pytest.mark.parametrize(("code", "phase"), [(0, Phase.SUCCEEDED), (3, Phase.FAILED)])
def test_a_command_that_ended_by_itself_before_the_signal_has_its_true_outcome(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, code: int, phase: Phase
) -> None:
    it = jobs.submit(jobs.sh(f'while [ ! -e "{jobs.records_dir}/go" ]; do sleep 0.01; done; exit {code}'))
    write = RecordDirectory.write_cancel

    def slowly(self: RecordDirectory, noted: CancelRecord) -> None:
        write(self, noted)
        Path(jobs.records_dir, "go").touch()
        until(Path(it, "exit").exists)

    monkeypatch.setattr(RecordDirectory, "write_cancel", slowly)
    jobs.cancel(it)
    assert jobs.end(it, cancelling=True).phase is phase


def test_a_failure_before_the_cancel_stays_a_failure(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("exit 3"))
    jobs.end(it)
    jobs.cancel(it)
    assert jobs.end(it).phase is Phase.FAILED
    assert not Path(it, "cancel").exists()


def test_a_stopped_job_is_ended_even_with_its_wrapper_stopped(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("echo $$; sleep 60"))
    command = alive(int(jobs.until_printed(it)[0]))
    os.kill(command.pid, signal.SIGSTOP)
    os.kill(wrapper_pid(it), signal.SIGSTOP)
    until(lambda: process_table()[wrapper_pid(it)].is_stopped and process_table()[command.pid].is_stopped)
    jobs.cancel(it)
    assert jobs.end(it).external_state == "signal SIGTERM"


def test_cancel_works_without_the_wrapper(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh(TREE))
    tree = [alive(int(pid)) for pid in jobs.until_printed(it, 3)]
    kill_wrapper(it)
    jobs.cancel(it)
    ended = jobs.end(it)
    assert (ended.phase, ended.external_state) == (Phase.CANCELLED, "ended")
    assert {process.standing() for process in tree} == {"dead"}


def test_what_is_left_of_a_session_is_ended_when_wrapper_and_command_are_gone(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("sleep 60 & echo $!; wait"))
    left = alive(int(jobs.until_printed(it)[0]))
    kill_wrapper(it)
    command = alive(record(it)["command"][0])
    os.kill(command.pid, signal.SIGKILL)
    until(lambda: command.standing() == "dead")
    jobs.cancel(it)
    until(lambda: left.standing() == "dead")
    assert jobs.look(it) == Gone("its wrapper was killed before the exit code was recorded", certain=True)


def test_a_process_that_only_has_the_pid_is_never_signalled(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("sleep 60"))
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        try:
            mark = [stranger.pid, alive(stranger.pid).started - 1]  # started a moment before: another process
            true = record(it)
            rewrite(it, command=mark, wrapper=mark)
            answer = jobs.look(it)
            assert isinstance(answer, Gone)
            assert answer.certain
            for _ in range(3):
                assert jobs.cancel(it) is None
            alive(stranger.pid)
            rewrite(it, **true)
        finally:
            stranger.kill()


def test_a_process_that_took_over_the_number_of_the_session_is_never_signalled(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("true", stop_grace_s=0))
    jobs.end(it)
    Path(it, "exit").unlink()
    with subprocess.Popen(
        ["/bin/sh", "-c", "sleep 60 & echo $!; wait"], start_new_session=True, stdout=subprocess.PIPE
    ) as stranger:
        assert stranger.stdout is not None
        child = alive(int(stranger.stdout.readline()))
        try:
            rewrite(it, wrapper=[stranger.pid, 1])
            jobs.cancel(it)
            alive(stranger.pid)
            assert child.standing() == "alive"
        finally:
            os.killpg(stranger.pid, signal.SIGKILL)


def test_a_process_of_a_session_without_known_ones_proves_itself_by_its_environment(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("sleep 60 & echo $!; wait"))
    left = alive(int(jobs.until_printed(it)[0]))
    directory = RecordDirectory(it)
    start = directory.start()
    assert start is not None
    known_gone = {start.wrapper[0], start.command[0]}
    snapshot = Snapshot({pid: stat for pid, stat in process_table().items() if pid not in known_gone})
    assert set(processes_of(directory, start, (), snapshot)) == {(left.pid, left.started)}
    assert not processes_of(RecordDirectory(it + "2"), start, (), snapshot)


@pytest.mark.parametrize("has_handles", [True, False])
def test_a_signal_reaches_a_live_process_and_no_dead_one(
    monkeypatch: pytest.MonkeyPatch, *, has_handles: bool
) -> None:
    if not has_handles:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    with subprocess.Popen(["sleep", "60"]) as process:
        it = alive(process.pid)
        assert send(it, signal.SIGTERM)
        os.waitid(os.P_PID, it.pid, os.WEXITED | os.WNOWAIT)
        assert not send(it, signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    assert not send(it, signal.SIGTERM)


def test_a_cancel_of_a_huge_tree_fits_into_its_spare_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    directory = RecordDirectory(str(tmp_path))
    wrapper.make_spare(directory.path, wrapper.CANCEL_SPARE)
    monkeypatch.setattr(wrapper, "write_over", full)
    tree = frozenset((4_000_000 + n, 10**10 + n) for n in range(1000))
    directory.write_cancel(CancelRecord(at="2026", reason="ä" * 200, asked_s=1.5, tree=tree))
    kept = directory.cancel()
    assert kept is not None
    assert kept.asked_s == 1.5
    assert len(kept.tree) == 50


def test_any_reason_can_be_recorded(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("sleep 60"))
    assert not asyncio.run(jobs.backend.cancel([it], "\udcff" + "long " * 10_000))
    assert jobs.end(it).phase is Phase.CANCELLED


def test_an_unknown_identity_is_not_signalled_and_said_so(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = jobs.submit(jobs.sh("sleep 60"))
    monkeypatch.setattr(ProcessIdentity, "standing", lambda _: "unknown")
    trouble = jobs.cancel(it)
    assert isinstance(trouble, RemoteError)
    assert "it was not signalled" in trouble.message
    assert isinstance(jobs.look(it), Observation)  # the table shows it
    monkeypatch.undo()
    alive(record(it)["command"][0])


def test_many_are_looked_at_and_cancelled_in_one_call(jobs: Jobs) -> None:
    async def scenario() -> None:
        spec = jobs.sh("sleep 60")
        ids = await asyncio.gather(*(jobs.backend.submit(spec, f"job-{n}") for n in range(8)))
        assert not await jobs.backend.cancel([*ids, "/nowhere/at/all"], "enough")
        give_up_at_s = monotonic_s() + DEADLINE_S
        while monotonic_s() < give_up_at_s:
            answers = await jobs.backend.fetch(ids)
            if all(isinstance(a, Observation) and a.phase is Phase.CANCELLED for a in answers.values()):
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"not all were cancelled: {answers}")

    asyncio.run(scenario())


# Output


def test_output_comes_as_lines_whatever_its_bytes(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh(r"printf 'one\r\n\303\050\n\ntwo\tthree'; echo ' four' >&2; printf five"))
    jobs.end(it)
    assert [line.text for line in jobs.lines(it)] == ["one", "\ufffd(", "", "two\tthree four", "five"]


def test_a_line_without_end_does_not_fill_the_memory(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("head -c 3000000 /dev/zero | tr '\\0' x"))
    jobs.end(it)
    lengths = [len(line.text) for line in jobs.lines(it)]
    assert sum(lengths) == 3000000
    assert max(lengths) <= 1024 * 1024


def test_a_log_that_cannot_be_read_is_an_error(jobs: Jobs) -> None:
    it = jobs.submit(jobs.sh("true"))
    jobs.end(it)
    log_path(it).unlink()
    log_path(it).mkdir()
    with pytest.raises(BackendError, match="cannot be read"):
        jobs.lines(it)
