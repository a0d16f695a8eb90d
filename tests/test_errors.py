"""What every error of ours has in common: its message is one line that moves no terminal."""

import pytest

from jobrunner.errors import DatabaseError, JobFailed, JobrunnerError, SettingsError


@pytest.mark.parametrize("kind", [JobrunnerError, SettingsError, DatabaseError, JobFailed])
@pytest.mark.parametrize("odd", ["\n", "\r", "\x1b[2J", "\x00", "\u2028", "\u202e", "\x85", "\ud800", "\x9b"])
def test_a_message_is_one_printable_line_whatever_it_quotes(kind: type[JobrunnerError], odd: str) -> None:
    text = str(kind(f"the name 'a{odd}b' is wrong"))
    assert text.isprintable()
    assert "a" in text
    assert "b' is wrong" in text


def test_a_message_of_printable_text_stays_as_it_is() -> None:
    assert str(SettingsError("größe = 5 ms (file): 日本 🚀")) == "größe = 5 ms (file): 日本 🚀"
