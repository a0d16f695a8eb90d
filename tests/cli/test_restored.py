"""`jobrunner db restored`, as somebody types it who has just restored a backup."""

import sqlite3
from contextlib import closing

from tests.cli.conftest import CommandLine


def test_a_command_that_ran_after_the_backup_is_not_run_again(jobrunner: CommandLine) -> None:
    ran = jobrunner.directory / "ran"
    stored = jobrunner("start", "process", "--detach", "--json", "--", "sh", "-c", f"echo ran >> {ran}")
    job_id = stored.json["id"]
    backup = jobrunner.directory / "backup.db"
    with closing(sqlite3.connect(jobrunner.database)) as live, closing(sqlite3.connect(backup)) as copy:
        live.backup(copy)
    assert jobrunner("attach", str(job_id)).code == 0
    with closing(sqlite3.connect(backup)) as copy, closing(sqlite3.connect(jobrunner.database)) as live:
        copy.backup(live)
    answer = jobrunner("db", "restored", "--json")
    assert (answer.code, answer.json) == (0, {"held": 1, "confirmed": [], "left": []})
    assert jobrunner("attach", str(job_id)).code == 0
    assert ran.read_text() == "ran\n"


def test_the_command_line_lists_what_is_held_and_takes_a_confirmation(jobrunner: CommandLine) -> None:
    module = jobrunner.directory / "mine.py"
    module.write_text(
        "from jobrunner import BaseJob\nclass Mine(BaseJob):\n    def _execute(self):\n        pass\n"
    )
    job_id = jobrunner("start", "mine:Mine", "--detach", "--json").json["id"]
    answer = jobrunner("db", "restored")
    assert "own code" in answer.out
    assert answer.says("--confirm", "jobrunner kill")
    assert [each["id"] for each in jobrunner("db", "restored", "--ask", "--json").json["left"]] == [job_id]
    assert jobrunner("db", "restored", "--ask", "--confirm", "1").is_refused("one of")
    assert jobrunner("db", "restored", "--confirm", "99").is_refused("99", "not held")
    assert jobrunner("db", "restored", "--confirm", str(job_id)).says("No job is held")


def test_a_kill_of_a_held_job_looks_for_its_work_before_it_says_killed(jobrunner: CommandLine) -> None:
    job_id = jobrunner("start", "process", "--detach", "--json", "--", "true").json["id"]
    with closing(sqlite3.connect(jobrunner.database)) as live, live:
        live.execute("UPDATE job SET held_at = datetime('now')")
    answer = jobrunner("kill", str(job_id))
    assert answer.code == 0
    assert "killed" in answer.out
    assert "does not prove that there was none" in answer.out
