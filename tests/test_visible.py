"""What others wrote begins no line, moves no terminal and hides no part of itself, wherever it is shown."""

import io
import json
import logging
import sys

import pytest

from jobrunner.backends.base import LogLine
from jobrunner.cli import output
from jobrunner.cli.log_printer import LogPrinter
from jobrunner.logs import get_logger
from jobrunner.visible import in_json, on_terminal, visible

HOSTILE = "ok\n2026-01-01 ERROR forged\r\x1b[2J\x9b1A\u202eevil\u2066\u2028\x00\x7f\udc80"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steers(text: str) -> bool:
    return any(not char.isprintable() for char in text.removesuffix("\n"))


def test_what_cannot_be_printed_is_written_out() -> None:
    assert visible(HOSTILE) == (
        r"ok\n2026-01-01 ERROR forged\r\x1b[2J\x9b1A\u202eevil\u2066\u2028\x00\x7f\udc80"
    )


@pytest.mark.parametrize("text", ["plain", "naïve 日本語", "ज\u200d", "👩\u200d🔬", ""])
def test_the_words_of_people_stay_as_they_are(text: str) -> None:
    assert visible(text) == text


def test_a_space_of_another_width_is_a_space() -> None:
    assert visible("1\u00a0000") == "1 000"


@pytest.mark.parametrize("say", [output.say, output.word, output.live_line])
def test_no_line_of_output_can_be_forged(say: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(say)
    say(f"job 1: {HOSTILE}")
    output.erase_live_line()
    captured = capsys.readouterr()
    text = (captured.out or captured.err).removesuffix("\r\x1b[2K")
    assert text.count("\n") <= 1
    assert not steers(text)


def test_tables_and_pairs_show_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    output.say_table([output.Column("name"), output.Column("message")], [[HOSTILE, HOSTILE]])
    output.say_pairs([("message", HOSTILE)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert not any(map(steers, lines))


def test_json_means_the_same_and_shows_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"message": HOSTILE + "😀\U000e0041", "name": "naïve"}
    output.say_json(value)
    line = capsys.readouterr().out
    assert not steers(line)
    assert "naïve" in line
    assert json.loads(line) == value
    assert in_json("[\n1]") == "[\n1]"


def test_a_log_line_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    log = get_logger("jobrunner.test")
    with caplog.at_level(logging.INFO, "jobrunner.test"):
        log.warning(f"not taken: {HOSTILE}", error=ValueError(HOSTILE))
        try:
            int(HOSTILE)
        except ValueError:
            log.error("failed", job=1, exc_info=True)
    first, second = (record.getMessage() for record in caplog.records)
    assert not steers(first)
    head, *trace = second.splitlines()
    assert head == "failed job=1"
    assert all(line.startswith("    ") for line in trace)
    assert "invalid literal" in trace[-1]
    assert not any(map(steers, trace))


def test_the_output_of_a_job_reaches_a_file_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.say_output("\x1b[31mred\x1b[0m\r\x1b[2J")
    assert capsys.readouterr().out == "\x1b[31mred\x1b[0m\r\x1b[2J\n"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m plain", "\x1b[1;31mred\x1b[0m plain\x1b[0m"),
        ("\x1b[31mred", "\x1b[31mred\x1b[0m"),
        ("a\tb", "a\tb"),
        ("10%\r20%\r", "10%\n20%"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b2J\u202e\x08", r"\x9b2J\u202e\x08"),
        ("", ""),
    ],
)
def test_the_output_of_a_job_keeps_its_colours_on_a_terminal_and_steers_nothing(
    line: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_terminal(line) == shown
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    LogPrinter(as_json=False)._print(LogLine(line))
    assert terminal.getvalue() == shown + "\n"
