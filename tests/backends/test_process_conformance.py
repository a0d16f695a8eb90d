import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from jobrunner.backends.process import ProcessBackend
from jobrunner.backends.process.records import RecordDirectory
from jobrunner.identity import process_table
from jobrunner.testing.conformance import BackendConformance, Harness

# Goes on until it finds a file that names its exit code.
SCRIPT = 'cd "$JOBRUNNER_RECORD"; while ! [ -e outcome ]; do sleep 0.02; done; exit "$(cat outcome)"'


def tell(external_id: str, code: int) -> None:
    made = Path(external_id, "outcome.new")
    made.write_text(str(code))
    made.rename(Path(external_id, "outcome"))


class TestProcessBackendConforms(BackendConformance):
    @pytest.fixture(autouse=True)
    def _records(self, tmp_path: Path) -> None:
        self.records_dir = tmp_path

    @asynccontextmanager
    async def harness(self) -> AsyncIterator[Harness]:
        backend = ProcessBackend(self.records_dir)

        async def succeed(external_id: str) -> None:
            tell(external_id, 0)

        async def fail(external_id: str) -> None:
            tell(external_id, 3)

        yield Harness(
            backend=backend,
            spec=lambda: {"command": ["/bin/sh", "-c", SCRIPT]},
            succeed=succeed,
            fail=fail,
            unknown_id=str(self.records_dir / "no-such-job-0000"),
            deadline_s=20.0,
        )
        await backend.close()
        self._kill_what_is_left()

    def _kill_what_is_left(self) -> None:
        starts = [RecordDirectory(str(path.parent)).start() for path in self.records_dir.glob("*/start")]
        sessions = {start.wrapper[0] for start in starts if start is not None and start.by == "wrapper"}
        for stat in process_table().values():
            if stat.session in sessions:
                with suppress(ProcessLookupError):  # it ended since the table was read
                    os.kill(stat.pid, signal.SIGKILL)
