"""What the record of a job and the process table say together: the answer of `fetch`."""

from functools import cached_property

from jobrunner.backends.base import Gone, Observation, RemoteError
from jobrunner.backends.process.records import (
    CancelRecord,
    ExitRecord,
    RecordDirectory,
    RecordError,
    StartRecord,
)
from jobrunner.backends.process.tree import Table, processes_of
from jobrunner.identity import boot_id, host_id, pid_namespace, process_table, same_machine
from jobrunner.states import Phase


class Look:
    """One look at many jobs: the process table is read at most once, and only when it is needed."""

    @cached_property
    def table(self) -> Table:
        """Every process of the host."""
        return process_table()

    def at(self, external_id: str) -> Observation | Gone | RemoteError:
        """Say where one job is."""
        directory = RecordDirectory(external_id)
        try:
            if not directory.exists():
                return Gone(reason="its record directory is not there")
            start = directory.start()
            if start is None:
                return Gone(reason="its record directory holds no record of a start")
            if start.by == "refused":
                return Gone(reason="it was proved absent and so may never start", certain=True)
            return self._of_started(directory, start)
        except RecordError as error:
            return RemoteError(str(error))

    def _of_started(self, directory: RecordDirectory, start: StartRecord) -> Observation | Gone | RemoteError:
        ended, cancel = directory.exit(), directory.cancel()
        if ended is not None and cancel is None:
            return _ended(directory, start, ended, None)
        doubt = why_not_here(start)
        if doubt is not None:
            return RemoteError(doubt)
        restarted = start.identity(start.wrapper).boot_id != boot_id()
        if cancel is not None and not restarted:
            left = processes_of(directory, start, cancel.tree, self.table)
            if left:
                number = "1 process has" if len(left) == 1 else f"{len(left)} processes have"
                return _live(directory, start, "stopping", f"{number} not ended yet")
        if ended is not None:
            return _ended(directory, start, ended, cancel)
        if restarted:
            return Gone(reason="the host restarted before an exit code was recorded", certain=True)
        return self._of_unended(directory, start, cancel)

    @staticmethod
    def _of_unended(
        directory: RecordDirectory, start: StartRecord, cancel: CancelRecord | None
    ) -> Observation | Gone | RemoteError:
        wrapper = start.identity(start.wrapper).standing()
        if wrapper == "alive":
            return _live(directory, start, "running")
        command = start.identity(start.command).standing()
        if "unknown" in {wrapper, command}:
            return RemoteError(
                f"it cannot be told whether its process {start.command[0]} lives: look as its user"
            )
        if command == "alive":
            return _live(
                directory,
                start,
                "running",
                "its wrapper was killed: it goes on, but its exit code will be unknown",
            )
        ended = directory.exit()  # it may have been written after the first look, before the wrapper's end
        if ended is not None:
            return _ended(directory, start, ended, cancel)
        if cancel is not None and start.command in cancel.tree:
            message = "it ended after it was cancelled; its wrapper was killed, so its exit code is unknown"
            return Observation(Phase.CANCELLED, "ended", message, _detail(directory, start, None))
        return Gone(reason="its wrapper was killed before the exit code was recorded", certain=True)


def why_not_here(start: StartRecord) -> str | None:
    """Return why a job's pids cannot be looked up from here, or None when they can."""
    _, boot, namespace = start.host.split("/")
    if not same_machine(start.host, host_id()):
        return "it was started on another host: look from there"
    if boot == boot_id() and namespace != pid_namespace():
        return "it was started in another container (pid namespace) of this host: look from there"
    return None


def _live(directory: RecordDirectory, start: StartRecord, word: str, message: str = "") -> Observation:
    return Observation(Phase.RUNNING, word, message, _detail(directory, start, None))


def _ended(
    directory: RecordDirectory, start: StartRecord, ended: ExitRecord, cancel: CancelRecord | None
) -> Observation:
    detail = _detail(directory, start, ended)
    if ended.error is not None:
        return Observation(Phase.FAILED, "not started", ended.error, detail)
    if ended.code == 0:
        return Observation(Phase.SUCCEEDED, "exited 0", "", detail)
    name = ended.signal_name
    word = f"exited {ended.code}" if name is None else name if name.startswith("signal") else f"signal {name}"
    message = f"exit code {ended.code}" if name is None else f"killed by {name}"
    if cancel is not None and start.command in cancel.tree:
        return Observation(Phase.CANCELLED, word, message if name is None else f"ended by {name}", detail)
    if ended.disk_full:
        message += f"; the disk of its log was full: free space under {directory.path}"
    return Observation(Phase.FAILED, word, message, detail)


def _detail(
    directory: RecordDirectory, start: StartRecord, ended: ExitRecord | None
) -> dict[str, str | int | None]:
    return {
        "pid": start.command[0],
        "exit_code": None if ended is None else ended.code,
        "signal": None if ended is None else ended.signal_name,
        "log": directory.log,
        "started_at": start.at,
        "ended_at": None if ended is None else ended.at,
    }
