"""Commands with bytes that are not text: they run with exactly these bytes, or a sentence says why not."""

import os
from pathlib import Path

import pytest

from jobrunner.database import Database
from jobrunner.errors import SpecError
from jobrunner.models import ProcessMonitorJob
from tests.helpers import row_of

ODD = b"caf\xe9 100% \xff"


def test_a_command_runs_with_exactly_its_bytes(database: Database, tmp_path: Path) -> None:
    odd, here = os.fsdecode(ODD), tmp_path / os.fsdecode(b"d\xfe")
    here.mkdir()
    told = tmp_path / "told"
    script = 'printf %s "$1|$ODD" > ' + str(told) + "; pwd >> " + str(told)
    job = ProcessMonitorJob(["sh", "-c", script, "sh", odd], cwd=here, env={"ODD": odd}, poll_interval=0.05)
    job.run()
    assert told.read_bytes() == ODD + b"|" + ODD + os.fsencode(here) + b"\n"
    assert row_of(database, job.id)["spec"]["command"][-1] == {"bytes": "caf%E9 100%25 %FF"}


@pytest.mark.parametrize("word", ["cut \ud83d", "a\0b"], ids=["half", "nul"])
def test_a_word_that_no_program_can_be_given_is_refused_before_anything_is_stored(
    sqlite_database: Database, word: str
) -> None:
    for order in ({"command": ["echo", word]}, {"command": ["true"], "env": {"A": word}}):
        with pytest.raises(SpecError, match="cannot be run as described"):
            ProcessMonitorJob(**order)
