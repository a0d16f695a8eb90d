"""A log that is followed: each byte is read once, whatever becomes of the file; and a listing always ends."""

import asyncio
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from jobrunner.backends.batch import logs as batch_logs
from jobrunner.backends.process.output import Output
from jobrunner.bounded import Bounded, Pages
from jobrunner.cli.log_printer import LogPrinter
from jobrunner.errors import BackendError, LogsUnavailable
from tests.cli.conftest import CommandLine


class Followed:
    """The output of a job, and what a person who follows it sees."""

    def __init__(self, directory: Path) -> None:
        (directory / "start").write_text("{}")
        self.path = directory / "output.log"
        self.output = Output(self.path)

    def look(self, *, is_last: bool = False) -> list[str]:
        async def read() -> list[str]:
            return [text async for texts in self.output.lines(is_last=is_last) for text in texts]

        return asyncio.run(read())

    def append(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)


@pytest.fixture
def followed(tmp_path: Path) -> Any:
    made = Followed(tmp_path)
    yield made
    made.output.close()


def test_a_long_log_of_a_command_is_read_once_though_it_is_looked_at_often(jobrunner: CommandLine) -> None:
    size, imports = 20_000_000, 20_000_000
    lines = (
        "import sys; [sys.stdout.write('x' * 99 + '\\n') for _ in range(200_000)]; print('full', flush=True)"
    )
    waits = "import time\nfor n in range(600): print('tick', n, flush=True); time.sleep(0.5)"
    writer, job_id = jobrunner.begin_job("process", "--", sys.executable, "-c", f"{lines}\n{waits}")
    follower = jobrunner.begin("logs", job_id, "--follow")
    assert follower.stdout is not None
    ticks = itertools.islice((line for line in follower.stdout if line.startswith("tick")), 16)
    assert len(list(ticks)) == 16  # it takes several looks to see them come
    counters = Path(f"/proc/{follower.pid}/io")
    if counters.exists():
        (read,) = re.findall(r"rchar: (\d+)", counters.read_text())
        assert int(read) < 1.2 * size + imports
    jobrunner("kill", job_id)
    assert writer.wait(60) == 3


def test_what_was_read_is_not_read_again(followed: Followed) -> None:
    followed.append(b"x" * 99 + b"\n")
    assert followed.look() == ["x" * 99]
    followed.append(b"one\ntwo\r\n")
    assert followed.look() == ["one", "two"]
    assert followed.look() == []
    assert followed.output._at == followed.path.stat().st_size


def test_a_line_that_has_not_ended_is_kept_until_it_has(followed: Followed) -> None:
    followed.append(b"first\nhal")
    assert followed.look() == ["first"]
    followed.append("f é".encode()[:-1])
    assert followed.look() == []
    followed.append("é".encode()[-1:] + b"\n")
    assert followed.look() == ["half é"]


def test_a_line_that_does_not_go_on_is_given_once(followed: Followed) -> None:
    followed.append(b"Continue? ")
    assert followed.look() == []
    assert followed.look() == ["Continue? "]
    assert followed.look() == []
    followed.append(b"\nyes\n")
    assert followed.look() == ["yes"]
    followed.append(b"the end")
    assert followed.look(is_last=True) == ["the end"]


def test_a_file_that_was_rotated_is_read_to_its_end_and_then_the_new_one(followed: Followed) -> None:
    followed.append(b"one\n")
    assert followed.look() == ["one"]
    followed.append(b"two\n")
    followed.path.rename(followed.path.with_suffix(".1"))
    followed.append(b"three\n")
    assert followed.look() == ["two", "three"]


def test_a_file_that_was_truncated_is_read_from_its_start(followed: Followed) -> None:
    followed.append(b"a long line\nand more of it\n")
    assert len(followed.look()) == 2
    followed.path.write_bytes(b"new\n")
    assert followed.look() == ["new"]


@pytest.mark.parametrize("count", [5, 6, 200, 200_000])
def test_a_file_that_was_truncated_and_has_grown_past_its_old_size_is_read_from_its_start(
    followed: Followed, count: int
) -> None:
    followed.append(b"".join(b"old %d\n" % n for n in range(5)))
    assert followed.look() == [f"old {n}" for n in range(5)]
    followed.path.write_bytes(b"".join(b"new %d\n" % n for n in range(count)))  # the same inode
    assert followed.look() == [f"new {n}" for n in range(count)]
    followed.append(b"more\n")
    assert followed.look() == ["more"]


def test_a_long_file_that_was_truncated_again_and_again_is_read_whole_each_time(followed: Followed) -> None:
    for turn in range(3):
        lines = [f"turn {turn} line {n}" for n in range(20_000 + turn)]
        followed.path.write_bytes(("\n".join(lines) + "\n").encode())
        assert followed.look() == lines


@pytest.mark.parametrize("how", ["truncated", "rotated"])
def test_a_line_that_had_not_ended_there_is_given_and_not_continued(followed: Followed, how: str) -> None:
    followed.append(b"one\nhalf a li")
    assert followed.look() == ["one"]
    if how == "rotated":
        followed.path.rename(followed.path.with_suffix(".1"))
    followed.path.write_bytes(b"a new line that is longer\n")
    assert followed.look() == ["half a li", "a new line that is longer"]


def test_a_file_that_was_emptied_and_stays_so_gives_nothing_again(followed: Followed) -> None:
    followed.append(b"one\n")
    assert followed.look() == ["one"]
    followed.path.write_bytes(b"")
    assert followed.look() == []
    followed.append(b"one\n")
    assert followed.look() == ["one"]


def test_a_line_without_an_end_does_not_fill_the_memory(followed: Followed) -> None:
    followed.append(b"x" * 3_000_000)
    lines = followed.look(is_last=True)
    assert sum(map(len, lines)) == 3_000_000
    assert max(map(len, lines)) < 2_000_000


def test_output_that_does_not_exist_yet_is_waited_for(followed: Followed) -> None:
    assert followed.look() == []
    followed.append(b"now\n")
    assert followed.look() == ["now"]


def test_what_is_followed_is_printed_as_json_too(
    followed: Followed, capsys: pytest.CaptureFixture[str]
) -> None:
    followed.append(b"one\ntwo\n")
    assert asyncio.run(LogPrinter(as_json=True).print_all(followed.output.lines(is_last=True)))
    assert capsys.readouterr().out.splitlines() == [
        '{"text": "one", "at": null, "source": null}',
        '{"text": "two", "at": null, "source": null}',
    ]


# --- listings that do not end ---------------------------------------------------------------------


class _Expired:
    """CloudWatch Logs of a stream whose events have expired: an empty page, and ever another token."""

    def __init__(self) -> None:
        self.calls = 0

    async def call(self, _service: str, _operation: str, **_params: Any) -> dict[str, Any]:
        self.calls += 1
        return {"events": [], "nextForwardToken": f"f/{self.calls}"}


def test_an_expired_stream_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_logs, "_EMPTY_PAUSE_S", 0.0)
    aws: Any = _Expired()
    stream = batch_logs.Stream("d/default/x", "/aws/batch/job", "", "")

    async def read() -> None:
        async for _ in batch_logs._lines_of(aws, stream, None):
            pass

    with pytest.raises(LogsUnavailable, match=r"20 empty pages of the stream d/default/x .* have expired"):
        asyncio.run(read())
    assert aws.calls == 20


def test_the_pages_of_a_listing_come_to_an_end() -> None:
    pages = Pages("the list", most=3)
    pages.go_on("a")
    with pytest.raises(BackendError, match="the list does not end: page 2 has a token that came before"):
        pages.go_on("a")
    pages = Pages("the list", most=3)
    pages.go_on("a")
    pages.go_on("b")
    with pytest.raises(BackendError, match="it has more than 3 pages"):
        pages.go_on("c")


def test_entries_by_a_key_are_bounded() -> None:
    held: Bounded[int, int] = Bounded(most=3)
    for number in range(10):
        held.setdefault(number, number)
    assert list(held) == [7, 8, 9]
