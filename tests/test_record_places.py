"""Who does not see the place where a job's records are says nothing about the job."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jobrunner import record_places
from jobrunner.backends.process.records import marked

HERE = {"host_id": "machine/boot/1", "submit_started_at": "2026-01-01", "submit_token": "token"}


def a_row(external_id: object = None, baseline: object = None, **values: Any) -> dict[str, Any]:
    return {**HERE, "external_id": external_id, "submit_baseline": baseline, **values}


def is_seen(*args: Any, **values: Any) -> bool:
    return record_places.why_unseen(a_row(*args, **values)) is None


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "a: place" / "processes"


def test_a_place_keeps_its_mark(place: Path) -> None:
    first = marked(str(place))
    assert marked(str(place)) == first
    assert record_places.parts_of(first)[1] == str(place)
    assert record_places.is_in_sight(first)
    (place / "place").write_text("[")  # cut short by a full disk, perhaps
    assert not record_places.is_in_sight(first)
    assert record_places.is_in_sight(marked(str(place)))


def test_a_mark_that_is_in_use_never_grows_old(place: Path) -> None:
    first = marked(str(place))
    os.utime(place / "place", (0, 0))
    assert marked(str(place)) == first
    assert (place / "place").stat().st_mtime > 0


def test_another_directory_under_the_same_path_is_not_the_place(place: Path) -> None:
    baseline = marked(str(place))
    external_id = str(place / "token")
    assert is_seen(external_id, baseline)  # its directory is gone, but gone for everybody
    assert is_seen(None, baseline)
    place.rename(place.with_name("elsewhere"))
    assert not is_seen(external_id, baseline)
    assert not is_seen(None, baseline)
    assert marked(str(place)) != baseline
    assert not is_seen(external_id, baseline)
    (place / "token").mkdir()
    assert is_seen(external_id, baseline)


def test_what_has_not_begun_or_is_bound_to_no_host_is_seen(place: Path) -> None:
    assert is_seen(None, f"mark:{place}", submit_started_at=None)
    assert is_seen(str(place / "token"), f"mark:{place}", host_id=None)


def test_records_of_an_older_version_have_no_mark(place: Path) -> None:
    assert not is_seen(str(place / "token"), str(place))
    assert not is_seen(str(place / "token"))
    assert not is_seen(None, str(place))
    (place / "token").mkdir(parents=True)
    assert is_seen(str(place / "token"), str(place))
    assert is_seen(str(place / "token"))
    assert is_seen(None, str(place))


@pytest.mark.parametrize("external_id", ["arn:job/1", "/nowhere/job.pid", b"\xff", 7])
def test_an_id_that_is_no_record_directory_is_nothing_to_look_for(external_id: object) -> None:
    assert is_seen(external_id)


def test_odd_marks_are_none(place: Path) -> None:
    place.mkdir(parents=True)
    for content in ("", "7", "{}", json.dumps({"mark": 7}), "\xff"):
        (place / "place").write_text(content, encoding="latin-1")
        assert record_places.mark_of(str(place)) is None


def test_the_record_of_a_submission_in_doubt_is_known_by_its_token(place: Path) -> None:
    assert record_places.record_of(a_row(None, f"mark:{place}")) == str(place / "token")
    assert record_places.record_of(a_row("/its/record", f"mark:{place}")) == "/its/record"
    assert record_places.record_of(a_row()) is None
