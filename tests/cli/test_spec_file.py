"""A job's spec in a file: what is read, and the sentence for each mistake."""

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobrunner.cli import spec_file
from jobrunner.cli.spec_file import read_spec
from jobrunner.errors import SpecError, UsageError
from tests.cli.conftest import CommandLine

_NEST: list[Any] = []
for _ in range(30):
    _NEST = [_NEST]

READ: dict[str, tuple[str, dict[str, Any]]] = {
    "YAML": ("a: 1\nb: {c: [x, true, 1.5, null]}\n", {"a": 1, "b": {"c": ["x", True, 1.5, None]}}),
    "JSON": ('{"a": 1, "b": {"a": [{"a": 1}, {"a": 2}]}}', {"a": 1, "b": {"a": [{"a": 1}, {"a": 2}]}}),
    "JSON with quotes and brackets in its texts": ('{"x\\"}{": "}", "y": "\\\\"}', {'x"}{': "}", "y": "\\"}),
    "a byte order mark": ("\ufeffa: 1\n", {"a": 1}),
    "JSON as YAML lets it be": ('{"a": 1,}', {"a": 1}),
    "a date, which stays a text": ("a: 2026-03-01\n", {"a": "2026-03-01"}),
    "an alias": ("a: &a [1]\nb: *a\n", {"a": [1], "b": [1]}),
    "merged keys, and those that come over them": (
        "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b}\n",
        {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 2}},
    ),
    "references to variables": ("a: ${env:X}\n", {"a": "${env:X}"}),
    "nesting as deep as it may be": ("a: " + "[" * 31 + "]" * 31, {"a": _NEST}),
}


@pytest.mark.parametrize("what", READ)
def test_a_spec_is_read(tmp_path: Path, what: str) -> None:
    text, value = READ[what]
    (tmp_path / "spec").write_text(text)
    assert read_spec(str(tmp_path / "spec")) == value


_LAUGHS = "".join(f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in pairwise("abcdefghi"))

REFUSED: dict[str, tuple[str | bytes, str, *tuple[str, ...]]] = {
    "nothing": ("", "f", "f is empty"),
    "only a comment": ("# x\n", "f", "f holds nothing"),
    "null": ("null", "f.json", "f.json holds nothing"),
    "a list": ("- a\n", "f", "f holds a list"),
    "a word": ("a\n", "f", "f holds a single value"),
    "two documents": ("a: 1\n---\nb: 1\n", "f", "f, line 2", "single document"),
    "broken YAML": ("a: 1\nb: [1\n", "f", "f, line 3", "expected ',' or ']'"),
    "two colons": ("a: 1\nb: c: d\n", "f", "f, line 2", "mapping values are not allowed here"),
    "a tab": ("a:\n\tb: 1\n", "f", "f, line 2", "\\t"),
    "broken JSON": ('{"a": 1,\n}', "f.json", "f.json, line 2", "property name"),
    "JSON and more": ('{"a": 1}\nx', "f.json", "f.json, line 2", "extra data"),
    "a key twice in YAML": ("a: 1\nb: 2\na: 3\n", "f", "f, line 3", "the key 'a' is there twice"),
    "a key twice in JSON": (
        '{"a": {"b": 1},\n"b": 2, "a": 3}',
        "f",
        "f, line 2",
        "the key 'a' is there twice",
    ),
    "a key twice deep in JSON": ('{"a": [{"b": 1,\n\n"b": 2}]}', "f", "f, line 3", "the key 'b'"),
    "a number as key": ("a: 1\n1: x\n", "f", "f, line 2", "'1' is no text"),
    "a word of YAML's own as key": ("on: x\n", "f", "f, line 1", "'on' is no text"),
    "a list as key": ("? [a]\n: x\n", "f", "f, line 1", "a key must be a text"),
    "not UTF-8": (b"a: 1\nb: \xff\n", "f", "f, line 2", "UTF-8"),
    "a control character": ("a: 1\nb: \x07\n", "f", "f, line 2", "U+0007"),
    "an object of Python's": ("a: !!python/object:os.system x\n", "f", "f, line 1", "constructor"),
    "a tag of somebody else's": ("a: !Ref x\n", "f", "f, line 1", "'!Ref'"),
    "a value that is not its tag's": ("a: !!int x\n", "f", "f: ", "tag"),
    "a time that is none": ("a: !!timestamp x\n", "f", "f: ", "tag"),
    "bytes": ("a: !!binary aGk=\n", "f", "f: a is b'hi'"),
    "a set": ("a: {b: !!set {x}}\n", "f", "f: a.b is {'x'}"),
    "no number in YAML": ("a: [.nan]\n", "f", "f: a[0] is nan"),
    "no number in JSON": ('{"a": NaN}', "f", "f: ", "NaN"),
    "an endless number": ('{"a": 1e999}', "f", "f: a is inf"),
    "a number of thousands of digits": ('{"a": ' + "1" * 5000 + "}", "f", "f: ", "4300 digits"),
    "such a number in YAML": ("a: " + "1" * 5000, "f", "f: ", "too long"),
    "such a number in hexadecimal": ("a: 0x" + "f" * 5000, "f", "f: a is a number too long"),
    "a number that no database keeps": (
        '{"a": {"b": ' + "1" * 1300 + "}}",
        "f",
        "f: a.b is a number too long",
    ),
    "an unknown alias": ("a: *b\n", "f", "f, line 1", "undefined alias"),
    "a list within itself": ("a: &a [*a]\n", "f", "f: nested too deeply"),
    "a mapping within itself": ("a: &a\n  b: *a\n", "f", "f: nested too deeply"),
    "deep YAML": ("a:\n  " + "[" * 40 + "]" * 40, "f", "f, line 2", "nested too deeply"),
    "bottomless YAML": ("[" * 100_000, "f", "f, line 1", "nested too deeply"),
    "deep JSON": ('{"a":\n' + "[" * 40 + "]" * 40 + "}", "f", "f, line 2", "nested too deeply"),
    "bottomless JSON": ('{"a":' * 5000 + "1" + "}" * 5000, "f", "f, line 1", "nested too deeply"),
    "billions of values": (f"a: &a [{', '.join('1' * 10)}]\n{_LAUGHS}", "f", "more than 100,000 values"),
    "half a character": ('{"a": {"b": "\\ud800"}}', "f", "f: a.b holds a character"),
    "a NUL": ('a: "\\0"\n', "f", "f: a holds a character"),
    "a NUL in a key": ('{"a\\u0000": 1}', "f", "a key holds a character"),
    "too much": ("x" * (1024 * 1024 + 1), "f", "larger than 1 MiB"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_in_a_spec_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    text, name, *words = REFUSED[mistake]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError) as refused:
        read_spec(name)
    sentence = str(refused.value)
    assert all(word in sentence for word in words), sentence
    assert len(sentence) < 300
    assert "\n" not in sentence


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent does not exist"):
        read_spec(str(tmp_path / "absent"))
    with pytest.raises(SpecError, match="is a directory"):
        read_spec(str(tmp_path))
    with pytest.raises(SpecError, match="cannot be read"):
        read_spec("a\0b")
    locked = tmp_path / "locked"
    locked.touch(mode=0)
    if not os.access(locked, os.R_OK):
        with pytest.raises(SpecError, match="Permission denied"):
            read_spec(str(locked))


@pytest.mark.timeout(60)
def test_a_pipe_that_nobody_writes_into_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec_file, "_PIPE_S", 0.2)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match=r"pipe cannot be read \(nothing came within 0.2 s\)"):
        read_spec(str(tmp_path / "pipe"))
    with pytest.raises(SpecError, match="larger than 1 MiB"):
        read_spec("/dev/zero")


@pytest.mark.timeout(60)
def test_a_spec_comes_through_a_pipe_as_a_shell_gives_it() -> None:
    end, start = os.pipe()
    os.write(start, b'{"a": 1}')
    os.close(start)
    try:
        assert read_spec(f"/dev/fd/{end}") == {"a": 1}
    finally:
        os.close(end)


def test_yaml_without_its_library_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "j").write_text("a: 1\n")
    with pytest.raises(
        UsageError, match=r"is not JSON, and YAML needs PyYAML.*pip install 'jobrunner\[aws\]'"
    ):
        read_spec(str(tmp_path / "j"))
    (tmp_path / "j").write_text('{"a": 1}')
    assert read_spec(str(tmp_path / "j")) == {"a": 1}


def test_standard_input_is_read_to_its_end(jobrunner: CommandLine) -> None:
    start = ("start", "batch", "--dry-run", "--json", "--spec", "-")
    answer = jobrunner(*start, stdin="jobName: a\njobQueue: b\njobDefinition: c\n")
    assert answer.json == {"jobName": "a", "jobQueue": "b", "jobDefinition": "c"}
    assert jobrunner(*start).is_refused("standard input is empty")
    assert jobrunner(*start, stdin="a: 1\na: 2\n").is_refused("standard input, line 2", "twice")
