"""list, show, wait, logs, check, config: what only asks."""

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from contextlib import closing

import pytest

from tests.cli.conftest import Answer, CommandLine
from tests.helpers import until

_INSERT = (
    "INSERT INTO job"
    " (job_type, name, state, heartrate, latest_heartbeat, start_date, hostname, external_id, message) "
    "VALUES (?, ?, ?, 10, datetime('now', ?), datetime('now', '-1 hour'), ?, ?, ?)"
)


def put(
    jobrunner: CommandLine,
    state: str,
    *,
    job_type: str = "ProcessMonitorJob",
    name: str = "n",
    beat: str = "-1 seconds",
    hostname: str = "box",
    external_id: str | None = None,
    message: str = "",
) -> None:
    """Put a row into the database, as its table is."""
    if not jobrunner.database.exists():
        assert jobrunner("list").code == 0
    with closing(sqlite3.connect(jobrunner.database)) as connection, connection:
        connection.execute(_INSERT, (job_type, name, state, beat, hostname, external_id, message))


def on_terminal(jobrunner: CommandLine, columns: int, *arguments: str) -> str:
    """Return what a command shows on a terminal of this width."""
    main, side = pty.openpty()
    environment = jobrunner.environment | {"COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobrunner.cli.main", *arguments],
        cwd=jobrunner.directory,
        env=environment,
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    shown = b""
    try:
        while part := os.read(main, 65536):
            shown += part
    except OSError:  # the other side was closed: Linux says it so
        pass
    process.wait(timeout=30)
    os.close(main)
    return re.sub(r"\x1b\[[0-9;]*[mK]", "", shown.decode())


# --- list and show ---------------------------------------------------------------------------------


def test_an_empty_list_says_so(jobrunner: CommandLine) -> None:
    answer = jobrunner("list")
    assert (answer.code, answer.out, answer.words) == (0, "", "There are no jobs yet.\n")
    assert jobrunner("list", "--key", "").words == "There are no such jobs.\n"
    assert jobrunner("list", "--json").json == []


def test_the_list_shows_who_lives_who_is_silent_and_who_is_released(jobrunner: CommandLine) -> None:
    put(jobrunner, "running")
    put(jobrunner, "running", beat="-5 minutes")
    put(jobrunner, "queued", external_id="x")
    put(jobrunner, "success", job_type="NobodyKnowsIt", message="a\nb\x1b[31m")
    answer = jobrunner("list")
    lines = answer.out.splitlines()
    assert lines[0].split() == ["id", "type", "name", "state", "beat", "host", "started", "message"]
    assert [line.split()[0] for line in lines[1:]] == ["4", "3", "2", "1"]
    assert "NobodyKnowsIt" in lines[1]
    assert "a b [31m" in lines[1]
    assert "released, running outside" in lines[2]
    assert "silent 5m0" in lines[3]
    assert "alive " in lines[4]
    assert answer.says("job 3", "deadline")
    assert [row["alive"] for row in jobrunner("list", "--json").json] == [False, False, False, True]


def test_the_list_is_narrowed_by_each_option(jobrunner: CommandLine) -> None:
    put(jobrunner, "running", name="a")
    put(jobrunner, "success", name="b", job_type="Other")
    put(jobrunner, "failed", name="b")

    def ids(*arguments: str) -> list[int]:
        return [row["id"] for row in jobrunner("list", "--json", *arguments).json]

    assert ids("--state", "success", "--state", "failed") == [3, 2]
    assert ids("--job-type", "Other") == [2]
    assert ids("--name", "b") == [3, 2]
    assert ids("--since", "1h") == [3, 2, 1]
    assert ids("--since", "2999-01-01T00:00:00Z") == []
    assert ids("--since", "2001-01-01T00:00:00+02:00") == [3, 2, 1]
    assert ids("--limit", "1") == [3]
    assert jobrunner("list", "--limit", "1").says("more than 1")


def test_show_has_every_column_the_events_and_the_children(jobrunner: CommandLine) -> None:
    assert jobrunner("start", "process", "--poll-interval", "0.2", "--", "true").code == 0
    put(jobrunner, "queued", name="child")
    with closing(sqlite3.connect(jobrunner.database)) as connection, connection:
        connection.execute("UPDATE job SET parent_id = 1 WHERE id = 2")
        columns = {name for _, name, *_ in connection.execute("PRAGMA table_info(job)")}
    shown = jobrunner("show", "1")
    assert columns <= {line.split()[0] for line in shown.out.splitlines() if line.split()}
    assert "alive  " in shown.out
    assert "child" in shown.out
    row = jobrunner("show", "1", "--json").json
    assert columns <= set(row)
    assert [event["to_state"] for event in row["events"]] == ["running", "success"]
    assert [child["id"] for child in row["children"]] == [2]


DETAIL = {
    "exit_code": 137,
    "attempts": [
        {"exit_code": 1, "reason": "", "log_streams": ["a/b"]},
        {"exit_code": 137, "reason": "OutOfMemoryError", "inner": {"deep": True, "none": None}},
    ],
    "array": {"size": 100, "summary": {"SUCCEEDED": 37}},
    "streams": ["x", "y z"],
}


def put_detail(jobrunner: CommandLine) -> None:
    put(jobrunner, "failed")
    with closing(sqlite3.connect(jobrunner.database)) as connection, connection:
        connection.execute("UPDATE job SET spec = '{}', detail = ?", (json.dumps(DETAIL),))


def test_show_spells_what_a_job_keeps_a_line_for_each_key(jobrunner: CommandLine) -> None:
    put_detail(jobrunner)
    lines = [" ".join(line.split()) for line in jobrunner("show", "1").out.splitlines()]
    start = lines.index("detail")
    assert lines[start + 1 : start + 6] == [
        "exit_code 137",
        'attempts 1 exit_code: 1, log_streams: ["a/b"]',
        "attempts 2 exit_code: 137, reason: OutOfMemoryError, inner: (deep: yes)",
        "array size: 100, summary: (SUCCEEDED: 37)",
        'streams ["x", "y z"]',
    ]
    assert "spec -" in lines
    assert jobrunner("show", "1", "--json").json["detail"] == DETAIL


def test_what_a_job_keeps_fits_a_narrow_terminal(jobrunner: CommandLine) -> None:
    put_detail(jobrunner)
    shown = on_terminal(jobrunner, 50, "show", "1").splitlines()
    assert max(len(line) for line in shown) <= 50
    assert any(line.startswith("  exit_code") and line.split() == ["exit_code", "137"] for line in shown)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_tables_fit_the_terminal(jobrunner: CommandLine, columns: int) -> None:
    put(jobrunner, "running", name="import-orders", message="a long message " * 20)
    shown = on_terminal(jobrunner, columns, "list")
    lines = shown.splitlines()
    assert max(len(line) for line in lines) <= columns
    assert len(lines) == 2
    assert all(word in shown for word in ("id", "running", "a long m", "…"))
    assert max(len(line) for line in on_terminal(jobrunner, columns, "show", "1").splitlines()) <= columns
    config = on_terminal(jobrunner, columns, "config")
    assert "heartrate" in config
    assert "default" in config


def test_a_live_line_shows_the_state_and_the_beat(jobrunner: CommandLine) -> None:
    shown = on_terminal(jobrunner, 60, "start", "process", "--poll-interval", "0.2", "--", "sleep", "1.5")
    assert "job 1\r\n" in shown
    assert "job 1  running  1s  beat " in shown
    assert "job 1 success after " in shown.splitlines()[-1]


# --- wait, logs, check -----------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "code"), [("success", 0), ("failed", 1), ("killed", 3), ("lost", 4)])
def test_wait_exits_as_the_job_ended(jobrunner: CommandLine, state: str, code: int) -> None:
    put(jobrunner, state, message="that is why")
    assert jobrunner("wait", "1").code == code
    answer = jobrunner("wait", "1", "--json")
    assert (answer.code, answer.json["state"]) == (code, state)


def test_wait_gives_up_after_its_timeout(jobrunner: CommandLine) -> None:
    put(jobrunner, "running")
    assert jobrunner("wait", "1", "--timeout", "0.2").is_refused("still running after 0.2 s", code=5)


def test_wait_says_when_nobody_watches(jobrunner: CommandLine) -> None:
    put(jobrunner, "running", beat="-5 minutes")
    answer = jobrunner("wait", "1", "--timeout", "0.2")
    assert answer.code == 5
    assert answer.says("job 1 is silent", "jobrunner attach 1")


def test_wait_sees_the_end_of_a_job_that_runs_elsewhere(jobrunner: CommandLine) -> None:
    process, job_id = jobrunner.begin_job(
        "process", "--poll-interval", "0.2", "--", "sh", "-c", "sleep 1; exit 3"
    )
    assert jobrunner("wait", job_id).code == 1
    process.communicate(timeout=30)


def test_following_logs_prints_each_line_once_until_the_end(jobrunner: CommandLine) -> None:
    script = "for i in 1 2 3; do echo line $i; sleep 0.6; done; printf unfinished"
    process, job_id = jobrunner.begin_job("process", "--poll-interval", "0.2", "--", "sh", "-c", script)
    followed = jobrunner("logs", job_id, "--follow")
    process.communicate(timeout=30)
    assert (followed.code, followed.out) == (0, "line 1\nline 2\nline 3\nunfinished\n")
    lines = [json.loads(line) for line in jobrunner("logs", job_id, "--json").out.splitlines()]
    assert [line["text"] for line in lines] == ["line 1", "line 2", "line 3", "unfinished"]


def test_a_job_that_printed_nothing_gets_a_sentence(jobrunner: CommandLine) -> None:
    assert jobrunner("start", "process", "--poll-interval", "0.2", "--", "true").code == 0
    answer = jobrunner("logs", "1")
    assert (answer.code, answer.out, answer.words) == (0, "", "Job 1 has printed nothing.\n")


def test_the_logs_of_another_host_are_said_to_be_there(jobrunner: CommandLine) -> None:
    put(jobrunner, "running", hostname="other", external_id="/x")
    with closing(sqlite3.connect(jobrunner.database)) as connection, connection:
        connection.execute("UPDATE job SET host_id = 'elsewhere/boot/1', connection = 'process_default'")
    assert jobrunner("logs", "1").is_refused("on other")


def test_check_tells_by_its_exit_code(jobrunner: CommandLine) -> None:
    answer = jobrunner("check")
    assert (answer.code, answer.out, answer.words) == (1, "", "No job is alive.\n")
    put(jobrunner, "running", hostname="box")
    assert (jobrunner("check").code, jobrunner("check").out) == (0, "job 1 is alive\n")
    assert jobrunner("check", "--json").json == {"ok": True, "alive": [1], "more": False}
    assert jobrunner("check", "--hostname", "box").code == 0
    assert jobrunner("check", "--hostname", "other").code == 1
    assert jobrunner("check", "--local").code == 1
    assert jobrunner("check", "--job-type", "ProcessMonitorJob").code == 0


def test_check_names_the_newest_hundred_of_many(jobrunner: CommandLine) -> None:
    put(jobrunner, "running", job_type="etl.Custom")
    with closing(sqlite3.connect(jobrunner.database)) as connection, connection:
        columns = "job_type, state, heartrate, hostname"
        numbers = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100)"
        connection.execute(f"INSERT INTO job ({columns}) {numbers} SELECT {columns} FROM job, n")
    answer = jobrunner("check", "--allow-multiple", "--json").json
    assert answer == {"ok": True, "alive": list(range(101, 1, -1)), "more": True}
    assert jobrunner("check", "--allow-multiple").says("More than 100 are alive", "jobrunner list")


def test_check_wants_one_alive_unless_more_are_allowed(jobrunner: CommandLine) -> None:
    put(jobrunner, "running", job_type="etl.Custom")
    put(jobrunner, "running", job_type="etl.Custom")
    answer = jobrunner("check", "--job-type", "etl.Custom")
    assert answer.code == 1
    assert answer.says("More than one job is alive", "--allow-multiple")
    assert jobrunner("check", "--job-type", "etl.Custom", "--allow-multiple").code == 0


def test_check_judges_all_jobs_and_not_only_the_newest(jobrunner: CommandLine) -> None:
    put(jobrunner, "running")
    for _ in range(5):
        put(jobrunner, "running", beat="-1 hour")
    assert jobrunner("check").code == 0


def test_check_judges_by_the_grace_that_is_asked_for(jobrunner: CommandLine) -> None:
    put(jobrunner, "running", beat="-30 seconds")
    assert jobrunner("check").code == 1
    assert jobrunner("check", "--grace-multiplier", "10").code == 0


def test_config_tells_where_each_value_comes_from_and_masks_secrets(jobrunner: CommandLine) -> None:
    answer = jobrunner("config", "--json", JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__CLIENT_SECRET="hush")
    found = {row["setting"]: row for row in answer.json}
    assert found["heartrate"] == {
        "setting": "heartrate",
        "value": "1",
        "source": "environment JOBRUNNER_HEARTRATE",
    }
    assert found["grace_multiplier"]["source"] == "default"
    assert "hush" not in answer.out + answer.words
    assert jobrunner("config").says("jobrunner.db")


# --- kill ------------------------------------------------------------------------------------------


def test_kill_writes_nothing_where_one_id_is_wrong(jobrunner: CommandLine) -> None:
    put(jobrunner, "running")
    assert jobrunner("kill", "1", "99").is_refused("no job 99")
    assert jobrunner("show", "1", "--json").json["kill_requested_at"] is None


def test_kill_sets_the_flag_of_each_job(jobrunner: CommandLine) -> None:
    put(jobrunner, "running")
    put(jobrunner, "queued")
    put(jobrunner, "success")
    answer = jobrunner("kill", "1", "2", "3", "2", "--reason", "enough")
    assert answer.code == 0
    assert answer.out.splitlines()[0] == "job 1 running, kill requested"
    assert "job 2 killed" in answer.out.splitlines()[1]
    assert "already ended: job 3 success" in answer.out.splitlines()[2]
    row = jobrunner("show", "1", "--json").json
    assert (row["kill_reason"], row["kill_requested_by"] is not None) == ("enough", True)


def test_kill_cancels_from_here_what_nobody_watches(jobrunner: CommandLine) -> None:
    process, job_id = jobrunner.begin_job("process", "--", "sleep", "60")
    jobrunner.until(job_id, "external_id", None)
    process.kill()
    process.communicate()
    time.sleep(2.2)  # the beats of 1 s have to be missed
    answer = jobrunner("kill", job_id)
    assert answer.code == 0
    assert answer.says("no runner now")
    assert f"job {job_id} killed" in answer.out


def test_kill_says_in_a_sentence_that_a_connection_is_not_configured_here(jobrunner: CommandLine) -> None:
    put(jobrunner, "running", job_type="BatchMonitorJob", beat="-5 minutes", external_id="1")
    with closing(sqlite3.connect(jobrunner.database)) as connection, connection:
        connection.execute("UPDATE job SET connection = 'nowhere', submit_token = 't', adoptable = 1")
    answer = jobrunner("kill", "1")
    assert answer.code == 1
    assert answer.says("cannot be cancelled from here", 'there is no connection "nowhere"')
    assert answer.words.rstrip().endswith(".")


def test_kill_says_what_it_cannot_cancel_and_leaves_the_flag(jobrunner: CommandLine) -> None:
    put(jobrunner, "running", job_type="NobodyKnowsIt", beat="-5 minutes")
    answer = jobrunner("kill", "1")
    assert answer.code == 1
    assert answer.says("marked to be killed", "cannot be cancelled from here")
    assert jobrunner("show", "1", "--json").json["kill_requested_at"] is not None


@pytest.fixture
def unreachable_batch(aws: CommandLine) -> CommandLine:
    """The command line with an AWS Batch that does not answer."""
    aws.environment["JOBRUNNER_CONNECTIONS__BATCH_DEFAULT__ENDPOINT_URL"] = "http://127.0.0.1:9"
    return aws


def test_a_job_that_cannot_be_cancelled_from_here_keeps_no_other_alive(
    unreachable_batch: CommandLine,
) -> None:
    jobrunner = unreachable_batch
    assert jobrunner("start", "batch", "--attach", str(uuid.uuid4()), "--detach").code == 0
    process, job_id = jobrunner.begin_job("process", "--", "sleep", "60")
    jobrunner.until(job_id, "external_id", None)
    process.kill()
    process.communicate()
    killing = jobrunner.begin("kill", "1", job_id, "--wait")
    try:
        until(lambda: jobrunner("show", job_id, "--json").json["state"] == "killed", 60)
        assert killing.poll() is None  # the other one is waited for
    finally:
        killing.send_signal(signal.SIGINT)
        assert killing.wait(30) == 128 + signal.SIGINT
    row = jobrunner("show", "1", "--json").json
    assert (row["state"], row["kill_requested_at"] is not None) == ("queued", True)


def test_a_kill_without_wait_ends_though_the_outside_does_not_answer(
    unreachable_batch: CommandLine,
) -> None:
    jobrunner = unreachable_batch
    assert jobrunner("start", "batch", "--attach", str(uuid.uuid4()), "--detach").code == 0
    code = "from jobrunner.cli import kill, main; kill.CANCEL_WITHIN_S = 1.0; main.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "kill", "1"],
        cwd=jobrunner.directory,
        env=jobrunner.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer.code == 1
    assert answer.says("job 1 was not seen to end within 1 s", "stays marked", "jobrunner attach 1")
    row = jobrunner("show", "1", "--json").json
    assert (row["state"], row["kill_requested_at"] is not None) == ("queued", True)


# --- mistakes --------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[list[str], *tuple[str, ...]]] = {
    "show of an unknown id": (["show", "9"], "no job 9", "jobrunner list"),
    "show of no id": (["show", "x"], "ID", "'x'"),
    "an id beyond all": (["show", "99999999999999999999"], "range"),
    "a negative id": (["show", "--", "-1"], "range"),
    "wait for an unknown id": (["wait", "9"], "no job 9"),
    "a wrong timeout": (["wait", "1", "--timeout", "-1"], "no duration"),
    "attach to an unknown id": (["attach", "9"], "no job 9"),
    "kill without an id": (["kill"], "Missing argument"),
    "kill of an unknown id": (["kill", "9"], "no job 9"),
    "logs of an unknown id": (["logs", "9"], "no job 9"),
    "an unknown state": (["list", "--state", "done"], "--state", "queued"),
    "an unknown type in a list": (["list", "--job-type", "Nope"], "'Nope'", "ProcessMonitorJob"),
    "an unknown type in a check": (["check", "--job-type", "Nope"], "'Nope'", "ProcessMonitorJob"),
    "a limit of 0": (["list", "--limit", "0"], "--limit"),
    "a wrong since": (["list", "--since", "yesterday"], "no duration"),
    "a since without a unit": (["list", "--since", "5"], "no duration"),
    "a broken time": (["list", "--since", "2026-13-01"], "no time"),
    "a naive time": (["list", "--since", "2026-03-01T12:00:00"], "no time zone"),
    "a time before all": (["list", "--since", "0001-01-01T00:00:00+14:00"], "--since", "before the first"),
    "a limit beyond all": (["list", "--limit", "99999999999999999999"], "--limit", "range"),
    "a grace of 1": (["check", "--grace-multiplier", "1"], "more than 1"),
    "no grace": (["check", "--grace-multiplier", "x"], "no number"),
    "an infinite grace": (["check", "--grace-multiplier", "inf"], "more than 1"),
    "two hosts": (["check", "--local", "--hostname", "x"], "not both"),
    "logs of a child below 0": (["logs", "1", "--child", "-1"], "--child"),
    "logs of no node": (["logs", "1", "--node", "x"], "--node"),
    "an unknown connection": (["connections", "test", "x"], 'no connection "x"', "configured: none"),
    "no connection": (["connections", "test"], "Missing argument"),
    "what connections cannot do": (["connections", "delete"], "No such command 'delete'"),
    "an unknown command": (["stop"], "No such command 'stop'", "jobrunner --help"),
    "an unknown option": (["list", "--sate", "x"], "--sate"),
    "no unit for pruning": (["db", "prune", "--older-than", "30"], "no duration"),
    "nothing for pruning": (["db", "prune"], "--older-than"),
    "an unknown revision": (["db", "upgrade", "zzz"], "zzz", "0001"),
    "a downgrade that nobody confirms": (["db", "downgrade", "base"], "--yes"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence_and_exit_code_2(jobrunner: CommandLine, mistake: str) -> None:
    arguments, *words = MISTAKES[mistake]
    assert jobrunner(*arguments).is_refused(*words)
