"""`jobrunner logs`: each line once, whatever the log does meanwhile."""

import asyncio
import datetime as dt
import json
import subprocess
from collections.abc import AsyncIterator, Sequence

import pytest

from jobrunner.backends.base import LogLine
from jobrunner.cli.log_printer import LogPrinter
from jobrunner.errors import LogsUnavailable, Throttled
from tests.cli.conftest import NAMED, CommandLine, submitted
from tests.helpers import plain_sql, until
from tests.stubs.batch_server import BatchStub

T0 = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def at(seconds: float, text: str, source: str = "") -> LogLine:
    return LogLine(text, T0 + dt.timedelta(seconds=seconds), source)


class Log:
    """A log as a backend reads it: from `since` on, in the order of its lines."""

    def __init__(self, printer: LogPrinter) -> None:
        self.lines: list[LogLine] = []
        self.read = 0
        self.knows_since = True
        self._printer = printer

    def look(self, *, is_last: bool = False, error: Exception | None = None, after: int = 0) -> bool:
        since = self._printer.since if self.knows_since else None

        async def lines() -> AsyncIterator[LogLine]:
            wanted = [line for line in self.lines if since is None or line.at is None or line.at >= since]
            for number, line in enumerate(wanted):
                if error is not None and number == after:
                    raise error
                self.read += 1
                yield line
            if error is not None:
                raise error

        return asyncio.run(self._printer.print_new(lines(), is_last=is_last))


@pytest.fixture
def log() -> Log:
    return Log(LogPrinter(as_json=False))


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


# --- the printer -----------------------------------------------------------------------------------


def test_lines_with_times_are_printed_once_and_mostly_read_once(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log.lines = [at(number, f"line {number}") for number in range(1000)]
    assert log.look()
    assert len(printed(capsys)) == 1000
    log.read = 0
    log.lines += [at(1000, "new")]
    assert log.look()
    assert printed(capsys) == ["new"]
    assert log.read == 12  # those of the last ten seconds may have been joined by late ones


def test_a_backend_may_read_more_than_it_is_asked_for(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log.knows_since = False
    log.lines = [at(number, "line") for number in range(100)]
    log.look()
    log.lines += [at(100, "new")]
    log.look()
    log.look(is_last=True)
    assert printed(capsys) == [*["line"] * 100, "new"]


def test_equal_lines_are_told_apart_by_how_many_there_are(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log.lines = [at(1, "same"), at(1, "same")]
    log.look()
    log.lines += [at(1, "same"), at(1, "other")]
    log.look()
    log.look()
    assert printed(capsys) == ["same", "same", "same", "other"]


def test_a_line_that_reaches_the_log_late_is_printed(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log.lines = [at(0, "first"), at(20, "third")]
    log.look()
    log.lines.insert(1, at(15, "second"))
    log.look()
    assert printed(capsys) == ["first", "third", "second"]


def test_the_last_line_without_a_time_waits_until_it_is_whole(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log.lines = [LogLine("one"), LogLine("tw")]
    log.look()
    assert printed(capsys) == ["one"]
    log.lines[1] = LogLine("two")
    log.look()
    assert printed(capsys) == []
    log.look()
    assert printed(capsys) == ["two"]
    log.lines += [LogLine("thr")]
    log.look()
    log.look(is_last=True)
    assert printed(capsys) == ["thr"]


def test_a_line_with_a_time_is_whole_at_once(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log.lines = [at(0, "one")]
    log.look()
    assert printed(capsys) == ["one"]


def test_another_source_is_announced_among_the_words(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log.lines = [at(0, "a")]
    log.look()
    # With the second attempt both have names, and what was printed stays printed.
    log.lines = [at(0, "a", "attempt 1"), at(1, "b", "attempt 2"), at(2, "c", "attempt 2")]
    log.look()
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("a\nb\nc\n", "-- attempt 2 --\n")


def test_json_names_the_source_of_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(LogPrinter(as_json=True))
    log.lines = [at(0, "a", "attempt 1"), LogLine("b")]
    log.look(is_last=True)
    shown = capsys.readouterr()
    assert [json.loads(line) for line in shown.out.splitlines()] == [
        {"text": "a", "at": "2026-03-01T12:00:00Z", "source": "attempt 1"},
        {"text": "b", "at": None, "source": None},
    ]
    assert shown.err == ""


def test_a_log_that_loses_its_times_is_read_from_the_beginning(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log.lines = [at(0, "a"), at(60, "b"), LogLine("c")]
    log.look()
    log.lines += [LogLine("d")]
    log.look()
    log.look(is_last=True)
    assert printed(capsys) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("error", [LogsUnavailable("x"), Throttled("x"), OSError("x")])
def test_what_was_read_before_an_error_is_printed_and_not_again(
    log: Log, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    log.lines = [at(0, "a"), at(1, "b"), LogLine("c")]
    for after in (1, 3):
        with pytest.raises(type(error)):
            log.look(error=error, after=after)
    log.look(is_last=True)
    assert printed(capsys) == ["a", "b", "c"]


# --- the command -----------------------------------------------------------------------------------


def begun(aws: CommandLine, batch: BatchStub, *arguments: str) -> tuple[str, str]:
    """Start a job, and return its id and the one in Batch."""
    _, job_id = aws.begin_job("batch", *NAMED, "--poll-interval", "0.2", *arguments)
    (batch_id,) = submitted(batch)
    aws.until(job_id, "external_id", batch_id)
    return job_id, batch_id


def lines_of(process: "subprocess.Popen[str]", count: int) -> Sequence[str]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


def words_until(process: "subprocess.Popen[str]", part: str) -> str:
    """Return the words that were said until these came."""
    assert process.stderr is not None
    said = ""
    while part not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, words = process.communicate(timeout=60)
    assert "Traceback" not in words
    return process.returncode, out, words


def test_all_attempts_are_followed_to_the_end(aws: CommandLine, batch: BatchStub) -> None:
    job_id, batch_id = begun(aws, batch, "--attempts", "2")
    process = aws.begin("logs", job_id, "--follow")
    said = words_until(process, "no output yet: it is SUBMITTED")
    batch.run(batch_id)
    batch.write_log(batch_id, ["one", "two"])
    assert lines_of(process, 2) == ["one", "two"]
    batch.retry(batch_id)
    batch.run(batch_id)
    batch.write_log(batch_id, ["three"])
    assert lines_of(process, 1) == ["three"]
    batch.succeed(batch_id)
    success = f"SELECT 1 FROM job WHERE id = {job_id} AND state = 'success'"
    until(lambda: plain_sql(f"sqlite:///{aws.database}", success))  # at once: it is soon followed no more
    batch.write_log(batch_id, ["late"])
    code, out, words = ended(process)
    assert (code, out) == (0, "late\n")
    assert (said + words).count("no output yet: it is SUBMITTED") == 1
    assert words.count("-- attempt 2 --") == 1
    again = aws("logs", job_id)
    assert (again.code, again.out) == (0, "one\ntwo\nthree\nlate\n")
    assert [json.loads(line)["source"] for line in aws("logs", job_id, "--json").out.splitlines()] == [
        *("attempt 1", "attempt 1", "attempt 2", "attempt 2")
    ]


def test_trouble_while_following_is_said_once_and_waited_for(aws: CommandLine, batch: BatchStub) -> None:
    job_id, batch_id = begun(aws, batch)
    batch.run(batch_id)
    batch.write_log(batch_id, ["one"])
    batch.fault("GetLogEvents", "throttled", 2)
    process = aws.begin("logs", job_id, "--follow")
    assert lines_of(process, 1) == ["one"]
    batch.succeed(batch_id)
    code, out, words = ended(process)
    assert (code, out) == (0, "")
    assert words.count("cannot be read now") == 1
    assert words.count("can be read again") == 1


def test_trouble_without_following_is_one_sentence(aws: CommandLine, batch: BatchStub) -> None:
    job_id, batch_id = begun(aws, batch)
    batch.run(batch_id)
    batch.write_log(batch_id, ["one"])
    batch.fault("GetLogEvents", "server_error", None)
    assert aws("logs", job_id).is_refused("500", code=1)


def test_an_output_that_is_not_to_be_had_is_a_sentence_and_no_failure(
    aws: CommandLine, batch: BatchStub
) -> None:
    job_id, batch_id = begun(aws, batch)
    answer = aws("logs", job_id)
    assert (answer.code, answer.out) == (0, "")
    assert answer.words == f"job {job_id}: It has no output yet: it is SUBMITTED.\n"
    batch.run(batch_id)
    assert aws("logs", job_id).says("has no stream")
    batch.succeed(batch_id)
    aws.until(job_id, "state", "success")
    answer = aws("logs", job_id, "--follow")
    assert (answer.code, answer.out, len(answer.words.splitlines())) == (0, "", 1)


def test_a_child_of_an_array_is_chosen_by_its_number(aws: CommandLine, batch: BatchStub) -> None:
    job_id, batch_id = begun(aws, batch, "--array-size", "3")
    assert aws("logs", job_id).says("It has 3 children", "--child 0 to --child 2")
    batch.run(f"{batch_id}:1")
    batch.write_log(f"{batch_id}:1", ["child one"])
    assert aws("logs", job_id, "--child", "1").out == "child one\n"
    assert aws("logs", job_id, "--child", "1", "--node", "0").is_refused("--child or --node")
    assert aws("logs", job_id, "--child", "-1").is_refused("--child")
    assert aws("logs", job_id, "--node", "x").is_refused("--node")


def test_a_job_without_parts_says_so(jobrunner: CommandLine) -> None:
    assert jobrunner("start", "process", "--poll-interval", "0.2", "--", "true").code == 0
    assert jobrunner("logs", "1", "--child", "0").is_refused("no children", "--child")
    assert jobrunner("logs", "1", "--node", "0").is_refused("nodes", "--node")
